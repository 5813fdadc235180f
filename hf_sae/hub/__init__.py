"""Model cards, folders, feature datasets and activation caches on the Hub."""

from .caches import push_cache
from .cards import FeatureExample, render_card, save_card
from .collections import SAECollection, load_saes
from .examples import example_features
from .feature_datasets import load_features, push_features
from .push import group, push_folder


__all__ = [
    "FeatureExample",
    "SAECollection",
    "example_features",
    "group",
    "load_features",
    "load_saes",
    "push_cache",
    "push_features",
    "push_folder",
    "render_card",
    "save_card",
]
