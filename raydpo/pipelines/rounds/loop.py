"""`iterate`: sample, judge, train, repeat. The order of a run of rounds, and nothing else.

Comes in: a config and a judge. Goes out: a `Round` for each, as soon as it is committed. Decision: every arrow leads from
one committed piece to the next, so there is no state but the disk; with `placement: split` the pairs of the next round are
made in a second thread while this one trains. A round without pairs is committed as one that trained nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raydpo import runtime
from raydpo.artifacts import RunLock
from raydpo.config import Config
from raydpo.errors import NonFiniteError
from raydpo.judge.verdict import Judge
from raydpo.pipelines.checkpoints import retain_newest
from raydpo.pipelines.offline import train
from raydpo.pipelines.rounds.busy import Busy
from raydpo.pipelines.rounds.evaluate import Evaluator
from raydpo.pipelines.rounds.generators import Generators, Policy, Push
from raydpo.pipelines.rounds.piece import Piece
from raydpo.pipelines.rounds.produce import Produced, Producer
from raydpo.pipelines.rounds.roles import Roles
from raydpo.pipelines.rounds.setup import Setup, set_up
from raydpo.pipelines.rounds.stop import stop_reasons
from raydpo.pipelines.rounds.training import optimizer_of, read_probe, reference_of, training_config, write_probe
from raydpo.schema.events import Note, Observer, StageDone, ignore
from raydpo.schema.training import PolicyProbe, WeightsPart


@dataclass(frozen=True)
class Round:
    """A committed round. index: from 0. model: folder of the policy that came out; without pairs the one that went in.
    metrics: "eval/...", "samples/...", "pairs/...", "train/...". staleness: rounds by which the policy that sampled was older
    than the one that was trained. stopped: why there is no next round though there were to be more."""

    index: int
    folder: Path
    model: Path
    metrics: Mapping[str, float]
    staleness: int = 0
    stopped: tuple[str, ...] = ()


def iterate(config: Config, judge: Judge | None = None, observer: Observer = ignore) -> Iterator[Round]:
    """Rounds of sample, judge, train; the same call goes on where an earlier one in `run.dir` ended.

    judge: (prompt, responses) -> a score each, higher is better, called in this process; without one the config's `judge`
    section. Rounds that were committed before are yielded again, without work. Writes `summary.json` at the end.
    Raises JudgeError, PolicyMismatchError, and what `raydpo.train` raises.
    """
    setup = set_up(config, judge, observer)
    with RunLock(setup.layout.dir), runtime.session(setup.demands):
        setup.check()
        with closing(Generators(setup.config, setup.engine, observer)) as generators:
            yield from _Run(setup, generators, observer).rounds()


def run_rounds(config: Config, observer: Observer = ignore) -> dict[str, Any]:
    """`iterate` to its end; the summary that `summary.json` holds."""
    for _ in iterate(config, observer=observer):
        pass
    summary: dict[str, Any] = json.loads((Path(config.run.dir).expanduser() / "summary.json").read_text())
    return summary


class _Run:
    def __init__(self, setup: Setup, generators: Generators, observer: Observer) -> None:
        self.setup, self.layout, self.section = setup, setup.layout, setup.rounds
        self.generators, self.observer, self.busy = generators, observer, Busy()
        roles = Roles(generators, setup.judging, self.busy, observer, setup.config.generate.prompts_per_item)
        self.producer = Producer(setup.layout, setup.prompts, setup.tokenizer, roles)
        self.evaluator = Evaluator(setup.layout, setup.eval_prompts, setup.engine, roles)
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="produce")
        self.ahead: dict[int, Future[Produced]] = {}
        self.skipped_in_a_row = 0
        self.policies: dict[int, Policy] = {}

    def rounds(self) -> Iterator[Round]:
        done: list[Round] = []
        try:
            self.first = self.evaluator.evaluate(self.policy(0))
            for index in range(self.section.num_rounds):
                found = self._committed(index) or self._round(index)
                done.append(found)
                yield found
                if found.stopped:
                    self.observer(Note("warning", f"stopped after round {index}: {'; '.join(found.stopped)}"))
                    break
            self.setup.write_summary(self._summary(done))
        finally:
            self.generators.close()  # before the thread is waited for: if it waits for them, it is told so
            self.setup.judging.stop()
            self.thread.shutdown(wait=True, cancel_futures=True)

    def policy(self, version: int) -> Policy:
        """The policy after `version` rounds, which must be over; its version is that of the weights."""
        version = self.layout.trained(version)
        if version not in self.policies:
            probe = read_probe(self.layout.round(version - 1)) if version else None
            self.policies[version] = Policy(version, self.layout.policy(version), probe)
        return self.policies[version]

    def _committed(self, index: int) -> Round | None:
        summary = Piece(self.layout.round(index) / "summary", index)
        if not summary.is_done:
            return None
        self._tidy(index)
        return self._described(index, summary.meta)

    def _tidy(self, index: int) -> None:
        """Remove optimizer state that nothing reads after round `index` was committed."""
        kept = self._kept(index + 1)
        for number in {index, *self._kept(index)} - kept:
            shutil.rmtree(self.layout.round(number) / "train/checkpoints", ignore_errors=True)
        for number in kept:
            retain_newest(self.layout.round(number) / "train/checkpoints")

    def _kept(self, version: int) -> set[int]:
        """Rounds whose optimizer state is kept after `version` rounds: the newest two, so that the newest can be made again."""
        if not self.layout.carries_optimizer:
            return set()
        newest = self.layout.trained(version)
        return {made - 1 for made in (newest, self.layout.trained(max(newest - 1, 0))) if made}

    def _described(self, index: int, meta: Mapping[str, Any]) -> Round:
        # The rules are asked each time: they may have been changed since, and rounds may have been added.
        stopped = tuple(stop_reasons(meta["metrics"], self.section))
        folder, model = self.layout.round(index), self.layout.policy(index + 1)
        return Round(index, folder, model, meta["metrics"], meta["staleness"], stopped)

    def _round(self, index: int) -> Round:
        produced = self._produced(index)
        if self.layout.is_ahead and index + 1 < self.section.num_rounds:
            self.ahead[index + 1] = self.thread.submit(self._produce, index + 1)
        trained = self._train(index, produced) if produced.num_pairs else self._pass_on(index, produced)
        if index + 1 in self.ahead:
            self.ahead[index + 1].result()  # until then it has the generators
        policy = self.policy(index + 1)
        self.generators.hold(policy)
        metrics = {**self.evaluator.evaluate(policy), **produced.metrics, **trained}
        meta = {"metrics": metrics, "staleness": self.policy(index).version - produced.version}
        summary = Piece(self.layout.round(index) / "summary", index)
        summary.begin()
        summary.commit(meta)
        self._tidy(index)
        self.observer(StageDone(f"round {index}", _shown(metrics)))
        return self._described(index, meta)

    def _produce(self, index: int) -> Produced:
        return self.producer.produce(index, self.policy(self.layout.sampler(index)))

    def _produced(self, index: int) -> Produced:
        return self.ahead.pop(index).result() if index in self.ahead else self._produce(index)

    def _train(self, index: int, produced: Produced) -> dict[str, float]:
        """Train on the pairs, and send the generators the new policy if they are free; metrics of the training."""
        folder, version = self.layout.round(index), index + 1
        config = training_config(self.layout, index, produced.files, reference_of(self.layout, index))
        optimizer = optimizer_of(self.layout, index)
        push = Push(self.generators, version, self.ahead.get(version), self.observer)

        def receive(event: WeightsPart | PolicyProbe) -> None:
            if isinstance(event, PolicyProbe):
                write_probe(folder, event)
            else:
                push.receive(event)

        self.generators.make_room()
        with self.busy.working("train"):
            report = train(config, self.observer, receive=receive, optimizer=optimizer)["train"]
        steps, skipped = int(report["steps"]), int(report["skipped_steps"])
        self.skipped_in_a_row = self.skipped_in_a_row + skipped if skipped == steps else 0
        if self.skipped_in_a_row >= config.train.max_nonfinite_steps:
            raise NonFiniteError(
                f"none of the last {self.skipped_in_a_row} steps, up to those of round {index}, had a finite loss and "
                f"gradient. They were skipped, no weight was changed by them, and round {index} was not committed. Lower "
                f"train.learning_rate or train in float32 (a new run.dir); the rows are in {folder}/train/bad_batches.jsonl."
            )
        return {"train/steps": steps, "train/skipped_steps": skipped}

    def _pass_on(self, index: int, produced: Produced) -> dict[str, float]:
        """There is nothing to train on: the policy stays what it is; 0 steps."""
        text, needed, remedy = (
            "no pair",
            "at least one is",
            "a judge that tells answers apart, more generate.num_answers",
        )
        if "pairs/one_prompt" in produced.metrics:
            text, needed, remedy = "pairs of one prompt alone", "those of two are", "more rounds.prompts_per_round"
        self.observer(
            Note(
                "warning",
                f"round {index} made {text} ({produced.became}), and {needed} needed to train: the policy stays "
                f"version {self.policy(index).version}, and the next round goes on from it with its own prompts and seeds. If "
                f"every round ends so, look at the samples and scores in {produced.folder.parent}; {remedy} or more "
                "generate.max_new_tokens need a new run.dir.",
            )
        )
        return {"train/steps": 0}

    def _summary(self, done: list[Round]) -> dict[str, Any]:
        rounds = [{**asdict(found), "folder": str(found.folder), "model": str(found.model)} for found in done]
        return {
            "run_dir": str(self.layout.dir),
            "model": rounds[-1]["model"],
            "placement": self.section.placement,
            "reference": self.section.reference,
            "initial": self.first,
            "rounds": rounds,
            **self.busy.report(self.setup.config.generate.num_workers),
        }


def _shown(metrics: Mapping[str, float]) -> str:
    evaluated = ("mean_score", "win_rate", "kl_nats", "kl_reference_nats")
    names = (*(f"eval/{name}" for name in evaluated), "samples/mean_score", "pairs/made")
    return ", ".join(f"{name} {metrics[name]:.4g}" for name in names if name in metrics)
