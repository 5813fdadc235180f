"""Model cards, and folders on the Hub."""

from .cards import FeatureExample, render_card, save_card
from .collections import SAECollection, load_saes
from .examples import example_features
from .push import group, push_folder


__all__ = [
    "FeatureExample",
    "SAECollection",
    "example_features",
    "group",
    "load_saes",
    "push_folder",
    "render_card",
    "save_card",
]
