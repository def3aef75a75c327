"""raydpo's side: the step of the trainer and the pass of the reference workers, with neither Ray nor DeepSpeed.

Decision: nothing is written anew: `Feed`, `accumulate`, `Loss` and `score_rows` are what trainer and reference actors
call; only the optimizer around them is torch's own, the same as on the other side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.step.shapes import Pair
from benchmarks.step.side import Spec
from raydpo.config import OBJECTIVES, ObjectiveRow
from raydpo.models.layout import choose_layout
from raydpo.models.logprobs import AnswerLogProbs, Extra, SequenceBatch, check_head
from raydpo.models.lora import add_lora
from raydpo.models.memory import compute_again, decoder_layers
from raydpo.models.pretrained import load_model
from raydpo.models.work import Work, work_of
from raydpo.objectives.loss import Loss
from raydpo.reference.forward import score_rows
from raydpo.train.feed import Feed
from raydpo.train.step import BatchLoss, accumulate

BETA = 0.1
LEARNING_RATE = 5e-7
MAX_GRAD_NORM = 1.0
LORA_RANK = 16


class Table:
    """Pairs as batches read them (`raydpo.batches.micro_batches.Examples`). A row's key is its place."""

    is_weighted = False

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._pairs = pairs
        self.prompt_lengths = np.array([len(pair.prompt) for pair in pairs])
        self.answer_lengths = np.array([[len(answer) for answer in pair.answers] for pair in pairs])
        self.loss_lengths = self.answer_lengths
        self.labels, self.weights = np.ones(len(pairs), bool), np.ones(len(pairs), np.float32)

    def __len__(self) -> int:
        return len(self._pairs)

    def prompt_ids(self, example: int) -> np.ndarray:
        return self._pairs[example].prompt

    def answer_ids(self, example: int) -> list[np.ndarray]:
        return list(self._pairs[example].answers)

    def answer_masks(self, example: int) -> list[np.ndarray | None]:
        return [None, None]

    def row_keys(self, example: int) -> list[str]:
        return [f"{example}/{answer}" for answer in range(2)]

    def source(self, example: int) -> str:
        return f"pair {example}"


class PlainEngine:
    """forward, backward and step without DeepSpeed: AdamW on all weights, the gradient clipped."""

    def __init__(self, scoring: AnswerLogProbs, device: torch.device) -> None:
        self.scoring, self.device = scoring, device
        self._parameters = [p for p in scoring.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    def forward(self, batch: SequenceBatch, extra: Extra = "nothing") -> Tensor:
        nats: Tensor = self.scoring(batch, extra)
        return nats

    def routed(self, batch: SequenceBatch, extra: Extra, top_k: int) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.scoring(batch, extra, top_k)
        return found

    def backward(self, loss: Tensor) -> None:
        torch.autograd.backward(loss)

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self._parameters, MAX_GRAD_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()


@dataclass(frozen=True)
class _Term:
    """A term of the loss, as `raydpo.config` would make it."""

    name: str = "dpo"
    row: ObjectiveRow = OBJECTIVES["dpo"]
    weight: float = 1.0
    parameters: Mapping[str, float] = field(default_factory=lambda: {"beta": BETA, "label_smoothing": 0.0})
    modifiers: Mapping[str, float | bool] = field(default_factory=dict)
    outside: None = None


class Ours:
    """A model that scores pairs and takes steps on them."""

    def __init__(self, spec: Spec) -> None:
        self.tokens, self.device = spec.tokens, torch.device(spec.device)
        model = load_model(Path(spec.folder), spec.dtype, "auto").to(self.device)
        check_head(AnswerLogProbs(model))
        self.layout, _ = choose_layout(model, "auto")
        self.work: Work = work_of(model)
        if spec.lora:
            model = add_lora(model, rank=LORA_RANK, alpha=2 * LORA_RANK, target_modules="all-linear", seed=0)
        if spec.checkpointing:
            compute_again(model, len(decoder_layers(model)))
        self.model: Any = model.train()
        self.scoring = AnswerLogProbs(model)
        self.engine = PlainEngine(self.scoring, self.device)
        self._loss = Loss([_Term()])

    def reference(self, pairs: Sequence[Pair]) -> list[np.ndarray]:
        """Per-token log-probs of chosen and rejected answer of each pair, in turn; examples by their longest row."""
        order = sorted(range(len(pairs)), key=lambda i: max(map(len, pairs[i].answers)) + len(pairs[i].prompt))
        rows = [(pairs[i].prompt, answer) for i in order for answer in pairs[i].answers]
        values, _ = score_rows(self.scoring, rows, self.tokens, self.layout, self.device)
        places = {example: place for place, example in enumerate(order)}
        return [values[2 * places[i] + side] for i in range(len(pairs)) for side in range(2)]

    def prepare(self, pairs: Sequence[Pair], reference: Sequence[np.ndarray]) -> Feed:
        """What a step is taken on: `step` collates from it, as the trainer does."""

        def lookup(keys: list[str]) -> list[np.ndarray]:
            places = [[int(n) for n in key.split("/")] for key in keys]
            return [reference[2 * example + answer] for example, answer in places]

        return Feed(Table(pairs), 0, 1, 2, self.tokens, lookup, layout=self.layout, work=self.work)

    def step(self, feed: Feed) -> float:
        """One optimizer step on all pairs of `feed`; the loss before it."""
        examples = np.arange(len(feed.table))
        batch_loss = BatchLoss(self._loss, feed.counts(examples, self._loss), {}, tie_tolerance_nats=1e-3)
        sums = accumulate(self.engine, batch_loss, feed.batches(examples))
        self.engine.step()
        total, count = sums.vector(["loss"])
        return total / count
