"""Activations of several hosts on the same tokens, in one stream: what crosscoders between models read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..data import TokenBatch
from ..errors import DataError, HookPointError
from ..hooks import HookPoint
from .interface import Rows
from .reading import HostReader
from .stream import ActivationStream


PROBE = "The quick brown fox; def f(x):\n    return x ** 2  # 12345 äöü 漢字"


class PairedStream(ActivationStream):
    """An [`ActivationStream`] that reads each batch of tokens through several hosts, such as a base model and its fine-tune.

    Text is read and tokenized once and there is one shuffle ring, so row i of every host is the same token, and position,
    resuming and sharing out among processes are those of an [`ActivationStream`]. A token whose activation is not finite in
    one host is left out of all.

    Args:
        hosts (`dict[str, nn.Module]`): two hosts or more by name; their places are keyed `"name/place"`, such as
            `"a/resid_post.8"`.
        tokenizer: of all hosts, or one each by name, which must encode alike.
        dataset: as in [`ActivationStream`].
        hook_points (`str`, [`HookPoint`], several, or a `dict` of these by host): the places, of every host unless by name.
        options: of [`ActivationStream`].

    Raises:
        HookPointError: if a name or a place does not exist.
        DataError: if the tokenizers differ, or for what [`ActivationStream`] refuses.
    """

    def __init__(
        self,
        hosts: Mapping[str, nn.Module],
        tokenizer: Any,
        dataset: Any,
        hook_points: Any,
        **options: Any,
    ) -> None:
        names = list(hosts)
        if len(names) < 2 or any(not name or "/" in name for name in names):
            raise HookPointError(
                f"hosts={names}: give two or more, by names without a slash, as in {{'a': base, 'b': tuned}}."
            )
        tokenizers = tokenizer if isinstance(tokenizer, Mapping) else dict.fromkeys(names, tokenizer)
        points = hook_points if isinstance(hook_points, Mapping) else dict.fromkeys(names, hook_points)
        for what, given in (("tokenizer", tokenizers), ("hook_points", points)):
            if given.keys() != hosts.keys():
                raise HookPointError(
                    f"{what} is given for {list(given)}, and the hosts are {names}. Name the same ones."
                )
        require_same(tokenizers)
        self.hosts, self._points = dict(hosts), points
        super().__init__(self.hosts[names[0]], tokenizers[names[0]], dataset, points[names[0]], **options)

    def open_reader(
        self, host: nn.Module, points: str | HookPoint | Sequence[str | HookPoint], dtype: torch.dtype | None
    ) -> PairedReader:
        """One reader of all hosts."""
        return PairedReader(
            {name: HostReader(model, self._points[name], dtype) for name, model in self.hosts.items()}, dtype
        )


class PairedReader:
    """Several [`HostReader`]s over the same tokens; arguments and attributes as there, places keyed `"name/place"`."""

    def __init__(self, readers: Mapping[str, HostReader], dtype: torch.dtype | None) -> None:
        self.readers = dict(readers)
        self.widths = {f"{name}/{point}": w for name, reader in readers.items() for point, w in reader.widths.items()}
        self.places = [f"{name}/{point}" for name, reader in readers.items() for point in reader.places]
        first = next(iter(self.readers.values()))
        self.dtype = dtype or first.dtype

    def check_length(self, context_length: int) -> None:
        """Raises [`DataError`] if a host has fewer positions than a row has tokens."""
        for reader in self.readers.values():
            reader.check_length(context_length)

    def __call__(self, batch: TokenBatch, kept: Tensor) -> Rows:
        """The activations of the kept tokens in all hosts.

        Raises:
            DataError: if an id has no embedding in a host, or the hosts give rows of different tokens.
            HookPointError: if a place does not give one vector per token.
        """
        found = {name: reader(batch, kept) for name, reader in self.readers.items()}
        ids = [rows.ids for rows in found.values()]
        if any(other is None or ids[0] is None or not torch.equal(other, ids[0]) for other in ids):
            raise DataError(f"the hosts {', '.join(found)} gave rows of different tokens. Read them one by one.")
        tensors = {f"{name}/{point}": x.to(self.dtype) for name, rows in found.items() for point, x in rows.items()}
        return Rows(tensors, ids[0])

    def devices(self) -> dict[str, torch.device]:
        """Where the activations of each place are."""
        return {f"{name}/{point}": d for name, reader in self.readers.items() for point, d in reader.devices().items()}

    def info(self, tokenizer: Any) -> dict[str, Any]:
        """The hosts by name and the places, as JSON values; the first one stands as the base model."""
        found = {name: reader.info(tokenizer) for name, reader in self.readers.items()}
        places = {
            f"{name}/{point}": path for name, info in found.items() for point, path in info["hook_points"].items()
        }
        keys = ("host", "base_model", "base_revision")
        first = next(iter(found.values()))
        hosts = {name: {key: info[key] for key in keys} for name, info in found.items()}
        dtype = str(self.dtype).removeprefix("torch.")
        return {"hook_points": places, "widths": dict(self.widths), "hosts": hosts, "dtype": dtype} | {
            key: first[key] for key in keys
        }


def require_same(tokenizers: Mapping[str, Any]) -> None:
    """Raises [`DataError`] if tokenizers by name do not give the same ids for the same text."""
    (first, one), *others = tokenizers.items()
    for name, other in others:
        if other is one:
            continue
        ours, theirs = _vocabulary(one), _vocabulary(other)
        if ours != theirs:
            differing = sorted(str(token) for token, _ in ours.items() ^ theirs.items())[:3]
            raise DataError(
                f"the tokenizers of {first!r} and {name!r} differ ({len(ours)} and {len(theirs)} tokens; among them "
                f"{', '.join(map(repr, differing))}): their hosts would not read the same tokens. Pair models of one tokenizer."
            )
        marks = ("bos_token_id", "eos_token_id", "chat_template")
        wrong = [mark for mark in marks if getattr(one, mark, None) != getattr(other, mark, None)]
        if wrong:
            raise DataError(
                f"the tokenizers of {first!r} and {name!r} differ in {', '.join(wrong)}. If both hosts should read what one of "
                "them writes, give that one as tokenizer=."
            )
        if one(PROBE)["input_ids"] != other(PROBE)["input_ids"]:
            raise DataError(
                f"the tokenizers of {first!r} and {name!r} split text differently. Pair models of one tokenizer."
            )


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    return dict(tokenizer.get_vocab())
