"""Model cards, and folders on the Hub."""

from .cards import FeatureExample, render_card, save_card
from .push import push_folder


__all__ = ["FeatureExample", "push_folder", "render_card", "save_card"]
