"""Architectures, one file each. Importing this package also makes plain `AutoModel.from_pretrained` load them."""

from .auto import AutoSAE, AutoTranscoder, registered
from .configuration_sae import SAEConfig, strict_config
from .errors import CheckpointError, ConfigError
from .modeling_abs_topk import AbsTopKConfig, AbsTopKSAE
from .modeling_batch_topk import BatchTopKConfig, BatchTopKSAE
from .modeling_bilinear import BilinearConfig, BilinearSAE
from .modeling_feature_choice import FeatureChoiceConfig, FeatureChoiceSAE
from .modeling_gated import GatedConfig, GatedSAE
from .modeling_gba import GBASAE, GBAConfig
from .modeling_gradient import GradientConfig, GradientSAE
from .modeling_hierarchical_topk import HierarchicalTopKConfig, HierarchicalTopKSAE
from .modeling_jumprelu import JumpReLUConfig, JumpReLUSAE
from .modeling_k_sparse import KSparseConfig, KSparseSAE
from .modeling_kron import KronConfig, KronSAE
from .modeling_matryoshka import MatryoshkaConfig, MatryoshkaSAE
from .modeling_multi_topk import MultiTopKConfig, MultiTopKSAE
from .modeling_p_anneal import PAnnealConfig, PAnnealSAE
from .modeling_ista import ISTASAE, ISTAConfig
from .modeling_jumprelu import JumpReLUConfig, JumpReLUSAE
from .modeling_lista import LISTASAE, LISTAConfig
from .modeling_matching_pursuit import MatchingPursuitConfig, MatchingPursuitSAE
from .modeling_sae import SAE, Decoder
from .modeling_standard import StandardConfig, StandardSAE
from .modeling_top_afa import TopAFAConfig, TopAFASAE
from .modeling_topk import TopKConfig, TopKSAE
from .modeling_variational import VariationalConfig, VariationalSAE
from .outputs import SAEOutput, TrainingState, total_variance
from .pursuit import GradientPursuit, MatchingPursuit, OrthogonalMatchingPursuit, Solver
from .sparse_code import SparseCode


AutoSAE.register(StandardConfig, StandardSAE)
AutoSAE.register(TopKConfig, TopKSAE)
AutoSAE.register(JumpReLUConfig, JumpReLUSAE)
AutoSAE.register(BatchTopKConfig, BatchTopKSAE)
AutoSAE.register(MatryoshkaConfig, MatryoshkaSAE)
AutoSAE.register(FeatureChoiceConfig, FeatureChoiceSAE)
AutoSAE.register(AbsTopKConfig, AbsTopKSAE)
AutoSAE.register(KSparseConfig, KSparseSAE)
AutoSAE.register(MultiTopKConfig, MultiTopKSAE)
AutoSAE.register(HierarchicalTopKConfig, HierarchicalTopKSAE)
AutoSAE.register(TopAFAConfig, TopAFASAE)
AutoSAE.register(GradientConfig, GradientSAE)
AutoSAE.register(KronConfig, KronSAE)
AutoSAE.register(BilinearConfig, BilinearSAE)
AutoSAE.register(VariationalConfig, VariationalSAE)
AutoSAE.register(GatedConfig, GatedSAE)
AutoSAE.register(PAnnealConfig, PAnnealSAE)
AutoSAE.register(GBAConfig, GBASAE)

__all__ = [
    "GBASAE",
AutoSAE.register(MatchingPursuitConfig, MatchingPursuitSAE)
AutoSAE.register(ISTAConfig, ISTASAE)
AutoSAE.register(LISTAConfig, LISTASAE)

__all__ = [
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
    "Decoder",
    "FeatureChoiceConfig",
    "FeatureChoiceSAE",
    "GBAConfig",
    "GatedConfig",
    "GatedSAE",
    "GradientConfig",
    "GradientSAE",
    "HierarchicalTopKConfig",
    "HierarchicalTopKSAE",
    "JumpReLUConfig",
    "JumpReLUSAE",
    "KSparseConfig",
    "KSparseSAE",
    "KronConfig",
    "KronSAE",
    "MatryoshkaConfig",
    "MatryoshkaSAE",
    "MultiTopKConfig",
    "MultiTopKSAE",
    "PAnnealConfig",
    "PAnnealSAE",
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
