"""TRL's side: DPOTrainer with its own loss, collator and precomputed references, in the settings that suit it best.

Decision: `step` is what `DPOTrainer.training_step` and the loop around it do (loss, backward, clip, AdamW), without their
logging; the references are given, so that the reference pass is timed by itself, without writing its cache.
padding_free is asked for; TRL 1.16 switches it off with a warning.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.step.ours import BETA, LEARNING_RATE, LORA_RANK, MAX_GRAD_NORM
from benchmarks.step.shapes import Pair
from benchmarks.step.side import Spec
from raydpo.models.memory import compute_again, decoder_layers

Batch = dict[str, Any]


class Theirs:
    """A DPOTrainer around the same model folder. A step accumulates over device batches."""

    def __init__(self, spec: Spec) -> None:
        os.environ.setdefault("TQDM_DISABLE", "1")
        import datasets
        import trl
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.device, self.device_pairs = torch.device(spec.device), spec.device_pairs
        folder = Path(spec.folder)
        settings = trl.DPOConfig(  # type: ignore[attr-defined]
            output_dir=str(folder / "trl"),
            beta=BETA,
            precompute_ref_log_probs=True,
            per_device_train_batch_size=spec.device_pairs,
            gradient_checkpointing=spec.checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            use_cpu=spec.device == "cpu",
            bf16=False,  # the model itself is in `dtype`, as on our side
            max_length=None,
            padding_free=True,
            report_to="none",
            disable_tqdm=True,
        )
        word = [{"prompt": "a", "chosen": "a", "rejected": "b"}]
        self.trainer = trl.DPOTrainer(  # type: ignore[attr-defined]
            model=AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, spec.dtype), attn_implementation="sdpa"
            ),
            peft_config=_lora() if spec.lora else None,
            args=settings,
            train_dataset=datasets.Dataset.from_list(word),
            processing_class=AutoTokenizer.from_pretrained(folder),
        )
        self.model = self.trainer.model.to(self.device).train()
        if spec.checkpointing:  # which transformers switches on in Trainer.train() alone
            compute_again(self.model, len(decoder_layers(self.model)))
        self._parameters = [p for p in self.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    def reference(self, pairs: Sequence[Pair]) -> list[float]:
        """Sums of log-probs of chosen and rejected answer of each pair, in turn."""
        sums: list[float] = []
        for batch in self._batches(pairs):
            chosen, rejected = self.trainer.compute_ref_log_probs(self.model, batch)  # type: ignore[no-untyped-call]
            sums += torch.stack([chosen, rejected], dim=1).flatten().tolist()
        return sums

    def prepare(self, pairs: Sequence[Pair], reference: Sequence[np.ndarray]) -> tuple[Sequence[Pair], list[float]]:
        return pairs, [float(nats.sum(dtype=np.float64)) for nats in reference]

    def step(self, prepared: tuple[Sequence[Pair], list[float]]) -> float:
        """One optimizer step on all pairs; the loss before it."""
        total, batches = 0.0, self._batches(*prepared)
        for batch in batches:
            loss = self.trainer.compute_loss(self.model, batch) / len(batches)  # type: ignore[no-untyped-call]
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self._parameters, MAX_GRAD_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return total

    def _batches(self, pairs: Sequence[Pair], reference: Sequence[float] | None = None) -> list[Batch]:
        rows = [self._row(pair, reference and reference[2 * i : 2 * i + 2]) for i, pair in enumerate(pairs)]
        cuts = range(0, len(rows), self.device_pairs)
        batches = [self.trainer.data_collator(rows[cut : cut + self.device_pairs]) for cut in cuts]
        return [{name: value.to(self.device) for name, value in batch.items()} for batch in batches]

    @staticmethod
    def _row(pair: Pair, reference: Sequence[float] | None) -> Batch:
        chosen, rejected = (answer.tolist() for answer in pair.answers)
        row = {"prompt_ids": pair.prompt.tolist(), "chosen_ids": chosen, "rejected_ids": rejected}
        return row | ({} if not reference else {"ref_chosen_logps": reference[0], "ref_rejected_logps": reference[1]})


def _lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM")
