"""Architectures, one file each. Importing this package also makes plain `AutoModel.from_pretrained` load them."""

from .auto import AutoSAE, AutoTranscoder, registered
from .configuration_sae import SAEConfig, strict_config
from .errors import CheckpointError, ConfigError
from .modeling_cross_layer import CrossLayerConfig, CrossLayerSAE
from .modeling_crosscoder import CrosscoderConfig, CrosscoderSAE
from .modeling_jumprelu import JumpReLUConfig, JumpReLUSAE
from .modeling_sae import SAE, Decoder
from .modeling_standard import StandardConfig, StandardSAE
from .modeling_topk import TopKConfig, TopKSAE
from .outputs import SAEOutput, TrainingState, total_variance
from .sparse_code import SparseCode


AutoSAE.register(StandardConfig, StandardSAE)
AutoSAE.register(TopKConfig, TopKSAE)
AutoSAE.register(JumpReLUConfig, JumpReLUSAE)
AutoSAE.register(CrosscoderConfig, CrosscoderSAE)
AutoSAE.register(CrossLayerConfig, CrossLayerSAE)

__all__ = [
    "SAE",
    "AutoSAE",
    "AutoTranscoder",
    "CheckpointError",
    "ConfigError",
    "CrossLayerConfig",
    "CrossLayerSAE",
    "CrosscoderConfig",
    "CrosscoderSAE",
    "Decoder",
    "JumpReLUConfig",
    "JumpReLUSAE",
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
