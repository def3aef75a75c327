"""One rank's model, engine, objective and data, put together; and the three things that it can do.

Decision: everything collective happens inside `update`, `evaluate` and `stage`, which every rank calls in the same
order; the loop above them holds no state but the step number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from raydpo.artifacts import ExampleTable, ReferenceCache
from raydpo.batches import Order
from raydpo.batches.collate import Lookup
from raydpo.config import OBJECTIVES
from raydpo.metrics import METRICS, Sums, means
from raydpo.models.load import load_model
from raydpo.models.logprobs import AnswerLogProbs, check_head
from raydpo.models.lora import add_lora
from raydpo.objectives import Objective, make_objective
from raydpo.schema.training import Alive, Evaluated, Staged
from raydpo.train.engine import Engine
from raydpo.train.export import export_model
from raydpo.train.feed import Feed
from raydpo.train.schedule import learning_rate
from raydpo.train.spec import TrainSpec
from raydpo.train.step import accumulate, all_reduce, evaluate_share

NAMES = sorted(METRICS)


class Rank(Protocol):
    """What a trainer must know of its place in the gang."""

    @property
    def rank(self) -> int: ...
    @property
    def num_ranks(self) -> int: ...
    @property
    def use_gpu(self) -> bool: ...


@dataclass
class Trainer:
    """One rank's parts. `eval` is None when there are no held-out examples."""

    spec: TrainSpec
    rank: Rank
    engine: Engine
    objective: Objective
    train: Feed
    eval: Feed | None
    order: Order

    def update(self, step: int) -> tuple[bool, dict[str, float]]:
        """Optimizer step `step` (from 0): (applied, metrics of the global batch). Collective."""
        train, examples = self.spec.config.train, self.order.examples(step)
        count = self.train.count(examples, self.objective)
        sums = accumulate(
            self.engine, self.objective, self.train.batches(examples), count, self.spec.tie_tolerance_nats
        )
        rate = learning_rate(
            step,
            self.order.num_steps,
            peak=train.learning_rate,
            warmup_fraction=train.warmup_fraction,
            schedule=train.schedule,
        )
        applied, grad_norm = self.engine.step(rate)
        metrics = means(NAMES, all_reduce(sums, NAMES, self.engine.device))
        return applied, {
            **metrics,
            "grad_norm": grad_norm,
            "learning_rate": rate,
            "epoch": self.order.epoch_at(step + 1),
        }

    def evaluate(self, step: int) -> Iterator[Alive | Evaluated]:
        """Metrics of the held-out split after `step` steps, after an `Alive` for each block of it. Collective."""
        assert self.eval is not None
        sums = Sums()
        for examples in self.eval.blocks():
            evaluate_share(self.engine, self.objective, self.eval.batches(examples), self.spec.tie_tolerance_nats, sums)
            yield Alive(step)
        yield Evaluated(step, means(NAMES, all_reduce(sums, NAMES, self.engine.device), "eval/"))

    def stage(self, step: int, metrics: dict[str, float], reason: str) -> Staged:
        """Write this rank's part of a checkpoint; returns when every rank has. Collective."""
        folder = self.spec.staging / f"step-{step:06d}"
        scoring = self.engine.engine.module
        source, is_writer = self.spec.model.here(), self.rank.rank == 0
        export_model(scoring, self.engine.stage, source, folder / "model", is_writer, self.spec.chat_template)
        self.engine.save(folder / "engine")
        torch.distributed.barrier()
        return Staged(step, str(folder), metrics, reason)

    def num_tokens(self, step: int) -> int:
        """Real tokens of step `step`, over all ranks."""
        examples = self.order.examples(step)
        return int(self.train.row_lengths(examples).sum())


def build_trainer(rank: Rank, spec: TrainSpec) -> Trainer:
    """Load data, model and engine of one rank. Collective."""
    config, train = spec.config, spec.config.train
    torch.set_flush_denormal(True)
    torch.manual_seed(config.run.seed)
    model = load_model(spec.model.here(), spec.dtype, config.model.attention)
    if config.model.attention != "flash_attention_2":  # which does not run on the CPU, where the model still is
        check_head(AnswerLogProbs(model))
    if (lora := train.lora) is not None:
        targets = lora.target_modules
        model = add_lora(model, rank=lora.rank, alpha=lora.alpha, target_modules=targets, seed=config.run.seed)
    if train.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()  # every dropout is 0; gradient checkpointing works in training mode only
    engine = Engine(AnswerLogProbs(model, spec.chunk_tokens), train, spec.dtype, rank.num_ranks, rank.use_gpu)
    lookup = open_lookup(spec)
    training, held_out = (make_feed(rank, spec, split, lookup) for split in ("train", "eval"))
    order = Order(len(training.table), train.global_batch_pairs, train.epochs, config.run.seed, train.max_steps)
    objective = make_objective(config.objective.name, config.objective.parameters)
    return Trainer(spec, rank, engine, objective, training, held_out if len(held_out.table) else None, order)


def open_lookup(spec: TrainSpec) -> Lookup | None:
    """Row keys -> cached reference log-probs; None for an objective without a reference."""
    if spec.reference is None:
        return None
    cache = ReferenceCache(*spec.reference)
    cache.open(is_owner=False)
    return cache.lookup


def make_feed(rank: Rank, spec: TrainSpec, split: str, lookup: Lookup | None) -> Feed:
    """One split of the run's token shards, seen from one rank."""
    table = ExampleTable.open(spec.data, split)
    num_answers = OBJECTIVES[spec.config.objective.name].num_answers
    budget = spec.config.train.tokens_per_microbatch
    return Feed(table, rank.rank, rank.num_ranks, num_answers, budget, lookup, spec.chunk_tokens)
