"""The gradient of a frozen host's next-token loss at places inside it, beside the activations there.

The loss is the *sum* over a row's positions of the cross entropy of the next token, in nats, and rows do not see each other:
a token's gradient does not depend on how many rows or tokens are in the batch. It is zero where nothing is predicted after a
token: at the last token of a row and at padding. A gradient looks ahead: it depends on the tokens behind its own.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..calls import Call
from ..errors import HookPointError
from ..hooks import Activations, edit, read
from ..hosts import unwrap
from ..hosts.towers import host_device
from .columns import GRADIENT, is_gradient, place_of


def require_loss(host: nn.Module) -> None:
    """Refuses hosts that have no next-token loss, or whose weights no gradient goes through.

    Raises:
        HookPointError: for a host without a language-model head, an encoder-decoder or a masked model, and one that is offloaded
            or quantised.
    """
    model, name = unwrap(host), type(unwrap(host)).__name__
    head = getattr(model, "get_output_embeddings", lambda: None)()
    causal = getattr(model, "can_generate", lambda: True)() and not getattr(
        getattr(model, "config", None), "is_encoder_decoder", False
    )
    if head is None or not causal:
        raise HookPointError(
            f"{name} has no next-token loss, so there are no gradients of it. Load the host with AutoModelForCausalLM, or "
            "leave the '/gradient' hook points out."
        )
    if any(parameter.device.type == "meta" for parameter in host.parameters()):
        raise HookPointError(
            f"{name} has offloaded weights, through which no gradient goes. Load it whole (without offloading), or leave the "
            "'/gradient' hook points out."
        )
    if getattr(model, "is_quantized", False) or any("_packed_params" in part._modules for part in model.modules()):
        raise HookPointError(
            f"{name} is quantised, and its gradients would be those of another model. Load it in bfloat16 or float32, or "
            "leave the '/gradient' hook points out."
        )


def read_columns(host: nn.Module, columns: Sequence[str], **inputs: Any) -> dict[str, Tensor]:
    """Activations of places, and of `"<place>/gradient"` the gradients there: only as far as the last place where there is none.

    Args:
        host (`nn.Module`): in the mode that it is to run in; of gradients see [`require_loss`].
        columns (`list`): places and `"<place>/gradient"`.
        inputs: of the host.

    Returns:
        `{column: [..., width]}`.
    """
    places = list(dict.fromkeys(column for column in columns if not is_gradient(column)))
    wanted = [place_of(column) for column in columns if is_gradient(column)]
    if not wanted:
        return read(host, places, **inputs)
    found, gradients = read_with_gradients(host, places, wanted, **inputs)
    return found | {f"{place}{GRADIENT}": gradient for place, gradient in gradients.items()}


def read_with_gradients(
    host: nn.Module, places: Sequence[str], wanted: Sequence[str], **inputs: Any
) -> tuple[Activations, dict[str, Tensor]]:
    """One pass forward and one back: activations, to the bit those of [`read`], and gradients of the next-token loss.

    The tensor at the first of the wanted places becomes a leaf; parameters stay frozen, and autocast is off.

    Args:
        host (`nn.Module`): see [`require_loss`]; in the mode that it is to run in.
        places (`list`): whose activations are returned.
        wanted (`list`): places whose gradients are returned.
        inputs: `input_ids` `[batch, tokens]` and what else the host takes; where `attention_mask` is 0 nothing is predicted.

    Returns:
        `{place: [..., width]}` twice; gradients are in float32.

    Raises:
        HookPointError: if a place does not exist, the forward does not pass through it or its output does not depend on it,
            or it gives no logits over the tokens.
    """
    kept: dict[str, Tensor] = {}
    device = host_device(host)
    inputs = {key: x.to(device) if isinstance(x, Tensor) else x for key, x in inputs.items()}
    every = list(dict.fromkeys((*places, *wanted)))
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(_frozen(host))
        for place in every:
            stack.enter_context(edit(host, place, _keeper(kept, place, leaf=place in wanted)))
        logits = _logits(host(**inputs), inputs["input_ids"])
        if missing := [place for place in every if place not in kept]:
            raise HookPointError(f"the forward did not pass through {', '.join(map(repr, missing))} with input_ids.")
        leaves = [kept[place] for place in wanted]
        back = _loss_gradient(logits.detach(), inputs["input_ids"], inputs.get("attention_mask"))
        found = torch.autograd.grad(logits, leaves, back, allow_unused=True)
    for place, gradient in zip(wanted, found, strict=True):
        if gradient is None:
            raise HookPointError(f"the logits do not depend on {place!r}. Choose a place that comes before them.")
    gradients = {place: gradient.float() for place, gradient in zip(wanted, found, strict=True)}
    return Activations({place: kept[place].detach() for place in places}), gradients


def _keeper(kept: dict[str, Tensor], place: str, leaf: bool) -> Any:
    def keep(x: Tensor, _: Call) -> Tensor:
        # A copy of its own, since some blocks add to the residual stream in place; and what flows on is another one.
        if not leaf:
            kept[place] = x.detach().clone()
            return x
        kept[place] = x.clone() if x.requires_grad else x.detach().clone().requires_grad_()
        return kept[place].clone()

    return keep


def _logits(output: Any, input_ids: Tensor) -> Tensor:
    logits = getattr(output, "logits", None)
    if logits is None or logits.shape[:-1] != input_ids.shape or not logits.requires_grad:
        shape = None if logits is None else list(logits.shape)
        raise HookPointError(
            f"the host gives logits of shape {shape} for input_ids {list(input_ids.shape)}: gradients need one row of logits "
            "over the vocabulary for each token. Use a causal language model and a place before its head."
        )
    return logits


@torch.no_grad()
def _loss_gradient(logits: Tensor, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """`∂loss/∂logits = softmax(logits) − onehot(next token)` where there is a next token, else 0; row by row, since in float32
    the whole is the largest tensor of the pass."""
    gradient = torch.zeros_like(logits)
    for row, ids in enumerate(input_ids.to(logits.device)):
        part = torch.softmax(logits[row, :-1].float(), dim=-1)
        part.scatter_add_(1, ids[1:, None], part.new_full((len(ids) - 1, 1), -1.0))
        if attention_mask is not None:
            real = attention_mask[row].to(part.device)
            part *= (real[1:] * real[:-1])[:, None]
        gradient[row, :-1] = part.to(logits.dtype)
    return gradient


@contextmanager
def _frozen(host: nn.Module) -> Generator[None]:
    """No parameter requires gradients inside the `with`; afterwards each one is as it was."""
    trainable = [parameter for parameter in host.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
