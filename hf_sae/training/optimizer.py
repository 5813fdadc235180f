"""Adam that visits a dictionary row by row: gradient, projection, update and unit norm in one pass.

A weight `[d_sae, d]` may be larger than every cache, and a step of eager operations reads and writes it, its gradient and
its moments many times. Here a block of rows that fits a cache is finished before the next one begins, and its gradient,
which comes as factors (`models.row_gradients`), exists for that block only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from ..models.row_gradients import RowGradient


# bytes of a block's gradient: half a core's cache, and on a GPU enough to keep the launches few
BLOCK_BYTES = {"cpu": 2**21, "cuda": 2**28}


class RowAdam(torch.optim.Adam):
    """[`torch.optim.Adam`] (Kingma & Ba 2015, arXiv 1412.6980) for the weights of sparse dictionaries.

    The numbers are those of Adam on the full gradient. State and `state_dict` are those of `torch.optim.Adam`.

    Args:
        params: parameters or groups of them.
        unit_rows (`list` of `nn.Parameter`): of these the gradient loses its part along each row, which normalisation
            would undo anyway, and after the update the rows have unit norm.
        factored (`list` of `nn.Parameter`): these take their gradients as factors: each gets a list `row_gradients`.
        options: of `torch.optim.Adam`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        unit_rows: Iterable[nn.Parameter] = (),
        factored: Iterable[nn.Parameter] = (),
        **options: Any,
    ) -> None:
        super().__init__(params, **options)
        self._unit = {id(p) for p in unit_rows}
        for parameter in factored:
            parameter.row_gradients = []  # ty: ignore[missing-attribute]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets gradients, factored ones too."""
        super().zero_grad(set_to_none)
        for _, parameter in self._parameters():
            if factors := getattr(parameter, "row_gradients", None):
                factors.clear()

    @torch.no_grad()
    def materialize(self) -> None:
        """Writes every factored gradient into `grad`: what a reduction over processes adds up. It is projected by the update."""
        for _, parameter in self._parameters():
            if factors := getattr(parameter, "row_gradients", None):
                full = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                for factor in factors:
                    factor.add_to(full, slice(0, len(full)))
                parameter.grad = full
                factors.clear()

    @torch.no_grad()
    def norm(self, parameters: Iterable[nn.Parameter] | None = None) -> Tensor:
        """Euclidean norm of the whole gradient, or of that of some parameters; of factored ones without writing them out."""
        chosen = [p for _, p in self._parameters()] if parameters is None else list(parameters)
        parts = [torch.linalg.vector_norm(grad) for parameter in chosen for _, grad in self._blocks(parameter)]
        device = self.param_groups[0]["params"][0].device
        return torch.linalg.vector_norm(torch.stack(parts)) if parts else torch.zeros((), device=device)

    def step(self, closure: Any = None) -> None:  # ty: ignore[incompatible-method-override]
        """One update by the gradient; a closure is not called."""
        self.update()

    @torch.no_grad()
    def update(self, scale: Tensor | None = None) -> None:
        """One update by `scale` times the gradient, such as a clipping factor."""
        for group, parameter in self._parameters():
            state, step = self._state_of(parameter), None
            for rows, grad in self._blocks(parameter):
                if scale is not None:
                    grad.mul_(scale)
                step = state["step"].clone()
                self._update(group, parameter[rows], grad, (state["exp_avg"][rows], state["exp_avg_sq"][rows]), step)
                if id(parameter) in self._unit:
                    block = parameter[rows]
                    block.div_(torch.linalg.vector_norm(block, dim=-1, keepdim=True).clamp_min_(1e-12))
            if step is not None:
                state["step"] = step

    def _parameters(self) -> Iterator[tuple[dict[str, Any], nn.Parameter]]:
        for group in self.param_groups:
            for parameter in group["params"]:
                yield group, parameter

    def _blocks(self, parameter: nn.Parameter) -> Iterator[tuple[Any, Tensor]]:
        """Ranges of rows and their gradients, projected; nothing where there is no gradient."""
        factors = getattr(parameter, "row_gradients", None) or []
        if parameter.grad is None and not factors:
            return
        n_rows = size = parameter.shape[0] if parameter.ndim else 1
        if parameter.ndim == 2:
            row_bytes = parameter.shape[1] * parameter.element_size()
            size = max(1, BLOCK_BYTES.get(parameter.device.type, 2**28) // row_bytes)
        for start in range(0, n_rows, size):
            rows = slice(start, min(start + size, n_rows)) if parameter.ndim else ...
            yield rows, self._gradient(parameter, factors, rows)

    def _gradient(self, parameter: nn.Parameter, factors: list[Any], rows: Any) -> Tensor:
        first = factors[0] if factors else None
        if isinstance(first, RowGradient) and parameter.grad is None:
            grad, factors = first.range(rows).to(parameter.dtype), factors[1:]
        elif parameter.grad is None:
            grad = torch.zeros_like(parameter[rows])
        else:
            grad = parameter.grad[rows].clone()
        for factor in factors:
            factor.add_to(grad, rows)
        if id(parameter) in self._unit:
            block = parameter[rows]
            grad.addcmul_(torch.linalg.vecdot(grad, block).unsqueeze(-1), block, value=-1)
        return grad

    def _state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            fused = self.defaults["fused"]
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device if fused else None)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return state

    def _update(
        self, group: dict[str, Any], rows: Tensor, grad: Tensor, moments: tuple[Tensor, Tensor], step: Tensor
    ) -> None:
        beta1, beta2 = group["betas"]
        adam(
            [rows],
            [grad],
            [moments[0]],
            [moments[1]],
            [],
            [step],
            fused=self.defaults["fused"],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )
