"""What trained autoencoders say about their hosts."""

from .attention import HeadAttribution, head_attribution, head_shares, observe_attention
from .latent_scaling import LatentScaling


__all__ = ["HeadAttribution", "LatentScaling", "head_attribution", "head_shares", "observe_attention"]
