"""Architectures, one file each. Importing this package also makes plain `AutoModel.from_pretrained` load them."""

from .auto import AutoSAE, AutoTranscoder, registered
from .configuration_sae import SAEConfig, strict_config
from .errors import CheckpointError, ConfigError
from .modeling_ista import ISTASAE, ISTAConfig
from .modeling_jumprelu import JumpReLUConfig, JumpReLUSAE
from .modeling_lista import LISTASAE, LISTAConfig
from .modeling_matching_pursuit import MatchingPursuitConfig, MatchingPursuitSAE
from .modeling_sae import SAE, Decoder
from .modeling_standard import StandardConfig, StandardSAE
from .modeling_topk import TopKConfig, TopKSAE
from .outputs import SAEOutput, TrainingState, total_variance
from .pursuit import GradientPursuit, MatchingPursuit, OrthogonalMatchingPursuit, Solver
from .sparse_code import SparseCode


AutoSAE.register(StandardConfig, StandardSAE)
AutoSAE.register(TopKConfig, TopKSAE)
AutoSAE.register(JumpReLUConfig, JumpReLUSAE)
AutoSAE.register(MatchingPursuitConfig, MatchingPursuitSAE)
AutoSAE.register(ISTAConfig, ISTASAE)
AutoSAE.register(LISTAConfig, LISTASAE)

__all__ = [
    "ISTASAE",
    "LISTASAE",
    "SAE",
    "AutoSAE",
    "AutoTranscoder",
    "CheckpointError",
    "ConfigError",
    "Decoder",
    "GradientPursuit",
    "ISTAConfig",
    "JumpReLUConfig",
    "JumpReLUSAE",
    "LISTAConfig",
    "MatchingPursuit",
    "MatchingPursuitConfig",
    "MatchingPursuitSAE",
    "OrthogonalMatchingPursuit",
    "SAEConfig",
    "SAEOutput",
    "Solver",
    "SparseCode",
    "StandardConfig",
    "StandardSAE",
    "TopKConfig",
    "TopKSAE",
    "TrainingState",
    "registered",
    "strict_config",
    "total_variance",
]
