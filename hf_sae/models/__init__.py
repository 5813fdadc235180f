"""Architectures, one file each. Importing this package also makes plain `AutoModel.from_pretrained` load them."""

from .auto import AutoSAE, AutoTranscoder, registered
from .configuration_sae import SAEConfig, strict_config
from .errors import CheckpointError, ConfigError
from .modeling_gated import GatedConfig, GatedSAE
from .modeling_gba import GBASAE, GBAConfig
from .modeling_jumprelu import JumpReLUConfig, JumpReLUSAE
from .modeling_p_anneal import PAnnealConfig, PAnnealSAE
from .modeling_sae import SAE, Decoder
from .modeling_standard import StandardConfig, StandardSAE
from .modeling_topk import TopKConfig, TopKSAE
from .outputs import SAEOutput, TrainingState, total_variance
from .sparse_code import SparseCode


AutoSAE.register(StandardConfig, StandardSAE)
AutoSAE.register(TopKConfig, TopKSAE)
AutoSAE.register(JumpReLUConfig, JumpReLUSAE)
AutoSAE.register(GatedConfig, GatedSAE)
AutoSAE.register(PAnnealConfig, PAnnealSAE)
AutoSAE.register(GBAConfig, GBASAE)

__all__ = [
    "GBASAE",
    "SAE",
    "AutoSAE",
    "AutoTranscoder",
    "CheckpointError",
    "ConfigError",
    "Decoder",
    "GBAConfig",
    "GatedConfig",
    "GatedSAE",
    "JumpReLUConfig",
    "JumpReLUSAE",
    "PAnnealConfig",
    "PAnnealSAE",
    "SAEConfig",
    "SAEOutput",
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
