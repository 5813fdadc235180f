"""How several processes share the work: one class per scheme, all with the interface of [`DataParallel`]."""

from ...models import SAE
from .data import Batch, DataParallel
from .latents import SharedLatents
from .placed import PlacedSAEs
from .processes import Processes


SCHEMES = {"data": DataParallel, "latents": SharedLatents, "saes": PlacedSAEs}


def scheme_for(parallelism: str, processes: Processes, saes: dict[str, SAE]) -> DataParallel:
    """The scheme of a run; of one process it is the same for every `parallelism`."""
    return (SCHEMES[parallelism] if processes.size > 1 else DataParallel)(processes, saes)


__all__ = ["SCHEMES", "Batch", "DataParallel", "PlacedSAEs", "Processes", "SharedLatents", "scheme_for"]
