"""Tiny randomly initialised hosts of many families: built from a config, in milliseconds, with no download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel


D, HEADS, FF, VOCAB, LAYERS = 32, 4, 48, 64, 3
HEAD_DIM = D // HEADS
CAUSAL = {
    "vocab_size": VOCAB,
    "hidden_size": D,
    "intermediate_size": FF,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = CAUSAL | {"num_key_value_heads": 2, "head_dim": 2 * HEAD_DIM}
VISION = {
    "hidden_size": D,
    "intermediate_size": FF,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "image_size": 16,
    "patch_size": 8,
}


@dataclass(frozen=True)
class Tiny:
    """How to build one tiny host, the tower its places carry, and the width of its concatenated heads."""

    build: Callable[[], PreTrainedModel]
    towers: tuple[str, ...] = ("",)
    z_width: int = D
    inputs: Callable[[], dict[str, Tensor]] = lambda: text_inputs()
    post_norm: bool = False

    def __call__(self) -> PreTrainedModel:
        torch.manual_seed(0)
        return self.build().eval()


def _gemma3_text() -> Any:
    return hf.Gemma3TextConfig(**GROUPED, sliding_window=4, layer_types=["sliding_attention"] * 2 + ["full_attention"])


def gpt2() -> PreTrainedModel:
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(
            n_embd=D,
            n_layer=LAYERS,
            n_head=HEADS,
            vocab_size=VOCAB,
            n_positions=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def llama_config() -> Any:
    return hf.LlamaConfig(**GROUPED)


def llama() -> PreTrainedModel:
    return hf.LlamaForCausalLM(llama_config())


def neox(parallel: bool) -> PreTrainedModel:
    return hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**CAUSAL, use_parallel_residual=parallel))


def t5() -> PreTrainedModel:
    return hf.T5ForConditionalGeneration(
        hf.T5Config(
            d_model=D,
            d_kv=HEAD_DIM,
            d_ff=FF,
            num_layers=LAYERS,
            num_decoder_layers=LAYERS,
            num_heads=HEADS,
            vocab_size=VOCAB,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=2,
        )
    )


def clip() -> PreTrainedModel:
    text = hf.CLIPTextConfig(**CAUSAL, projection_dim=16)
    return hf.CLIPModel(hf.CLIPConfig(text_config=text.to_dict(), vision_config=VISION, projection_dim=16))


def whisper() -> PreTrainedModel:
    return hf.WhisperForConditionalGeneration(
        hf.WhisperConfig(
            d_model=D,
            encoder_layers=LAYERS,
            decoder_layers=LAYERS,
            encoder_attention_heads=HEADS,
            decoder_attention_heads=HEADS,
            encoder_ffn_dim=FF,
            decoder_ffn_dim=FF,
            vocab_size=VOCAB,
            num_mel_bins=8,
            max_source_positions=16,
            max_target_positions=32,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=3,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        )
    )


def llava() -> PreTrainedModel:
    return hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(text_config=llama_config(), vision_config=hf.CLIPVisionConfig(**VISION), image_token_index=60)
    )


def opt() -> PreTrainedModel:
    return hf.OPTForCausalLM(
        hf.OPTConfig(
            hidden_size=D,
            ffn_dim=FF,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            vocab_size=VOCAB,
            max_position_embeddings=64,
            word_embed_proj_dim=D,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def with_lora(host: PreTrainedModel, **config: Any) -> nn.Module:
    """The host in PEFT's wrapper."""
    return get_peft_model(host, LoraConfig(**config)).eval()


def text_inputs(rows: int = 2, tokens: int = 7, seed: int = 1) -> dict[str, Tensor]:
    """Ids without special tokens, and a mask of ones."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 58, (rows, tokens), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def pair_inputs() -> dict[str, Tensor]:
    """For a text encoder-decoder, with another length on each side."""
    return text_inputs() | {"decoder_input_ids": text_inputs(tokens=5, seed=2)["input_ids"]}


def image_inputs() -> dict[str, Tensor]:
    """Two images."""
    return {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))}


def audio_inputs() -> dict[str, Tensor]:
    """Two log-mel spectrograms and the start of their transcripts."""
    features = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(4))
    return {"input_features": features, "decoder_input_ids": text_inputs(tokens=5)["input_ids"]}


def multimodal_inputs() -> dict[str, Tensor]:
    """Text with one image of four placeholder tokens in each row."""
    inputs = text_inputs() | image_inputs()
    inputs["input_ids"][:, 1:5] = 60
    return inputs


ZOO: dict[str, Tiny] = {
    "gpt2": Tiny(gpt2),
    "llama": Tiny(llama, z_width=2 * D),
    "gpt_neox_parallel": Tiny(lambda: neox(True)),
    "gpt_neox_serial": Tiny(lambda: neox(False)),
    "gemma2": Tiny(lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**GROUPED)), z_width=2 * D),
    "gemma3": Tiny(lambda: hf.Gemma3ForCausalLM(_gemma3_text()), z_width=2 * D),
    "qwen3": Tiny(lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**GROUPED)), z_width=2 * D),
    "mixtral": Tiny(lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**GROUPED, num_local_experts=4)), z_width=2 * D),
    "mamba": Tiny(
        lambda: hf.MambaForCausalLM(
            hf.MambaConfig(hidden_size=D, num_hidden_layers=LAYERS, vocab_size=VOCAB, state_size=4)
        )
    ),
    "opt": Tiny(opt),
    "bert": Tiny(lambda: hf.BertForMaskedLM(hf.BertConfig(**CAUSAL)), post_norm=True),
    "t5": Tiny(t5, ("encoder", "decoder"), inputs=pair_inputs),
    "vit": Tiny(lambda: hf.ViTModel(hf.ViTConfig(**VISION)), inputs=image_inputs),
    "clip": Tiny(clip, ("text", "vision"), inputs=lambda: text_inputs() | image_inputs()),
    "whisper": Tiny(whisper, ("encoder", "decoder"), inputs=audio_inputs),
    "llava": Tiny(llava, ("text", "vision"), z_width=2 * D, inputs=multimodal_inputs),
}
