"""What latents respond to: the strongest of a text, the strongest contexts of a latent, a name for it."""

from .examples import Example, LatentExamples, TopContexts, top_contexts
from .names import describe_latent
from .tokens import token_texts
from .top import TopFeatures, top_features


__all__ = [
    "Example",
    "LatentExamples",
    "TopContexts",
    "TopFeatures",
    "describe_latent",
    "token_texts",
    "top_contexts",
    "top_features",
]
