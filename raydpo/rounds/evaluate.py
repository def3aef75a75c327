"""A policy on held-out prompts: greedy answers judged, and against those of the initial policy.

Comes in: the generators, which hold the policy. Goes out: metrics of the committed evaluation. Decision: scores, win rate
and length are of greedy answers, so that two policies differ by nothing but their weights; the KL divergence is estimated
from one sampled answer a prompt, because it is an expectation under the policy's own sampling. The same answers tell how
far the policy went from the reference of the round that made it, where that is another model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from raydpo import runtime
from raydpo.driver.actors import libraries_of, placement
from raydpo.driver.generators import Policy
from raydpo.driver.roles import Roles
from raydpo.generate.engine import EngineSpec
from raydpo.generate.worker import Generator
from raydpo.judge.measures import mean_length, win_rate
from raydpo.rounds.paired_rows import rows_of, samples_of, scores_of
from raydpo.rounds.produce import distinct_2, requests_of
from raydpo.rounds.round_config import reference_folder
from raydpo.rundir.piece import Piece
from raydpo.rundir.rounds_folder import RoundsFolder, chunks
from raydpo.schema.events import Note
from raydpo.schema.samples import Prompt, Sample, Sampling, Score, Scored

Metrics = dict[str, float]


class Evaluator:
    """Measures any policy of a run on its held-out prompts; without prompts it measures nothing."""

    def __init__(self, layout: RoundsFolder, prompts: Sequence[Prompt], engine: EngineSpec, roles: Roles) -> None:
        self._layout, self._config, self._prompts = layout, layout.config, prompts
        self._engine, self._roles = engine, roles
        self._max_new_tokens = layout.rounds.eval_max_new_tokens or layout.config.generate.max_new_tokens
        self._initial: tuple[list[Any], list[tuple[Sample, ...]]] | None = None

    def evaluate(self, policy: Policy) -> Metrics:
        """Metrics of a policy. The initial one must come first."""
        if not self._prompts:
            return {}
        version, folder = policy.version, self._layout.evaluation(policy.version)
        decoding = [self._max_new_tokens, list(self._config.generate.stop)]
        inputs = [[prompt.key for prompt in self._prompts], policy.digest, decoding, self._config.run.seed]
        summary = Piece(folder / "metrics", [inputs, self._roles.judging.inputs, version and self._scores_of_initial()])
        if not summary.is_done:
            metrics = self._measure(policy, inputs)
            summary.begin()
            summary.commit({"metrics": metrics})
            shown = ", ".join(f"{name.removeprefix('eval/')} {value:.4g}" for name, value in metrics.items())
            self._roles.observer(Note("info", f"policy {version} on {len(self._prompts)} held-out prompts: {shown}"))
        elif version == 0:
            self._initial = self._answers(policy, inputs)
        found: Metrics = summary.meta["metrics"]
        return found

    def _scores_of_initial(self) -> Any:
        assert self._initial is not None
        return self._initial[0]

    def _answers_of_initial(self) -> list[tuple[Sample, ...]]:
        assert self._initial is not None
        return self._initial[1]

    def _measure(self, policy: Policy, inputs: Any) -> Metrics:
        scores, groups = self._answers(policy, inputs)
        if policy.version == 0:
            self._initial = scores, groups
        assert self._initial is not None
        first_scores, first_groups = self._initial
        if (
            self._roles.judging.is_comparative
        ):  # both answers were in one row, and only there their scores can be compared
            both = [(row[0], row[1]) for row in scores if row is not None]
        else:
            both = [(now[0], then[0]) for now, then in zip(scores, first_scores, strict=True) if now and then]
        answers, first = ([samples[0] for samples in side] for side in (groups, first_groups))
        rate, low, high = win_rate([now for now, _ in both], [then for _, then in both])
        return {
            "eval/mean_score": sum(now for now, _ in both) / len(both),
            "eval/win_rate": rate,
            "eval/win_rate_low": low,
            "eval/win_rate_high": high,
            "eval/mean_length_tokens": mean_length(answers),
            "eval/length_ratio": mean_length(answers) / mean_length(first),
            **distinct_2("eval", answers),
            **(self._kl(policy, inputs) if policy.version else {"eval/kl_nats": 0.0}),
        }

    def _answers(self, policy: Policy, inputs: Any) -> tuple[list[Any], list[tuple[Sample, ...]]]:
        """(scores or None, the greedy answer) of each prompt, from committed pieces. A judge that compares sees the initial
        policy's answer next to it."""
        folder = self._layout.evaluation(policy.version)
        generations = Piece(folder / "generations", inputs)
        if not generations.is_done:
            self._sample(generations, self._sampling(greedy=True), policy)
        groups = list(samples_of(generations, self._prompts))
        scores = Piece(
            folder / "scores", [generations.digest, self._roles.judging.inputs, self._roles.judging.is_comparative]
        )
        shown: list[tuple[Sample, ...]] = groups
        if self._roles.judging.is_comparative:
            against = groups if policy.version == 0 else self._answers_of_initial()
            shown = [(*samples, *first) for samples, first in zip(groups, against, strict=True)]
        rows = rows_of(self._prompts, shown)
        if not scores.is_done:
            self._roles.judge(scores, rows)
        return scores_of(scores, rows), groups

    def _sampling(self, *, greedy: bool) -> Sampling:
        return Sampling(1, self._max_new_tokens, stop=self._config.generate.stop, greedy=greedy)

    def _sample(self, piece: Piece, sampling: Sampling, policy: Policy) -> None:
        requests = requests_of(self._config, self._prompts, sampling, policy.version, "evaluation")
        self._roles.sample(piece, policy, requests, self._prompts, {"sampling": asdict(sampling)})

    def _kl(self, policy: Policy, inputs: Any) -> Metrics:
        """Mean over prompts of log policy - log other model of one sampled answer: unbiased estimates, in nats. The other
        models: the initial policy, and what log-ratios were measured from in the round that made this policy."""
        piece = Piece(self._layout.evaluation(policy.version) / "sampled", inputs)
        if not piece.is_done:
            self._sample(piece, self._sampling(greedy=False), policy)
        answers = [samples[0].ids for samples in samples_of(piece, self._prompts)]
        sequences = tuple((prompt.ids, ids) for prompt, ids in zip(self._prompts, answers, strict=True))
        requests = [Score(tuple(lot)) for lot in chunks(sequences, self._config.generate.prompts_per_item)]
        self._roles.generators.hold(policy)
        ours = self._roles.generators.score(requests)
        self._roles.generators.make_room()  # a GPU that the other models need now
        initial, reference = self._layout.initial.folder, reference_folder(self._layout, policy.version - 1)
        apart = {
            model: _mean_difference(ours, self._scored(model, requests))
            for model in dict.fromkeys((initial, reference))
        }
        other = {} if self._layout.rounds.reference == "initial" else {"eval/kl_reference_nats": apart[reference]}
        return {"eval/kl_nats": apart[initial], **other}

    def _scored(self, model: Path, requests: Sequence[Score]) -> dict[int, Scored]:
        """Index of the request -> log-probs of the model in a folder."""
        section = self._config.generate
        answers = runtime.run_pool(
            "initial policy or reference",
            partial(Generator, replace(self._engine, model=str(model), takes_weights=False)),
            requests,
            num_workers=1,
            cpus=0,
            threads=section.cpus_per_worker,
            gpus=section.gpus_per_worker,
            max_retries=section.max_retries,
            hang_timeout_s=section.hang_timeout_s,
            hang_key="generate.hang_timeout_s",
            placement=placement(section.scheduling),
            own_process=self._engine.engine != "transformers",
            preload=libraries_of(self._engine.engine),
        )
        return {index: answer for index, answer in answers if isinstance(answer, Scored)}


def _mean_difference(ours: Mapping[int, Scored], theirs: Mapping[int, Scored]) -> float:
    """Mean over sequences of the difference of their sums, in nats."""
    differences = [
        float(np.sum(mine) - np.sum(other))
        for number in ours
        for mine, other in zip(ours[number].nats, theirs[number].nats, strict=True)
    ]
    return sum(differences) / len(differences)
