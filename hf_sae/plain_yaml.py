"""YAML from outside: plain values, and no more of them than the text has."""

from __future__ import annotations

from typing import Any


def load_yaml(text: str) -> Any:
    """The value of a YAML document without tags and aliases.

    Raises:
        ValueError: if it is no YAML, or uses aliases; the message says where.
    """
    import yaml

    class Plain(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            # an alias stands for a whole subtree, and a dozen lines of aliases of aliases for a billion entries
            if self.check_event(yaml.AliasEvent):
                raise ValueError("it uses YAML aliases, which can expand without bound.")
            return super().compose_node(parent, index)

    try:
        return yaml.load(text, Loader=Plain)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from error
