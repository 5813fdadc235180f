"""Tiny hosts with a tokenizer whose words are their ids."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from hf_sae.models import TopKConfig, TopKSAE


VOCABULARY, D, D_SAE, K = 50, 16, 40, 8
BOS, PAD = 0, 1
POINT = "resid_post.0"


def tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    words = {"<bos>": BOS, "<pad>": PAD, "<eos>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    core = Tokenizer(models.WordLevel(words, unk_token="w3"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", pad_token="<pad>")
    made.chat_template = template
    return made


def sharpened(host: PreTrainedModel, factor: float = 8) -> PreTrainedModel:
    """Far from uniform, so that steering changes tokens; never at its end."""
    with torch.no_grad():
        for parameter in host.parameters():
            parameter.mul_(factor if parameter.dim() > 1 else 1)
    host.generation_config.eos_token_id = None
    return host.eval()


def llama(positions: int = 128) -> PreTrainedModel:
    torch.manual_seed(0)
    return sharpened(
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY, hidden_size=D, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=2, max_position_embeddings=positions, bos_token_id=BOS, eos_token_id=None, pad_token_id=PAD,
            )
        )
    )  # fmt: skip


def gpt2() -> PreTrainedModel:
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=D, n_layer=2, n_head=2, n_positions=128, bos_token_id=BOS, eos_token_id=None
    )
    return sharpened(GPT2LMHeadModel(config))


def gemma2() -> PreTrainedModel:
    """Every second layer sees a window of 4 tokens."""
    torch.manual_seed(2)
    config = Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=D, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, head_dim=8,
        num_key_value_heads=1, sliding_window=4, max_position_embeddings=128, bos_token_id=BOS, eos_token_id=None, pad_token_id=PAD,
    )  # fmt: skip
    return sharpened(Gemma2ForCausalLM(config))


def opt() -> PreTrainedModel:
    torch.manual_seed(3)
    config = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=D, num_hidden_layers=2, ffn_dim=24, num_attention_heads=2, word_embed_proj_dim=D,
        max_position_embeddings=128, bos_token_id=BOS, eos_token_id=None, pad_token_id=PAD,
    )  # fmt: skip
    return sharpened(OPTForCausalLM(config))


def bloom() -> PreTrainedModel:
    torch.manual_seed(4)
    config = BloomConfig(
        vocab_size=VOCABULARY,
        hidden_size=D,
        n_layer=2,
        n_head=2,
        bos_token_id=BOS,
        eos_token_id=None,
        pad_token_id=PAD,
    )
    return sharpened(BloomForCausalLM(config), 4)


def mamba() -> PreTrainedModel:
    torch.manual_seed(5)
    config = MambaConfig(
        vocab_size=VOCABULARY,
        hidden_size=D,
        state_size=4,
        num_hidden_layers=2,
        bos_token_id=BOS,
        eos_token_id=None,
        pad_token_id=PAD,
    )
    return sharpened(MambaForCausalLM(config), 2)


def autoencoder(point: str = POINT, seed: int = 2, **options: object) -> TopKSAE:
    torch.manual_seed(seed)
    sae = TopKSAE(TopKConfig(**{"d_in": D, "d_sae": D_SAE, "k": K, "hook_in": point} | options)).eval()
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return sae
