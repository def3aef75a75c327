"""A policy on held-out prompts: greedy answers judged, and against those of the initial policy.

Comes in: the generators, which hold the policy. Goes out: metrics of the committed evaluation. Decision: scores, win rate
and length are of greedy answers, so that two policies differ by nothing but their weights; the KL divergence is estimated
from one sampled answer a prompt, because it is an expectation under the policy's own sampling. The same answers tell how
far the policy went from the reference of the round that made it, where that is another model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from raydpo.driver.generators import Policy
from raydpo.driver.roles import Roles, WantedSamples
from raydpo.judge.measures import SampleTally, win_rate
from raydpo.rounds.paired_rows import Scores, batches_of, beside, lots_of, rows_of, samples_of, scores_of
from raydpo.rounds.produce import distinct_2, requests_of
from raydpo.rounds.round_config import reference_folder
from raydpo.rounds.standing_roles import StandingRoles
from raydpo.rundir.on_demand import OnDemand
from raydpo.rundir.piece import Piece
from raydpo.rundir.rounds_folder import RoundsFolder, chunks
from raydpo.schema.events import Note
from raydpo.schema.samples import Prompt, Sample, Sampling, Score, Scored

Metrics = dict[str, float]


@dataclass(frozen=True)
class _Answered:
    """generations: the greedy answers of a policy to the held-out prompts. scores: of what a judge was shown of each."""

    generations: Piece
    scores: list[Scores]


class Evaluator:
    """Measures any policy of a run on its held-out prompts; without prompts it measures nothing."""

    def __init__(self, layout: RoundsFolder, prompts: Sequence[Prompt], others: StandingRoles, roles: Roles) -> None:
        self._layout, self._config, self._prompts = layout, layout.config, prompts
        self._others, self._roles = others, roles
        self._max_new_tokens = layout.rounds.eval_max_new_tokens or layout.config.generate.max_new_tokens
        self._initial: _Answered | None = None

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

    def _scores_of_initial(self) -> list[Scores]:
        assert self._initial is not None
        return self._initial.scores

    def _measure(self, policy: Policy, inputs: Any) -> Metrics:
        now = self._answers(policy, inputs)
        if policy.version == 0:
            self._initial = now
        assert self._initial is not None
        first = self._initial
        if (
            self._roles.judging.is_comparative
        ):  # both answers were in one row, and only there their scores can be compared
            both = [(row[0], row[1]) for row in now.scores if row is not None]
        else:
            both = [(one[0], then[0]) for one, then in zip(now.scores, first.scores, strict=True) if one and then]
        rate, low, high = win_rate([score for score, _ in both], [then for _, then in both])
        mean_length = self._mean_length(now)
        return {
            "eval/mean_score": sum(score for score, _ in both) / len(both),
            "eval/win_rate": rate,
            "eval/win_rate_low": low,
            "eval/win_rate_high": high,
            "eval/mean_length_tokens": mean_length,
            "eval/length_ratio": mean_length / self._mean_length(first),
            **distinct_2("eval", now.generations, self._prompts),
            **(self._kl(policy, inputs) if policy.version else {"eval/kl_nats": 0.0}),
        }

    def _mean_length(self, answered: _Answered) -> float:
        tally = SampleTally()
        for samples in samples_of(answered.generations, self._prompts):
            tally.add(samples)
        return tally.mean_length

    def _answers(self, policy: Policy, inputs: Any) -> _Answered:
        """The greedy answers and their scores, from committed pieces. A judge that compares sees the initial policy's answer
        next to it."""
        folder, judging = self._layout.evaluation(policy.version), self._roles.judging
        generations = Piece(folder / "generations", inputs)
        if not generations.is_done:
            self._sample(generations, self._sampling(greedy=True), policy)
        scores = Piece(folder / "scores", [generations.digest, judging.inputs, judging.is_comparative])
        shown = [generations]
        if judging.is_comparative:
            shown += [self._initial.generations if policy.version and self._initial is not None else generations]
        if not scores.is_done:
            self._roles.judge(scores, lots_of(shown, self._prompts, self._roles.rows_per_lot))
        rows = rows_of(self._prompts, beside(shown, self._prompts))
        return _Answered(generations, list(scores_of(scores, rows)))

    def _sampling(self, *, greedy: bool) -> Sampling:
        return Sampling(1, self._max_new_tokens, stop=self._config.generate.stop, greedy=greedy)

    def _sample(self, piece: Piece, sampling: Sampling, policy: Policy) -> None:
        requests = requests_of(self._config, self._prompts, sampling, policy.version, "evaluation")
        self._roles.sample(WantedSamples(piece, policy, requests, self._prompts, {"sampling": asdict(sampling)}))

    def _kl(self, policy: Policy, inputs: Any) -> Metrics:
        """Mean over prompts of log policy - log other model of one sampled answer: unbiased estimates, in nats. The other
        models: the initial policy, and what log-ratios were measured from in the round that made this policy."""
        piece = Piece(self._layout.evaluation(policy.version) / "sampled", inputs)
        if not piece.is_done:
            self._sample(piece, self._sampling(greedy=False), policy)
        per_item = self._config.generate.prompts_per_item
        lots, batches = chunks(self._prompts, per_item), batches_of(piece, self._prompts, per_item)
        requests = OnDemand(len(lots), lambda number: _request(lots[number], batches[number]))
        self._roles.generators.hold(policy)
        ours = _sums(self._roles.generators.score(requests))
        self._roles.generators.make_room()  # a GPU that the other models need now
        initial, reference = self._layout.initial.folder, reference_folder(self._layout, policy.version - 1)
        by = {reference: self._others.reference, initial: self._others.initial}
        apart = {
            model: _mean_difference(ours, _sums(by[model].score(model, requests)))
            for model in dict.fromkeys((initial, reference))
        }
        other = {} if self._layout.rounds.reference == "initial" else {"eval/kl_reference_nats": apart[reference]}
        return {"eval/kl_nats": apart[initial], **other}


def _request(prompts: Sequence[Prompt], groups: Sequence[Sequence[Sample]]) -> Score:
    """To score the first sample of each prompt."""
    return Score(tuple((prompt.ids, samples[0].ids) for prompt, samples in zip(prompts, groups, strict=True)))


def _sums(answers: Iterable[tuple[int, Scored]]) -> np.ndarray:
    """[sequences] nats of each sequence, in the order of the requests."""
    found = {number: [float(np.sum(nats)) for nats in answer.nats] for number, answer in answers}
    return np.array([nats for number in sorted(found) for nats in found[number]])


def _mean_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean over sequences of the difference of their sums, in nats."""
    assert ours.shape == theirs.shape, f"{len(ours)} and {len(theirs)} sequences were scored"
    differences = (ours - theirs).tolist()
    return float(sum(differences)) / len(differences)
