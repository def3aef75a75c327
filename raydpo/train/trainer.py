"""One rank's model, engine, loss and data, put together; and the three things that it can do.

Decision: everything collective happens inside `update`, `evaluate` and `stage`, which every rank calls in the same
order; the loop above them holds no state but the step number.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydpo.artifacts.elsewhere import bring, hand_over
from raydpo.batches import MicroBatch, Order
from raydpo.errors import ConfigError
from raydpo.metrics import METRICS, Sums, means, names_for
from raydpo.models.compiled import compile_layers
from raydpo.models.logprobs import AnswerLogProbs
from raydpo.models.resolve import ResolvedModel
from raydpo.models.sequence_parallel import check_ranks, ranks_together
from raydpo.models.streamed_weights import StreamedWeights
from raydpo.objectives.loss import Loss
from raydpo.schema.rank_events import PROBE_FILE, Alive, Evaluated, ModelReady, Staged
from raydpo.train.activations import fit_activations
from raydpo.train.ahead import Ahead
from raydpo.train.balance import Balance, Experts, observe_experts
from raydpo.train.built import Built, fingerprint, hindrance
from raydpo.train.deepspeed_engine import DeepSpeedEngine
from raydpo.train.entry_sums import EntrySums, split_means
from raydpo.train.export import gather_weights, write_model
from raydpo.train.feed import Feed
from raydpo.train.group_timeout import group_timeout, record_flights
from raydpo.train.held_out_nats import HeldOutNats
from raydpo.train.kept_engine import goes_on, keep, stand_again
from raydpo.train.policy_probe import policy_probe, write_probe_rows
from raydpo.train.ranges import WAITING, named
from raydpo.train.run_feeds import Rank, split_feeds
from raydpo.train.schedule import learning_rate
from raydpo.train.spec import TrainSpec
from raydpo.train.start import start_of
from raydpo.train.step import BatchLoss, accumulate, all_reduce, evaluate_share, fitting, observe

NAMES = sorted(METRICS)
_FRESH = ModelReady(is_loaded=True, bytes_read=0, hindrance="nobody keeps it")


@dataclass
class Trainer:
    """The parts of one rank.

    spec: what the rank was started with.
    rank: its place in the gang.
    engine: DeepSpeed with model and optimizer.
    loss: the terms of the objective.
    train: the training split.
    eval: the held-out split, None when there are no held-out examples.
    order: which examples each step reads.
    experts: how the routers' balance enters the loss; None: it does not.
    notes: what a person should know of this start.
    ready: where the model came from, and whether it stays when this trainer is closed.
    has_state: the engine goes on with the state of `spec.optimizer`, and needs not load it.
    """

    spec: TrainSpec
    rank: Rank
    engine: DeepSpeedEngine
    loss: Loss
    train: Feed
    eval: Feed | None
    order: Order
    experts: Experts | None = None
    notes: tuple[str, ...] = ()
    ready: ModelReady = _FRESH
    has_state: bool = False

    def __post_init__(self) -> None:
        self.names = names_of(self.spec)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._batches = Ahead(lambda step: list(self.train.batches(self.order.examples(step))), self.order.num_steps)

    def update(self, step: int, is_logged: bool = True) -> tuple[bool, dict[str, float]]:
        """Optimizer step `step` (from 0): (applied, metrics of the global batch). Collective.

        Not logged, the metrics stay where they are, unless the step was refused: then a person wants to see them.
        """
        train, examples = self.spec.config.train, self.order.examples(step)
        with named(WAITING):
            micro_batches = self._batches.take(step)
        balance = self._balance(micro_batches)
        sums = accumulate(self.engine, replace(self.batch_loss(examples), balance=balance), micro_batches)
        rate = learning_rate(
            step,
            self.order.num_steps,
            peak=train.learning_rate,
            warmup_fraction=train.warmup_fraction,
            schedule=train.schedule,
        )
        largest = max(micro_batches, key=lambda batch: (batch.num_examples > 1, batch.sequences.input_ids.numel()))
        with fitting(largest):  # DeepSpeed copies the gradient there: what micro-batches took is missing then
            applied, grad_norm = self.engine.step(rate)
        metrics = self._means(sums) if is_logged or not applied else {}
        if balance is not None and metrics:
            metrics["router_aux_loss"] = float(balance.loss)
        return applied, {
            **metrics,
            "grad_norm": grad_norm,
            "learning_rate": rate,
            "epoch": self.order.epoch_at(step + 1),
        }

    def batch_loss(self, examples: np.ndarray) -> BatchLoss:
        """The loss of one global batch, after the passes over it that it needs. Collective."""
        seen = {}
        for kind in self.loss.batch_kinds:
            seen[kind] = self.loss.unseen(kind, len(examples), self.engine.device)
            batches = self.train.batches(examples, self.train.columns(kind))
            observe(self.engine.forward, self.loss, kind, batches, seen[kind])
            self._all_reduce(seen[kind])
        return BatchLoss(self.loss, self.train.counts(examples, self.loss), seen, self.spec.tie_tolerance_nats)

    def _balance(self, micro_batches: list[MicroBatch]) -> Balance | None:
        """What the global batch does with the experts, None without a balancing loss. Collective."""
        if self.experts is None:
            return None
        sums = observe_experts(self.engine.routed, self.experts, micro_batches, self.engine.device)
        self._all_reduce(sums)
        return Balance(self.experts, sums)

    def evaluate(self, step: int) -> Iterator[Alive | Evaluated]:
        """Metrics of the held-out split after `step` steps, after an `Alive` for each block of it. Collective.

        The split is one global batch: a loss that looks at the whole batch looks at the whole split. Where several entries
        of the data are held out, the metrics of each follow.
        """
        assert self.eval is not None
        sums, by_entry, seen, num_examples = Sums(), EntrySums(self.eval.entries), {}, len(self.eval.table)
        for kind in self.loss.batch_kinds:
            seen[kind] = self.loss.unseen(kind, num_examples, self.engine.device)
            for block in self.eval.blocks(self.eval.columns(kind)):
                observe(self.engine.forward, self.loss, kind, block, seen[kind])
                yield Alive(step)
            self._all_reduce(seen[kind])
        counts = self.eval.counts(np.arange(num_examples), self.loss)
        batch_loss = BatchLoss(self.loss, counts, seen, self.spec.tie_tolerance_nats)
        kept = HeldOutNats(self.spec.config.evaluate.kept_pairs if self._is_first else 0, num_examples)
        for block in self.eval.blocks():
            for micro_batch in block:
                evaluate_share(self.engine.forward, batch_loss, micro_batch, self.engine.device, sums, by_entry, kept)
            yield Alive(step)
        kept.write(self.spec.staging, step, self.rank.rank)
        sums.check(self.names)
        vector = all_reduce(self._once(sums), self.names, self.engine.device)
        if by_entry.entries:
            vector += all_reduce(self._once(by_entry.sums), by_entry.names(self.names), self.engine.device)
        yield Evaluated(step, split_means(self.loss, self.names, by_entry.entries, vector))

    def _means(self, sums: Sums) -> dict[str, float]:
        sums.check(self.names)
        return self.loss.total(means(self.names, all_reduce(self._once(sums), self.names, self.engine.device)))

    def _all_reduce(self, seen: Tensor) -> None:
        """Add up what ranks saw. Those that share their sequences saw the same: it counts once."""
        torch.distributed.all_reduce(seen if self._is_first else seen.zero_())

    def _once(self, sums: Sums) -> Sums:
        return sums if self._is_first else Sums()

    @property
    def _is_first(self) -> bool:
        """Whether this rank speaks for those that share its sequences."""
        return self.rank.rank % self.spec.config.train.sequence_parallel_size == 0

    def stage(self, step: int, metrics: dict[str, float], reason: str) -> Future[Staged]:
        """Copy this rank's part of a checkpoint, and write it in the background. Collective.

        On return training may go on. The value comes when this rank's part is written; one is written at a time.
        """
        folder, train = self.spec.staging / f"step-{step:06d}", self.spec.config.train
        scoring = self.engine.engine.module
        is_writer = self.rank.rank == 0
        state = gather_weights(scoring, self.engine.stage, is_writer, folder / "weights", train.max_shard_bytes)
        probe = policy_probe(self.engine, self.train) if train.verify_export else None
        snapshot = self.engine.snapshot() if train.save == "all" else None

        def write() -> Staged:
            folder.mkdir(parents=True, exist_ok=True)
            if is_writer and probe is not None:
                write_probe_rows(folder / PROBE_FILE, probe)
            if is_writer:
                self._write_model(state, folder / "model")
            part = snapshot.write(folder / "engine") if snapshot is not None else None
            files = {} if part is None else {f"engine/{part.name}": (part.bytes, part.sha256)}
            handed = hand_over(folder, files, _own_files(folder, self.rank.rank))
            return Staged(step, str(folder), metrics, reason, self.rank.num_ranks, files, handed)

        return self._writer.submit(write)

    def _write_model(self, state: dict[str, Tensor] | StreamedWeights, folder: Path) -> None:
        model, source = self.spec.model, self.spec.model.here()
        base = (model.name, model.commit) if model.commit else (str(source), None)
        more = (self.spec.chat_template, base, self.spec.end_ids, self.spec.config.train.max_shard_bytes)
        write_model(self.engine.engine.module.model, state, source, folder, *more)

    def close(self) -> None:
        """End the threads and, of a single rank that keeps nothing, model and process group: this process may go on."""
        self._writer.shutdown(wait=True)
        self._batches.close()
        if self.rank.num_ranks == 1 and self.ready.hindrance:
            self.engine.close()

    def num_tokens(self, step: int) -> int:
        """Real tokens of step `step`, over all ranks."""
        examples = self.order.examples(step)
        return int(self.train.row_lengths(examples).sum())


def _own_files(folder: Path, rank: int) -> Iterator[str]:
    """What a rank writes of a checkpoint: its part of the state, and the first one everything else."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        is_state = name.startswith("engine/")
        if path.is_file() and (path.stem == f"rank-{rank:05d}" if is_state else rank == 0):
            yield name


def bring_models(model: ResolvedModel) -> None:
    """Have the folders of a model on this node, where they are the run's own or copies of an object store's."""
    for folder in model.folders:
        bring(folder)


def build_trainer(rank: Rank, spec: TrainSpec) -> Trainer:
    """Load data, model and engine of one rank, or give what it kept of an earlier run the start of this one. Collective."""
    torch.set_flush_denormal(True)
    torch.manual_seed(spec.config.run.seed)
    bring_models(spec.model)
    check_ranks(rank.num_ranks, spec.config.train.sequence_parallel_size)
    kept: dict[str, Any] | None = getattr(rank, "kept", None)
    found: tuple[Built | None, int, str] = (None, 0, "")
    if kept is not None:
        found = stand_again(kept, spec, rank.num_ranks, rank.use_gpu)
    built, num_bytes, said = found
    is_loaded = built is None
    built, training, held_out, line = _again(rank, spec, built) if built else _anew(rank, spec, kept)
    ready = ModelReady(is_loaded, num_bytes, built.hindrance)
    check_equal(built.engine.device, "whether answers share their prompt", built.layout == "packed")
    check_equal(built.engine.device, "the tokens of a micro-batch", training.tokens_per_microbatch)
    order = Order.of(spec.config, len(training.table))
    loss = Loss(spec.config.objective.terms)
    eval_feed = held_out if len(held_out.table) else None
    notes, has_state = (*built.notes, line, *filter(None, [said])), not is_loaded and goes_on(spec)
    return Trainer(spec, rank, built.engine, loss, training, eval_feed, order, built.experts, notes, ready, has_state)


def _again(rank: Rank, spec: TrainSpec, built: Built) -> tuple[Built, Feed, Feed, str]:
    """(what stands, training and held-out split, a line on activations)."""
    training, held_out = split_feeds(rank, spec, built.scoring.model, built.layout, built.work)
    built.before_measuring()
    training, line = fit_activations(built.scoring, training, spec.config.train, built.small)
    return built, training, held_out, line


def _anew(rank: Rank, spec: TrainSpec, kept: dict[str, Any] | None) -> tuple[Built, Feed, Feed, str]:
    """The same of what is built, and kept where it can be."""
    train, start = spec.config.train, start_of(spec)
    model, layout = start.model, start.layout
    training, held_out = split_feeds(rank, spec, model, layout, start.work)
    scoring = AnswerLogProbs(model, spec.chunk_tokens)
    training, line = fit_activations(scoring, training, train, start.small)
    if train.compile:
        compile_layers(model, layout)
    if rank.use_gpu:
        record_flights(spec.staging.parents[1] / "nccl")
    source, why_not = start.source, "nobody keeps it" if kept is None else hindrance(spec, start)
    parts = (layout, start.work, start.experts, None if why_not else start.small, start.notes, why_not)
    del start  # and the small copy that nobody needs again, before weights are read
    engine = DeepSpeedEngine(scoring, train, spec.dtype, rank.num_ranks, rank.use_gpu, source)
    if train.sequence_parallel_size > 1:
        scoring.ranks = ranks_together(train.sequence_parallel_size, group_timeout(train.hang_timeout_s))
    built = Built(fingerprint(spec, rank.num_ranks, rank.use_gpu), engine, *parts)
    if kept is not None and not why_not:
        keep(kept, built)
    return built, training, held_out, line


def check_equal(device: torch.device, what: str, mine: int) -> None:
    """Every rank lays out the global batch by itself; where they would do it differently, none may start. Collective.

    Raises ConfigError on all ranks alike."""
    bounds = torch.tensor([mine, -mine], dtype=torch.int64, device=device)
    torch.distributed.all_reduce(bounds, op=torch.distributed.ReduceOp.MAX)
    most, least = int(bounds[0]), -int(bounds[1])
    if most != least:
        raise ConfigError(
            f"ranks do not agree on {what}: from {least} to {most}. They would have trained on different batches, so nothing "
            "was trained. Their machines compute differently: use equal ones, or set model.attention: sdpa and "
            "train.tokens_per_microbatch without train.activation_memory_gb."
        )


def names_of(spec: TrainSpec) -> list[str]:
    """Names of the metrics that the loss may have, in the order in which ranks add them up."""
    return names_for(term.name for term in spec.config.objective.terms)
