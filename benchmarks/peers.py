"""The same TopK autoencoder in the classes of SAELens, sparsify and dictionary_learning.

They are imported where they are built; an `ImportError` there means "not installed".
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from .implementations import ADAM_BETAS, Task
from .quality import Weights


class SAELens:
    """`TopKTrainingSAE` under SAELens's own `SAETrainer.step`; options are `SAETrainerConfig` fields.

    `fused` exchanges the optimiser's loop over parameters for torch's fused kernel (not reachable by a setting there).
    """

    def __init__(self, task: Task) -> None:
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        torch.manual_seed(task.seed)
        options = dict(task.options)
        fused = options.pop("fused", False)
        norm = options.pop("normalize_activations", "none")
        self.sae = TopKTrainingSAE(
            TopKTrainingSAEConfig(d_in=task.d, d_sae=task.d_sae, k=task.k, normalize_activations=norm)
        )
        total = task.steps * task.batch
        share, lr = options.pop("decay_share", 0), options.pop("lr", 3e-4)
        warmup = options.pop("warmup_steps", 0)
        warmup = task.warmup if warmup == "same" else warmup
        config = SAETrainerConfig(
            total_training_samples=total,
            train_batch_size_samples=task.batch,
            lr=lr,
            lr_end=lr / 10,  # what their runner's config fills in
            lr_warm_up_steps=warmup,
            # a run that falls from the first step on has no constant part between rise and fall
            lr_decay_steps=min(int(share * task.steps), task.steps - warmup),
            **options,
        )
        self.trainer = SAETrainer(config, self.sae, iter(()))
        if fused:
            for group in self.trainer.optimizer.param_groups:
                group["fused"], group["foreach"] = True, False
        self.norm, self.scaled, self.module = norm, False, self.sae

    def step(self, x: Tensor) -> None:
        if self.norm == "expected_average_only_in" and not self.scaled:
            scale = x.shape[1] ** 0.5 / float(x.norm(dim=-1).mean())
            self.trainer.activation_scaler.scaling_factor, self.scaled = scale, True
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    def encode(self, x: Tensor) -> Tensor:
        return self.sae.encode(x)

    def weights(self) -> Weights:
        sae, scale = self.sae, self.trainer.activation_scaler.scaling_factor or 1.0
        norm = sae.W_dec.detach().norm(dim=-1)
        encoder, b_enc = sae.W_enc.detach().T * norm[:, None], sae.b_enc.detach() * norm / scale
        return Weights(encoder, b_enc, sae.W_dec.detach() / norm[:, None], sae.b_dec.detach() / scale)


class Sparsify:
    """`SparseCoder` with the loss, projection and optimisers of sparsify's trainer, whose loop lives in a forward hook.

    Options: `optimizer` ("signum", its default, or "adam"), `lr`, `auxk_alpha`, `dead_after` (tokens), `warmup_steps`,
    `fused`, `bf16` (its autocast, which it enters on CUDA only), and one that it has no setting for: `betas` of Adam.
    """

    def __init__(self, task: Task) -> None:
        if not torch.cuda.is_available():
            os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
        from sparsify import SparseCoder, SparseCoderConfig

        torch.manual_seed(task.seed)
        self.options, self.task, self.tokens = task.options, task, None
        self.sae = SparseCoder(task.d, SparseCoderConfig(num_latents=task.d_sae, k=task.k), dtype=torch.float32)
        self.since_fired = torch.zeros(task.d_sae, dtype=torch.long)
        self.started, self.scheduler = False, None
        self.module = self.sae
        self._make_optimizer(task)

    def _make_optimizer(self, task: Task) -> None:
        size = (task.d_sae / 2**14) ** 0.5
        if self.options.get("optimizer", "signum") == "signum":
            from schedulefree import ScheduleFreeWrapper
            from sparsify.sign_sgd import SignSGD

            groups = [{"params": self.sae.parameters(), "lr": self.options.get("lr", 5e-3 / size)}]
            self.optimizer = ScheduleFreeWrapper(SignSGD(groups), momentum=0.95)
            self.optimizer.train()
            return
        from transformers import get_linear_schedule_with_warmup

        lr = self.options.get("lr", 2e-4 / size)
        betas, fused = self.options.get("betas", ADAM_BETAS), self.options.get("fused")
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=lr, betas=betas, fused=fused)
        # without bitsandbytes its trainer takes torch's Adam as it comes
        warmup = self.options.get("warmup_steps", 1000)
        warmup = task.warmup if warmup == "same" else warmup
        self.scheduler = get_linear_schedule_with_warmup(self.optimizer, warmup, task.steps)

    def step(self, x: Tensor) -> None:
        sae, alpha = self.sae, self.options.get("auxk_alpha", 0.0)
        if not self.started:
            sae.b_dec.data, self.started = x.mean(0), True
        sae.set_decoder_norm_to_unit_norm()
        dead = self.since_fired > self.options.get("dead_after", 10_000_000)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.options.get("bf16", False)):
            out = sae(x, dead_mask=dead if alpha else None)
        (out.fvu + alpha * out.auxk_loss + out.multi_topk_fvu / 8).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.scheduler is not None:
            self.scheduler.step()
        self.since_fired += x.shape[0]
        self.since_fired[out.latent_indices.flatten()] = 0

    def encode(self, x: Tensor) -> object:
        return self.sae.encode(x)

    def weights(self) -> Weights:
        averaged = self.scheduler is None
        if averaged:
            self.optimizer.eval()
        sae = self.sae
        copies = (t.detach().clone() for t in (sae.encoder.weight, sae.encoder.bias, sae.W_dec, sae.b_dec))
        if averaged:
            self.optimizer.train()
        return Weights(*copies)


class DictionaryLearning:
    """The `TopKTrainer` of dictionary_learning with its own `update`.

    Options: `TopKTrainer` arguments; `decay_share`, `warmup_steps`, and three that it has no setting for: `fused`, `betas` of Adam
    and `bf16` (autocast around the update; its own loop has one that it leaves out on CPU).
    """

    def __init__(self, task: Task) -> None:
        from dictionary_learning.trainers.top_k import TopKTrainer

        options: dict[str, Any] = dict(task.options)
        fused, self.bf16 = options.pop("fused", False), options.pop("bf16", False)
        betas = options.pop("betas", ADAM_BETAS)
        share, warmup = options.pop("decay_share", 0.0), options.pop("warmup_steps", min(1000, task.steps // 2))
        warmup = task.warmup if warmup == "same" else warmup
        if share:
            options["decay_start"] = max(task.steps - int(share * task.steps), warmup + 1)
        dead_after, device = options.pop("dead_after", None), options.pop("device", "cpu")
        self.trainer = TopKTrainer(
            steps=task.steps,
            activation_dim=task.d,
            dict_size=task.d_sae,
            k=task.k,
            layer=0,
            lm_name="",
            warmup_steps=warmup,
            seed=task.seed,
            device=device,
            **options,
        )
        if dead_after is not None:
            self.trainer.dead_feature_threshold = dead_after
        for group in self.trainer.optimizer.param_groups:
            group["betas"] = betas
            if fused:
                group["fused"], group["foreach"] = True, False
        self.module, self.done = self.trainer.ae, 0

    def step(self, x: Tensor) -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            self.trainer.update(self.done, x)
        self.done += 1

    def encode(self, x: Tensor) -> Tensor:
        return self.module.encode(x)

    def weights(self) -> Weights:
        ae = self.module
        return Weights(ae.encoder.weight, ae.encoder.bias, ae.decoder.weight.T.contiguous(), ae.b_dec)
