"""An autoencoder while it is read: matrices in our layout, and the transforms that bring foreign conventions to it.

Every transform is exact: latents and reconstructions stay what they were. What was done is recorded in words.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ConversionError
from ..models import (
    SAE,
    JumpReLUConfig,
    JumpReLUSAE,
    SAEConfig,
    StandardConfig,
    StandardSAE,
    TopKConfig,
    TopKSAE,
)


Pair = tuple[SAEConfig, dict[str, Tensor]]


class Draft:
    """Weights `encoder` `[d_sae, d_in]`, `decoder` `[d_sae, d_out]` and biases; a threshold makes a JumpReLU, a k a TopK.

    Args:
        encoder (`Tensor`): `[d_sae, d_in]`.
        decoder (`Tensor`): `[d_sae, d_out]`.
        b_enc (`Tensor`, *optional*): `[d_sae]`; `None` is zero.
        b_dec (`Tensor`, *optional*): `[d_out]`; `None` is zero.
        skip (`Tensor`, *optional*): `[d_out, d_in]`.
        fields: of the config: `hook_in`, `hook_out`, `pre_bias`, `input_norm`, `base_model`, …

    Raises:
        ConversionError: if the shapes do not fit each other.
    """

    def __init__(
        self,
        encoder: Tensor,
        decoder: Tensor,
        b_enc: Tensor | None = None,
        b_dec: Tensor | None = None,
        skip: Tensor | None = None,
        **fields: Any,
    ) -> None:
        if encoder.ndim != 2 or decoder.ndim != 2 or encoder.shape[0] != decoder.shape[0]:
            raise ConversionError(
                f"the encoder reads as [d_sae, d_in] = {list(encoder.shape)} and the decoder as [d_sae, d_out] = "
                f"{list(decoder.shape)}: they do not have the same number of latents."
            )
        self.encoder, self.decoder, self.skip = encoder, decoder, skip
        self.b_enc = encoder.new_zeros(encoder.shape[0]) if b_enc is None else b_enc
        self.b_dec = decoder.new_zeros(decoder.shape[1]) if b_dec is None else b_dec
        wanted = {"b_enc": (self.b_enc, (self.d_sae,)), "b_dec": (self.b_dec, (self.d_out,))}
        if skip is not None:
            wanted["skip"] = (skip, (self.d_out, self.d_in))
        for name, (tensor, shape) in wanted.items():
            if tensor.shape != shape:
                raise ConversionError(f"{name} has shape {list(tensor.shape)}, wanted {list(shape)}.")
        self.threshold: Tensor | None = None
        self.k: int | None = None
        self.fields = fields
        self.transforms: list[str] = []
        self.published: dict[str, float] = {}

    @property
    def d_in(self) -> int:
        """Width of the input."""
        return self.encoder.shape[1]

    @property
    def d_out(self) -> int:
        """Width of the output."""
        return self.decoder.shape[1]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.encoder.shape[0]

    def jump(self, threshold: Tensor | float) -> None:
        """Makes it a JumpReLU with one threshold, or one for each latent.

        Raises:
            ConversionError: if there are neither one nor `d_sae` of them.
        """
        values = torch.as_tensor(threshold, dtype=torch.float32)
        if values.ndim > 1 or values.numel() not in (1, self.d_sae):
            raise ConversionError(
                f"{values.numel()} thresholds for {self.d_sae} latents: one or {self.d_sae} are needed."
            )
        if (values < 0).any():
            # relu(u) · 1[u > θ] with θ < 0 is relu(u)
            self.transforms.append("negative thresholds raised to 0, where the rectifier cuts anyway")
        self.threshold = values.clamp_min(0).expand(self.d_sae).contiguous()

    def select(self, k: Any) -> None:
        """Makes it a TopK.

        Raises:
            ConversionError: if `k` is no number of latents.
        """
        if not isinstance(k, int | float) or isinstance(k, bool) or int(k) != k or not 1 <= k <= self.d_sae:
            raise ConversionError(f"k={k!r} must be a whole number between 1 and d_sae={self.d_sae}.")
        self.k = int(k)

    def gate(self, b_gate: Tensor, b_mag: Tensor, r_mag: Tensor) -> None:
        """A gated autoencoder (arXiv 2404.16014) as the JumpReLU that it is at inference: θ = b_mag - e^r · b_gate."""
        scale = r_mag.float().exp()
        self.encoder = self.encoder.float() * scale[:, None]
        self.b_enc = b_mag.float()
        self.transforms.append("gate and magnitude of each latent merged into a threshold")
        self.jump(b_mag.float() - scale * b_gate.float())

    def scale_input(self, scale: float) -> None:
        """The encoder sees `scale · x`; an SAE's output is divided by it again.

        Raises:
            ConversionError: if `scale` is not a positive number.
        """
        if not 0 < scale < float("inf"):
            raise ConversionError(f"the activations' scale {scale!r} is not a positive number.")
        if self.fields.get("input_norm", "none") != "none":
            raise ConversionError(f"a scale of {scale:g} on top of input_norm={self.fields['input_norm']!r}.")
        if scale != 1.0:
            self.fields |= {"input_norm": "scalar", "input_scale": float(scale)}

    def fold_input_scale(self, scale: float, output: float | None = None) -> None:
        """As [`scale_input`], in the weights: what a transcoder needs, whose output has a scale of its own.

        Args:
            scale (`float`): the encoder was trained on `scale · x`.
            output (`float`, *optional*): and the decoder on `output · y`.
        """
        self.encoder = self.encoder.float() * scale
        self.transforms.append(f"encoder multiplied by the input's scale {scale:.6g}")
        if self.skip is not None:
            self.skip = self.skip.float() * scale / (output or 1.0)
        if output is not None and output != 1.0:
            self.decoder, self.b_dec = self.decoder.float() / output, self.b_dec.float() / output
            self.transforms.append(f"decoder divided by the output's scale {output:.6g}")

    def fold_decoder_norms(self, latents: bool = True) -> None:
        """Latents are selected by `u · ‖w‖`; afterwards rows of the decoder have norm 1 and `u` is what was `u · ‖w‖`.

        Args:
            latents (`bool`): whether the foreign latents are `u · ‖w‖` too. Otherwise only the threshold moves: `u > θ / ‖w‖`.
        """
        norms = torch.linalg.vector_norm(self.decoder.float(), dim=-1).clamp_min(1e-8)
        if not latents:
            if self.threshold is None:
                raise ConversionError("thresholds on u · ‖w‖ without a threshold.")
            self.threshold = self.threshold / norms
            self.transforms.append("thresholds divided by the norms of the decoder's rows")
            return
        self.encoder, self.b_enc = self.encoder.float() * norms[:, None], self.b_enc.float() * norms
        self.decoder = self.decoder.float() / norms[:, None]
        self.transforms.append("norms of the decoder's rows moved into the encoder")

    def fold_input_bias(self, bias: Tensor) -> None:
        """The encoder sees `x - bias`, where the decoder's bias is another one: `b_enc - W_enc bias`."""
        self.b_enc = self.b_enc.float() - self.encoder.float() @ bias.float()
        self.transforms.append("the bias that was subtracted from the input moved into the encoder's bias")

    def center(self) -> None:
        """It was trained on a host whose writing weights are centred: the mean of each token over dimensions is gone.

        Raises:
            ConversionError: if that cannot be told apart from another norm of the input.
        """
        if self.is_transcoder:
            self.fields["center_target"] = True
            self.transforms.append("compared with what its host writes minus the mean over dimensions")
        point, kind = str(self.fields.get("hook_in")).rpartition(":")[2], self.fields.get("input_norm", "none")
        if kind in ("layer_norm", "unit_ln") or not point.startswith(("resid", "mlp_out", "attn_out", "embed")):
            return  # centred already, or not written by centred weights
        if kind == "scalar":
            self.unscale()
        elif kind not in ("none", "unit_rms"):
            raise ConversionError(f"centred activations under input_norm={kind!r} cannot be expressed.")
        # what is left of a token without its mean, over its root mean square, is LayerNorm without gain and bias
        self.fields["input_norm"] = "unit_ln" if kind == "unit_rms" else "center"
        self.transforms.append("the mean of each token over dimensions, which its host had removed, is put aside")

    def fold_centering(self) -> None:
        """`input_norm="center"` of a transcoder, whose output is not undone, in the weights that read."""
        self.encoder = self.encoder.float() - self.encoder.float().mean(-1, keepdim=True)
        if self.skip is not None:
            self.skip = self.skip.float() - self.skip.float().mean(-1, keepdim=True)
        self.fields["input_norm"] = "none"
        self.transforms.append("the mean that was taken from the input taken from the weights that read it")

    @classmethod
    def of(cls, sae: SAE) -> Draft:
        """A draft of one of our models, from which a format is written.

        Raises:
            ConversionError: if its architecture has more than weights, biases, thresholds and k.
        """
        if type(sae) not in (StandardSAE, TopKSAE, JumpReLUSAE):
            raise ConversionError(
                f"{type(sae).__name__} has no counterpart in other libraries' formats: keep it in ours."
            )
        weights = {name: tensor.detach().cpu() for name, tensor in sae.state_dict().items()}
        config = sae.config
        names = ("hook_in", "hook_out", "input_norm", "input_scale", "norm_eps", "center_target", "base_model")
        draft = cls(
            weights["encoder.weight"],
            weights["decoder.weight"],
            weights["encoder.bias"],
            weights["decoder.bias"],
            weights.get("skip.weight"),
            pre_bias=config.subtracts_bias,
            **{name: getattr(config, name) for name in names},
        )
        if isinstance(config, TopKConfig):
            draft.select(config.k)
        if "threshold" in weights:
            draft.jump(weights["threshold"])
        return draft

    @property
    def is_transcoder(self) -> bool:
        """Whether it writes to another place than it reads."""
        return self.fields.get("hook_out") not in (None, self.fields.get("hook_in"))

    def unscale(self) -> None:
        """Moves `input_norm="scalar"` into the weights: for formats that have no scale."""
        if self.fields.get("input_norm") != "scalar":
            return
        scale = self.fields["input_scale"]
        self.fields |= {"input_norm": "none", "input_scale": 1.0}
        self.fold_input_scale(scale, None if self.is_transcoder else scale)

    def subtract_bias(self, wanted: bool) -> None:
        """Makes an SAE subtract its decoder bias from the input, or not: for formats that always or never do."""
        if self.fields.get("pre_bias", not self.is_transcoder) == wanted:
            return
        sign = 1.0 if wanted else -1.0
        self.b_enc = self.b_enc.float() + sign * (self.encoder.float() @ self.b_dec.float())
        self.fields["pre_bias"] = wanted
        self.transforms.append(f"the decoder bias {'is now' if wanted else 'is no longer'} subtracted from the input")

    def finish(self) -> Pair:
        """The config of the architecture that it is, and the tensors by our names.

        Raises:
            ConfigError: if the fields contradict each other.
        """
        dtype = self.encoder.dtype
        state = {
            "encoder.weight": self.encoder,
            "encoder.bias": self.b_enc.to(dtype),
            "decoder.weight": self.decoder.to(dtype),
            "decoder.bias": self.b_dec.to(dtype),
        }
        if self.skip is not None:
            state["skip.weight"] = self.skip.to(dtype)
        if self.threshold is not None:
            state["threshold"] = self.threshold
        conversion = {"transforms": self.transforms, "published": self.published}
        fields = {
            **self.fields,
            "d_in": self.d_in,
            "d_out": self.d_out,
            "d_sae": self.d_sae,
            "skip": self.skip is not None,
            "provenance": {**self.fields.get("provenance", {}), "conversion": conversion},
        }
        return self._config(fields), {name: tensor.contiguous() for name, tensor in state.items()}

    def _config(self, fields: dict[str, Any]) -> SAEConfig:
        if self.k is not None:
            return TopKConfig(k=self.k, **fields)
        if self.threshold is not None:
            l0 = self.published.get("l0")
            return JumpReLUConfig(target_l0=l0 if l0 and 0 < l0 <= self.d_sae else None, **fields)
        return StandardConfig(**fields)
