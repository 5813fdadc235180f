"""Which tokens of a forward pass are steered."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..hooks import Call


Positions = str | Tensor | Callable[..., Tensor]
_PHASES = ("all", "prompt", "generated")


class Where:
    """The tokens that `positions` means, without BOS and padding unless asked for.

    Args:
        host (`PreTrainedModel`): whose config says what BOS is, where no tokenizer does.
        positions (`str`, `Tensor` or `Callable`): see [`steer`].
        include_special (`bool`): keep BOS and padding.
        tokenizer (*optional*): says what BOS is.

    Raises:
        ValueError: if `positions` is none of what it may be.
    """

    def __init__(self, host: PreTrainedModel, positions: Any, include_special: bool, tokenizer: Any) -> None:
        self.positions = _checked(positions)
        self.include_special = include_special
        self.bos = bos_ids(host, tokenizer)

    def __call__(self, x: Tensor, call: Call) -> Tensor | None:
        """`[batch, tokens]` on the device of `x`; `None` for all of them.

        Raises:
            ValueError: if a mask does not fit this call.
        """
        shape = x.shape[:-1]
        aligned = _is_aligned(shape, call)
        if not aligned and isinstance(self.positions, str) and self.positions == "all":
            return None  # such as the patches of an image beside the ids of a text: no BOS, no padding
        if not aligned:
            raise ValueError(
                f"positions={_name(self.positions)} needs an activation with one vector per token, and this one is of shape "
                f"{list(x.shape)}. Use positions='all' at this place."
            )
        masks = [self._chosen(call, shape)]
        if not self.include_special:
            masks += [_real(call, shape), self._not_bos(call)]
        keep: Tensor | None = None
        for mask in masks:
            if mask is not None:
                mask = mask.to(x.device)
                keep = mask if keep is None else keep & mask
        return keep

    def _chosen(self, call: Call, shape: tuple[int, ...]) -> Tensor | None:
        if callable(self.positions):
            return self._returned(self.positions(call), shape)
        generated = call.generated_mask
        if isinstance(self.positions, str) and self.positions == "all":
            return None
        if generated is None:
            raise ValueError(
                f"positions={_name(self.positions)} needs a host that reads tokens. Use positions='all' for this one."
            )
        if isinstance(self.positions, Tensor):
            return _of_prompt(self.positions, call, generated)
        return generated if self.positions == "generated" else ~generated

    def _returned(self, mask: Any, shape: tuple[int, ...]) -> Tensor:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != shape:
            given = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(
                f"positions={_name(self.positions)} returned {given}. It has to return a bool tensor of shape {list(shape)}: "
                "one entry per token of the call."
            )
        return mask

    def _not_bos(self, call: Call) -> Tensor | None:
        if call.input_ids is None or not self.bos:
            return None
        return ~torch.isin(call.input_ids, torch.tensor(self.bos, device=call.input_ids.device))


def _checked(positions: Any) -> Any:
    if isinstance(positions, Tensor):
        if positions.dtype != torch.bool or positions.dim() != 2:
            raise ValueError(
                f"positions= is a tensor of dtype {positions.dtype} and shape {list(positions.shape)}. Give a bool mask "
                "[batch, prompt length]."
            )
        return positions
    if callable(positions) or positions in _PHASES:
        return positions
    near = difflib.get_close_matches(str(positions), _PHASES, n=1)
    raise ValueError(
        f"positions={positions!r} is none of {', '.join(map(repr, _PHASES))}{f' (did you mean {near[0]!r}?)' if near else ''}. For "
        "the tokens of a role, such as the assistant's, give their bool mask [batch, prompt length], for instance from "
        "tokenizer.apply_chat_template(…, return_assistant_tokens_mask=True)."
    )


def _of_prompt(mask: Tensor, call: Call, generated: Tensor) -> Tensor:
    """The mask of the prompt for the tokens of this call; a cache leaves only generated ones, which are not steered."""
    length = int((~generated[0]).sum())
    if not length:
        return torch.zeros_like(generated)
    batch = int(call.rows.max()) + 1
    if mask.shape != (batch, length):
        raise ValueError(
            f"positions= is a mask of shape {list(mask.shape)}, and the prompt has {batch} rows of {length} tokens. Give one "
            "entry per prompt token, padding included; a function from a Call to a mask can do more."
        )
    ours = mask.to(generated.device)[call.rows.to(generated.device)]
    return torch.nn.functional.pad(ours, (0, generated.shape[1] - length))


def _is_aligned(shape: tuple[int, ...], call: Call) -> bool:
    if len(shape) != 2 or len(call.rows) != shape[0]:
        return False
    return call.input_ids is None or call.input_ids.shape == shape


def _real(call: Call, shape: tuple[int, ...]) -> Tensor | None:
    """What is not padding; the attention mask covers the cached tokens too, the last of it are those of this call."""
    mask = call.attention_mask
    if mask is None or mask.dim() != 2 or mask.shape[1] < shape[1]:
        return None
    return mask[:, -shape[1] :] != 0


def bos_ids(host: PreTrainedModel, tokenizer: Any) -> list[int]:
    """What begins a text: as the tokenizer says, or without one the host's config."""
    if tokenizer is not None:
        bos = tokenizer.bos_token_id
    else:
        bos = getattr(host.config.get_text_config(), "bos_token_id", None)
    return [] if bos is None else list(bos) if isinstance(bos, (list, tuple)) else [bos]


def _name(positions: Any) -> str:
    return "a mask" if isinstance(positions, Tensor) else getattr(positions, "__name__", repr(positions))
