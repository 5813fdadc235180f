"""Architectures, one file each. Importing this package also makes plain `AutoModel.from_pretrained` load them."""

from .auto import AutoSAE, AutoTranscoder, registered
from .configuration_sae import SAEConfig, strict_config
from .errors import CheckpointError, ConfigError
from .modeling_abs_topk import AbsTopKConfig, AbsTopKSAE
from .modeling_batch_topk import BatchTopKConfig, BatchTopKSAE
from .modeling_bilinear import BilinearConfig, BilinearSAE
from .modeling_cross_layer import CrossLayerConfig, CrossLayerSAE
from .modeling_crosscoder import CrosscoderConfig, CrosscoderSAE
from .modeling_feature_choice import FeatureChoiceConfig, FeatureChoiceSAE
from .modeling_gated import GatedConfig, GatedSAE
from .modeling_gba import GBASAE, GBAConfig
from .modeling_gradient import GradientConfig, GradientSAE
from .modeling_hierarchical_topk import HierarchicalTopKConfig, HierarchicalTopKSAE
from .modeling_ista import ISTASAE, ISTAConfig
from .modeling_jumprelu import JumpReLUConfig, JumpReLUSAE
from .modeling_k_sparse import KSparseConfig, KSparseSAE
from .modeling_kron import KronConfig, KronSAE
from .modeling_lista import LISTASAE, LISTAConfig
from .modeling_matching_pursuit import MatchingPursuitConfig, MatchingPursuitSAE
from .modeling_matryoshka import MatryoshkaConfig, MatryoshkaSAE
from .modeling_multi_topk import MultiTopKConfig, MultiTopKSAE
from .modeling_p_anneal import PAnnealConfig, PAnnealSAE
from .modeling_sae import SAE, Decoder
from .modeling_standard import StandardConfig, StandardSAE
from .modeling_top_afa import TopAFAConfig, TopAFASAE
from .modeling_topk import TopKConfig, TopKSAE
from .modeling_variational import VariationalConfig, VariationalSAE
from .outputs import SAEOutput, TrainingState, total_variance
from .pursuit import GradientPursuit, MatchingPursuit, OrthogonalMatchingPursuit, Solver
from .sparse_code import SparseCode


for _config, _model in (
    (AbsTopKConfig, AbsTopKSAE),
    (BatchTopKConfig, BatchTopKSAE),
    (BilinearConfig, BilinearSAE),
    (CrossLayerConfig, CrossLayerSAE),
    (CrosscoderConfig, CrosscoderSAE),
    (FeatureChoiceConfig, FeatureChoiceSAE),
    (GatedConfig, GatedSAE),
    (GBAConfig, GBASAE),
    (GradientConfig, GradientSAE),
    (HierarchicalTopKConfig, HierarchicalTopKSAE),
    (ISTAConfig, ISTASAE),
    (JumpReLUConfig, JumpReLUSAE),
    (KSparseConfig, KSparseSAE),
    (KronConfig, KronSAE),
    (LISTAConfig, LISTASAE),
    (MatchingPursuitConfig, MatchingPursuitSAE),
    (MatryoshkaConfig, MatryoshkaSAE),
    (MultiTopKConfig, MultiTopKSAE),
    (PAnnealConfig, PAnnealSAE),
    (StandardConfig, StandardSAE),
    (TopAFAConfig, TopAFASAE),
    (TopKConfig, TopKSAE),
    (VariationalConfig, VariationalSAE),
):
    AutoSAE.register(_config, _model)

__all__ = [
    "GBASAE",
    "ISTASAE",
    "LISTASAE",
    "SAE",
    "AbsTopKConfig",
    "AbsTopKSAE",
    "AutoSAE",
    "AutoTranscoder",
    "BatchTopKConfig",
    "BatchTopKSAE",
    "BilinearConfig",
    "BilinearSAE",
    "CheckpointError",
    "ConfigError",
    "CrossLayerConfig",
    "CrossLayerSAE",
    "CrosscoderConfig",
    "CrosscoderSAE",
    "Decoder",
    "FeatureChoiceConfig",
    "FeatureChoiceSAE",
    "GBAConfig",
    "GatedConfig",
    "GatedSAE",
    "GradientConfig",
    "GradientPursuit",
    "GradientSAE",
    "HierarchicalTopKConfig",
    "HierarchicalTopKSAE",
    "ISTAConfig",
    "JumpReLUConfig",
    "JumpReLUSAE",
    "KSparseConfig",
    "KSparseSAE",
    "KronConfig",
    "KronSAE",
    "LISTAConfig",
    "MatchingPursuit",
    "MatchingPursuitConfig",
    "MatchingPursuitSAE",
    "MatryoshkaConfig",
    "MatryoshkaSAE",
    "MultiTopKConfig",
    "MultiTopKSAE",
    "OrthogonalMatchingPursuit",
    "PAnnealConfig",
    "PAnnealSAE",
    "SAEConfig",
    "SAEOutput",
    "Solver",
    "SparseCode",
    "StandardConfig",
    "StandardSAE",
    "TopAFAConfig",
    "TopAFASAE",
    "TopKConfig",
    "TopKSAE",
    "TrainingState",
    "VariationalConfig",
    "VariationalSAE",
    "registered",
    "strict_config",
    "total_variance",
]
