"""A run of rounds while it is open: its roles, its policies, and what a round needs before and after it trains.

Comes in: a config and a judge. Goes out: committed rounds. Decision: the order of the steps is that of `pipelines.online`;
what each step does is here, and all of it follows from committed pieces, so that a run can be opened again anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from raydpo.artifacts import Lease, local_path, shown
from raydpo.config import Config
from raydpo.data.columns_read import reader_stands
from raydpo.disk import full_disk
from raydpo.driver.actors import session_of
from raydpo.driver.busy import Busy
from raydpo.driver.generators import Generators, Policy
from raydpo.driver.roles import Roles
from raydpo.driver.standing_scorers import StandingScorers
from raydpo.driver.standing_trainers import StandingTrainers
from raydpo.driver.start_model import initial_policy
from raydpo.driver.training import check_adapter
from raydpo.driver.weight_sync import Push, is_free
from raydpo.driver.yielding import yielding
from raydpo.errors import NonFiniteError
from raydpo.judge.verdict import Judge as Judge
from raydpo.rounds.committed import committed_said
from raydpo.rounds.evaluate import Evaluator
from raydpo.rounds.kept_policies import KeptPolicies
from raydpo.rounds.loop_sight import LoopSight
from raydpo.rounds.optimizer_state import optimizer_of, tidy
from raydpo.rounds.produce import Produced as Produced
from raydpo.rounds.produce import Producer
from raydpo.rounds.round_config import read_probe, reference_of, training_config, write_probe
from raydpo.rounds.setup import Setup, set_up
from raydpo.rounds.standing_roles import StandingRoles
from raydpo.rounds.stop import stop_reasons
from raydpo.rundir.piece import Piece
from raydpo.runtime import gpus_shared, has_grace, wait_for_nodes, watching
from raydpo.schema.events import Note, Observer, StageDone
from raydpo.schema.rank_events import PolicyProbe, WeightsPart
from raydpo.schema.shared_weights import SharedWeights


@dataclass(frozen=True)
class Round:
    """A committed round.

    index: from 0.
    folder: everything that the round wrote.
    model: folder of the policy that came out; without pairs, of the one that went in; with `rounds.save_every` of the newest
        one that is saved.
    metrics: "eval/...", "samples/...", "pairs/...", "train/...".
    staleness: rounds by which the policy that sampled was older than the one that was trained.
    stopped: why there is no next round though more were configured.
    model_round: index of the round that made `model`; -1: the initial policy.
    loop: seconds by phase ("sample_s", ... "wall_s"), tokens sampled a second, requests that waited and were in work
        ("requests_waiting/mean", ".../most"), and busy shares ("busy/train"), of the attempt that committed it; pairs by the
        versions that their policy was older ("pairs_of_age/1").
    """

    index: int
    folder: Path
    model: Path
    metrics: Mapping[str, float]
    staleness: int = 0
    stopped: tuple[str, ...] = ()
    model_round: int = -1
    loop: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingJob:
    """What the training of a round is called with.

    index: of the round, from 0.
    config: of its training.
    receive: takes the new weights (weight sync) and the probe; None: nobody does.
    is_wanted: whether generators may take the weights after so many steps.
    optimizer: checkpoint whose optimizer state it goes on with; None to start with a new one.
    scorers, trainers: reference workers and ranks of the run.
    hearing: an observer -> one that also counts the time of the reference.
    """

    index: int
    config: Config
    receive: Callable[[WeightsPart | SharedWeights | PolicyProbe], None] | None
    is_wanted: Callable[[int], bool]
    optimizer: Path | None
    scorers: StandingScorers
    trainers: StandingTrainers
    hearing: Callable[[Observer], Observer]


@contextmanager
def open_run(config: Config, judge: Judge | None, observer: Observer) -> Iterator[RoundsRun]:
    """Check everything, lock the run directory, connect, and end all actors at the end."""
    setup = set_up(config, judge, observer)
    check_adapter(setup.config, setup.layout.initial.folder)
    # Roles that work at the same time cannot share one process.
    with (
        full_disk(setup.layout.dir, asks_disk=False),
        reader_stands(),
        Lease(setup.layout.dir) as lease,
        watching(setup.config.run.stop_grace_s, partial(committed_said, setup.layout), tells_all=True),
        session_of(setup.config, setup.demands, observer, in_process=setup.rounds.placement != "split"),
    ):
        for text in lease.notes:
            observer(Note("warning", text))
        for wanted in setup.demands:
            wait_for_nodes(wanted)
        setup = _merged(setup, observer)
        setup.check()
        with (
            gpus_shared(yielding(setup.config).num_gpus),
            closing(Generators(setup.config, setup.engine, observer, setup.ledger)) as generators,
        ):
            run = RoundsRun(setup, generators, observer)
            try:
                yield run
            finally:
                run.close()


def _merged(setup: Setup, observer: Observer) -> Setup:
    """The same with a plain folder where the initial policy is an adapter. In a session."""
    layout, engine = setup.layout, setup.engine
    if layout.initial.base is None:
        return setup
    initial = initial_policy(setup.config, layout.dir, layout.initial, engine.dtype, observer)
    return replace(setup, layout=replace(layout, initial=initial), engine=replace(engine, model=str(initial.folder)))


def read_summary(config: Config) -> dict[str, Any]:
    """The `summary.json` of a run that ended."""
    summary: dict[str, Any] = json.loads((local_path(config.run.dir) / "summary.json").read_text())
    return summary


class RoundsRun:
    """An open run of rounds. Rounds are taken in order."""

    def __init__(self, setup: Setup, generators: Generators, observer: Observer) -> None:
        self._setup, self._layout, self._section = setup, setup.layout, setup.rounds
        setup.judging.attach()
        self._generators, self._observer, self._busy = generators, observer, Busy()
        roles = Roles(generators, setup.judging, self._busy, observer, setup.config.generate.prompts_per_item)
        self._sight = LoopSight(setup.config, self._busy, observer, depth=generators.depth)
        self._producer = Producer(setup.layout, setup.prompts, setup.tokenizer, roles, self._sight.phase)
        self._standing = StandingRoles.of(setup, observer)
        self._evaluator = Evaluator(setup.layout, setup.eval_prompts, self._standing, roles)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="produce")
        self._ahead: dict[int, Future[Produced]] = {}
        self._skipped_in_a_row, self._is_longer_said = 0, False
        self._policies: dict[int, Policy] = {}
        self._first: Mapping[str, float] = {}
        self.kept = KeptPolicies(setup, self._standing.trainers, observer)

    @property
    def dir(self) -> Path:
        """Its run directory."""
        return self._layout.dir

    @property
    def num_rounds(self) -> int:
        return self._section.num_rounds

    def close(self) -> None:
        try:
            if has_grace():  # what is asked of generators and judge now is committed first, within the grace
                wait([made for made in self._ahead.values() if not made.cancel()])
        finally:
            try:
                self._generators.close()  # before the thread is waited for: if it waits for them, it gets an error
                self._setup.judging.stop()
                self._standing.close()
                self._thread.shutdown(wait=True, cancel_futures=True)
            finally:
                self.kept.close()

    def evaluate_start(self) -> None:
        """Measure the initial policy, from which others are measured."""
        self._first = self._evaluator.evaluate(self._policy(0))

    def committed(self, index: int) -> Round | None:
        """Round `index` if an earlier attempt committed it."""
        summary = Piece(self._layout.round(index) / "summary", index)
        if not summary.is_done:
            return None
        tidy(self._layout, index)
        self.kept.committed(index)
        return self._described(index, summary.meta)

    def produced(self, index: int) -> Produced:
        """The pairs of round `index`: made ahead, or now."""
        self._sight.begin(index)
        if index not in self._ahead:
            return self._produce(index)
        with self._sight.phase(index, "waiting"):
            return self._ahead.pop(index).result()

    def start_ahead(self, index: int) -> None:
        """Begin to make the pairs of round `index`, and of those after it that may be ahead, in the second thread.

        Does nothing where the placement has nobody to make them.
        """
        if not self._layout.is_ahead:
            return
        for ahead in range(index, min(index + self._section.max_staleness, self.num_rounds)):
            if ahead not in self._ahead:
                self._ahead[ahead] = self._thread.submit(self._produce, ahead)

    @contextmanager
    def training(self, index: int, produced: Produced) -> Iterator[TrainingJob]:
        """What to train with; the time inside counts as the trainers' own."""
        folder, version = self._layout.round(index), index + 1
        training, reference = self.kept.run_dir(index), reference_of(self._layout, index)
        config = training_config(self._layout, index, produced.files, reference, training)
        push = Push(self._generators, version, tuple(self._ahead.values()), self._observer)

        def is_wanted(num_steps: int) -> bool:
            is_held = bool(self._setup.eval_prompts) or self._layout.synced_after(index, num_steps)[0] == version
            return is_held and push.is_possible

        def receive(event: WeightsPart | SharedWeights | PolicyProbe) -> None:
            if isinstance(event, PolicyProbe):
                write_probe(folder, event)
            else:
                push.receive(event)

        optimizer, hearing = optimizer_of(self._layout, index), partial(self._sight.training, index)
        standing = self._standing
        job = TrainingJob(index, config, receive, is_wanted, optimizer, standing.scorers, standing.trainers, hearing)
        self._generators.make_room(keeps_weights=False)
        with self._busy.working("train"), self._sight.phase(index, "train"), self.kept.recorded(index, training):
            yield job

    @contextmanager
    def training_again(self, index: int, *, is_saved: bool) -> Iterator[TrainingJob]:
        """The same of a round that is over, from its committed pairs; nobody receives its weights. is_saved: it is saved now,
        whatever it was."""
        training, reference = self.kept.run_dir_again(index, is_saved=is_saved), reference_of(self._layout, index)
        config = training_config(self._layout, index, self.kept.pairs_again(index), reference, training)
        optimizer, standing = optimizer_of(self._layout, index), self._standing
        self._policies.pop(index + 1, None)
        self._generators.make_room()
        with self._busy.working("train"), self.kept.recorded(index, training):
            job = TrainingJob(
                index, config, None, _by_nobody, optimizer, standing.scorers, standing.trainers, _as_it_is
            )
            yield job

    def trained(self, job: TrainingJob, report: Mapping[str, Any]) -> dict[str, float]:
        """Metrics of a round's training. Raises NonFiniteError after too many steps in a row that were skipped."""
        steps, skipped = int(report["steps"]), int(report["skipped_steps"])
        self._skipped_in_a_row = self._skipped_in_a_row + skipped if skipped == steps else 0
        if self._skipped_in_a_row >= job.config.train.max_nonfinite_steps:
            raise NonFiniteError(
                f"none of the last {self._skipped_in_a_row} steps, up to those of round {job.index}, had a finite loss and "
                f"gradient. They were skipped, no weight was changed by them, and round {job.index} was not committed. Lower "
                "train.learning_rate or train in float32 (a new run.dir); the rows are in "
                f"{self._layout.round(job.index)}/train/bad_batches.jsonl."
            )
        self._say_longer(job.index, steps)
        return {"train/steps": steps, "train/skipped_steps": skipped}

    def _say_longer(self, index: int, num_steps: int) -> None:
        """Once, where generators cannot take a policy as often as they were to."""
        wanted = self._section.sync_every
        if wanted is None or num_steps <= wanted or self._is_longer_said:
            return
        self._is_longer_said = True
        text = (
            f"rounds.sync_every: {wanted}, and round {index} trained {num_steps} steps: generators take a new policy after a "
            f"round, so every {num_steps} steps. Fewer rounds.prompts_per_round make shorter rounds."
        )
        self._observer(Note("warning", text))

    def pass_on(self, index: int, produced: Produced) -> dict[str, float]:
        """There is nothing to train on: the policy stays what it is; 0 steps."""
        self._observer(Note("warning", _without_pairs(index, produced, self._policy(index).version)))
        return {"train/steps": 0}

    def finish_round(self, index: int, produced: Produced, trained: Mapping[str, float]) -> Round:
        """Measure the policy that came out, and commit."""
        policy, synced = self._policy(index + 1), self._layout.synced_after(index, int(trained["train/steps"]))
        with self._sight.phase(index, "waiting"):
            for made in self._ahead.values() if self._setup.eval_prompts else ():
                made.result()  # until then it has the generators
        if is_free(self._ahead.values()) and (self._setup.eval_prompts or synced[0] == index + 1):
            self._generators.hold(policy)
        with self._sight.phase(index, "evaluate"):
            metrics = {**self._evaluator.evaluate(policy), **produced.metrics, **trained}
        version = self._policy(index).version
        loop = self._sight.end(index, {version - sampled: number for sampled, number in produced.versions.items()})
        stale, is_saved = version - produced.version, self._layout.unsaved.training(index) is None
        meta = {"metrics": metrics, "staleness": stale, "synced": synced, "loop": loop, "is_saved": is_saved}
        summary = Piece(self._layout.round(index) / "summary", index)
        summary.begin()
        summary.commit(meta)
        tidy(self._layout, index)
        self.kept.committed(index)
        self._observer(StageDone(f"round {index}", _shown(metrics)))
        return self._described(index, meta)

    def is_last(self, found: Round) -> bool:
        """Whether no round follows `found`."""
        return bool(found.stopped) or found.index + 1 == self.num_rounds

    def is_stopped_by(self, found: Round) -> bool:
        """Whether there is no next round after `found`; says why."""
        if found.stopped:
            self._observer(Note("warning", f"stopped after round {found.index}: {'; '.join(found.stopped)}"))
        return bool(found.stopped)

    def write_summary(self, done: list[Round]) -> None:
        rounds = [{**asdict(found), "folder": shown(found.folder), "model": shown(found.model)} for found in done]
        self._setup.write_summary(
            {
                "run_dir": shown(self._layout.dir),
                "model": rounds[-1]["model"],
                "placement": self._section.placement,
                "reference": self._section.reference,
                "initial": self._first,
                "rounds": rounds,
                **self._busy.report(self._setup.config.generate.num_workers),
                **self._setup.ledger.report(),
            }
        )

    def _produce(self, index: int) -> Produced:
        return self._producer.produce(index, self._policy(self._layout.sampler(index)))

    def _policy(self, version: int) -> Policy:
        """The policy after `version` rounds, which must be over; its version is that of the weights."""
        version = self._layout.trained(version)
        if version not in self._policies:
            probe = read_probe(self._layout.round(version - 1)) if version else None
            self._policies[version] = Policy(version, self._layout.policy(version), probe)
        return self._policies[version]

    def _described(self, index: int, meta: Mapping[str, Any]) -> Round:
        # The rules are asked each time: they may have been changed since, and rounds may have been added.
        stopped = tuple(stop_reasons(meta["metrics"], self._section))
        folder, (model, model_round) = self._layout.round(index), self._layout.newest_saved(index + 1)
        return Round(
            index, folder, model, meta["metrics"], meta["staleness"], stopped, model_round, meta.get("loop", {})
        )


def _by_nobody(num_steps: int) -> bool:
    return False


def _as_it_is(observer: Observer) -> Observer:
    return observer


def _without_pairs(index: int, produced: Produced, version: int) -> str:
    text, needed, remedy = "no pair", "at least one is", "a judge that tells answers apart, more generate.num_answers"
    if "pairs/one_prompt" in produced.metrics:
        text, needed, remedy = "pairs of one prompt alone", "those of two are", "more rounds.prompts_per_round"
    return (
        f"round {index} made {text} ({produced.became}), and {needed} needed to train: the policy stays "
        f"version {version}, and the next round goes on from it with its own prompts and seeds. If "
        f"every round ends so, look at the samples and scores in {produced.folder.parent} (docs/rounds.md has the line that "
        f"prints them); {remedy} or more "
        "generate.max_new_tokens need a new run.dir."
    )


def _shown(metrics: Mapping[str, float]) -> str:
    evaluated = ("mean_score", "win_rate", "kl_nats", "kl_reference_nats")
    names = (*(f"eval/{name}" for name in evaluated), "samples/mean_score", "pairs/made")
    return ", ".join(f"{name} {metrics[name]:.4g}" for name in names if name in metrics)
