"""Architectures, one file each. Importing this package also makes plain `AutoModel.from_pretrained` load them."""

from .auto import AutoSAE, AutoTranscoder, registered
from .configuration_sae import SAEConfig, strict_config
from .errors import CheckpointError, ConfigError
from .modeling_bilinear import BilinearConfig, BilinearSAE
from .modeling_jumprelu import JumpReLUConfig, JumpReLUSAE
from .modeling_kron import KronConfig, KronSAE
from .modeling_sae import SAE, Decoder
from .modeling_standard import StandardConfig, StandardSAE
from .modeling_topk import TopKConfig, TopKSAE
from .modeling_variational import VariationalConfig, VariationalSAE
from .outputs import SAEOutput, TrainingState, total_variance
from .sparse_code import SparseCode


AutoSAE.register(StandardConfig, StandardSAE)
AutoSAE.register(TopKConfig, TopKSAE)
AutoSAE.register(JumpReLUConfig, JumpReLUSAE)
AutoSAE.register(KronConfig, KronSAE)
AutoSAE.register(BilinearConfig, BilinearSAE)
AutoSAE.register(VariationalConfig, VariationalSAE)

__all__ = [
    "SAE",
    "AutoSAE",
    "AutoTranscoder",
    "BilinearConfig",
    "BilinearSAE",
    "CheckpointError",
    "ConfigError",
    "Decoder",
    "JumpReLUConfig",
    "JumpReLUSAE",
    "KronConfig",
    "KronSAE",
    "SAEConfig",
    "SAEOutput",
    "SparseCode",
    "StandardConfig",
    "StandardSAE",
    "TopKConfig",
    "TopKSAE",
    "TrainingState",
    "VariationalConfig",
    "VariationalSAE",
    "registered",
    "strict_config",
    "total_variance",
]
