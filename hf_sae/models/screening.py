"""The k largest pre-activations in float32 for the price of a bfloat16 product.

Of a float32 encoder product `[tokens, d_sae]` only k values of each token are used. Processors with bfloat16 instructions
make that product in half the time or less. Here it only says which latents may be among the k largest: the candidates,
`CANDIDATES * k` of them, are computed again in float32, and every other latent is below them by a bound on what rounding can have done.
With `x̃`, `w̃` the rounded factors (Cauchy-Schwarz; `u = 2⁻⁸` is bfloat16's unit roundoff):

    |x̃·w̃ - x·w| ≤ ‖x̃ - x‖ ‖w̃‖ + ‖x‖ ‖w̃ - w‖ + d 2⁻²³ ‖x‖ ‖w‖

to which the roundings of the bias and of the product itself add `u max|b|` and `u |value|`. A token whose k-th largest candidate
is above the best that is possible elsewhere has its exact result; the others are computed in float32 as a whole. So nothing is
approximate, and what is chosen depends on nothing but the numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .precision import bfloat16_pays


CANDIDATES = 2  # times k; measured: with fewer the check fails for many tokens, with more the candidates cost too much
MIN_LATENTS_PER_CANDIDATE = 16  # below, the full product costs no more
# narrower, the product costs less than finding twice as many candidates; wider, the bound, which grows like the square root of
# the width against what separates latents, is seldom tight enough
WIDTHS = (512, 1024)
TRIAL = 16  # the part of the tokens that shows whether the bound is tight enough
UNIT = 2.0**-8
_BLOCK_BYTES = 2**21
_SMALL = 1e-15  # squares of smaller numbers vanish, and a norm would say too little


def can_screen(x: Tensor, weight: Tensor, k: int) -> bool:
    """Whether a screen is exact and worth it: float32 on a processor with bfloat16 products, far more latents than `k`."""
    if torch.compiler.is_compiling() or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    if x.dtype != torch.float32 or weight.dtype != torch.float32 or not x.numel():
        return False
    enough = weight.shape[0] >= MIN_LATENTS_PER_CANDIDATE * CANDIDATES * k
    return enough and WIDTHS[0] <= x.shape[1] <= WIDTHS[1] and bfloat16_pays("cpu")


class Screen:
    """The float32 encoder behind its bfloat16 copy.

    Args:
        encoder (`tuple`): weight `[d_sae, d_in]` and bias `[d_sae]`.
        k (`int`): how many latents are wanted of each token.
        top_k (`Callable`): the latents with the largest values of a matrix.
        dots (`Callable`): products of rows with selected rows of a weight.
    """

    def __init__(
        self,
        encoder: tuple[Tensor, Tensor],
        k: int,
        top_k: Callable[[Tensor, int], Tensor],
        dots: Callable[..., Tensor],
    ) -> None:
        self.weight, self.bias = encoder
        self.k, self.top_k, self.dots = k, top_k, dots
        self.low, self.norm, self.error = _rounded(self.weight)

    def whole(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values and latents `[tokens, k]` of the `k` largest, without a screen."""
        pre_activations = F.linear(x, self.weight, self.bias)
        indices = self.top_k(pre_activations, self.k)
        return pre_activations.gather(-1, indices), indices

    def through(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same among the candidates, and a mask `[tokens]` of those tokens for which others might have won."""
        low_x = x.bfloat16()
        screen = F.linear(low_x, self.low, self.bias.bfloat16())
        candidates = self.top_k(screen, CANDIDATES * self.k)
        least = screen.gather(-1, candidates).amin(-1).float()
        exact = self.dots(x, candidates, self.weight) + self.bias[candidates]
        values, chosen = exact.topk(self.k, dim=-1, sorted=False)
        length, moved = torch.linalg.vector_norm(x, dim=-1), torch.linalg.vector_norm(x - low_x, dim=-1)
        slack = moved * self.norm + length * self.error + x.shape[1] * 2.0**-23 * length * self.norm
        slack += UNIT * (self.bias.abs().amax() + least.abs())
        slack.masked_fill_(length * self.norm < _SMALL, torch.inf)
        return values, candidates.gather(-1, chosen), ~(values.amin(-1) > least + slack)  # so that a NaN is doubtful


@torch.no_grad()
def screened_top_k(
    x: Tensor,
    encoder: tuple[Tensor, Tensor],
    k: int,
    top_k: Callable[[Tensor, int], Tensor],
    dots: Callable[..., Tensor],
) -> tuple[Tensor, Tensor]:
    """Values and latents `[tokens, k]` of the `k` largest of `x @ weight.T + bias` for `x` `[tokens, d_in]`, in float32.

    The first tokens are a trial: where the bound is too wide for many of them, as in very wide models, the rest is computed in
    float32. Arguments as in [`Screen`].
    """
    screen, n_trial = Screen(encoder, k, top_k, dots), -(-x.shape[0] // TRIAL)
    parts = [screen.through(x[:n_trial])]
    if int(parts[0][2].sum()) > n_trial // 8:
        return screen.whole(x)
    if n_trial < x.shape[0]:
        parts.append(screen.through(x[n_trial:]))
    values, indices, doubtful = (torch.cat(part) for part in zip(*parts, strict=True))
    again = doubtful.nonzero().squeeze(1)
    if len(again):
        values[again], indices[again] = screen.whole(x[again])
    return values, indices


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A weight in bfloat16, the largest norm of a row of it, and the largest norm of what a row lost."""
    low = torch.empty_like(weight, dtype=torch.bfloat16)
    size = max(1, _BLOCK_BYTES // (weight.shape[1] * weight.element_size()))
    norms, errors = [], []
    for start in range(0, weight.shape[0], size):  # a block stays in the cache
        block = weight[start : start + size]
        part = low[start : start + size].copy_(block).float()
        norms.append(torch.linalg.vector_norm(part, dim=-1).amax())
        errors.append(torch.linalg.vector_norm(part.sub_(block), dim=-1).amax())
    return low, torch.stack(norms).amax(), torch.stack(errors).amax()
