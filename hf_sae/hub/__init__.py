"""Model cards, and folders on the Hub."""

from .cards import Example, render_card, save_card
from .push import push_folder


__all__ = ["Example", "push_folder", "render_card", "save_card"]
