"""Plain words when a run goes wrong."""

from __future__ import annotations

from .trainee import Trainee


class Health:
    """Says each thing once per SAE: all latents dead, many dead, L0 far from what was asked, no learning."""

    def __init__(self) -> None:
        self._said: set[tuple[str, str]] = set()

    def advice(self, trainee: Trainee, progress: float) -> list[str]:
        """New lines about one SAE; `progress` is the share of the run that is done."""
        found = {
            key: text for key, text in _symptoms(trainee, progress).items() if (trainee.name, key) not in self._said
        }
        self._said |= {(trainee.name, key) for key in found}
        return [f"{trainee.name}: {text}" for text in found.values()]


def _symptoms(trainee: Trainee, progress: float) -> dict[str, str]:
    dead, l0 = trainee.dead_share, trainee.state.l0
    symptoms = {}
    if l0 == 0:
        symptoms["silent"] = "no latent fires at all. Lower the sparsity penalty or the learning rate."
    elif dead > 0.5 and progress > 0.3:
        symptoms["dead"] = f"{dead:.0%} of the latents are dead. Train on more tokens, or use fewer latents (d_sae)."
    target = getattr(trainee.sae.config, "target_l0", None)
    if target is not None and progress > 0.5 and l0 and not 0.8 < l0 / target < 1.25:
        symptoms["l0"] = f"L0 is {l0:.1f}, asked were {target:g}. More tokens give the controller time."
    if progress > 0.3 and trainee.fvu > 0.98:
        symptoms["fvu"] = (
            f"the reconstruction explains {1 - trainee.fvu:.1%} of the variance. Check the hook point, raise k or the "
            "learning rate."
        )
    return symptoms
