"""Lateral inhibition, an architecture of your own in one file: import it before `AutoSAE.from_pretrained`, or run it.

`z = ReLU(u - u_(k+1))`: at most k latents fire, as in TopK, but one that is overtaken fades out instead of jumping to 0.
"""

import torch

from hf_sae import AutoSAE, SAETrainer, SAETrainingArguments
from hf_sae.models import SAE, SAEConfig, strict_config


@strict_config
class InhibitionConfig(SAEConfig):
    model_type = "inhibition"
    k: int = 32

    def validate_k(self):  # a ConfigError with this text for a config that is out of range
        if not 1 <= self.k < self.d_sae:
            raise ValueError(f"k={self.k} must be at least 1 and below d_sae={self.d_sae}.")


class InhibitionSAE(SAE):
    config: InhibitionConfig  # tells transformers which config is the model's

    def __init__(self, config):
        super().__init__(config)
        self.post_init()

    def activate(self, pre_activations):
        loser = pre_activations.topk(self.config.k + 1, dim=-1).values[..., -1:]
        return torch.relu(pre_activations - loser.clamp_min(0))


AutoSAE.register(InhibitionConfig, InhibitionSAE)

if __name__ == "__main__":
    activations = [torch.randn(512, 32) for _ in range(100)]  # or an ActivationStream of a host
    sae = InhibitionSAE(InhibitionConfig(d_in=32, d_sae=128, k=8))
    SAETrainer(sae, SAETrainingArguments(output_dir="inhibition", total_tokens=51_200), activations).train()
    print(AutoSAE.from_pretrained("inhibition").encode_sparse(activations[0]).l0())
