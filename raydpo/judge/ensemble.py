"""A weighted sum of judges.

Comes in: members, each a name, a weight and a judge. Goes out: a judge.
Decision: a row that one member could not score has no score at all. A sum of the others would be on another scale than
that of the other rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raydpo.config.round_sections import JudgeSection
from raydpo.errors import UserError
from raydpo.judge.judge_inputs import Given, local_model, members_of
from raydpo.judge.verdict import Judge, Row, Verdict, judge_rows, scores_of_one, verdict_of


@dataclass(frozen=True)
class Member:
    """One judge of an ensemble.

    name: how a reason calls it.
    weight: what its scores are multiplied by before they are added.
    judge: what scores.
    """

    name: str
    weight: float
    judge: Judge


def make(section: JudgeSection, given: Given) -> Judge:
    """The judge of a section of kind ensemble. Errors of a member come with its number."""
    local_model(section)
    members = []
    for number, member in enumerate(members_of(section)):
        try:
            judge = given.build(member)
        except UserError as error:
            problems = [f"judge.members, number {number}: {problem}" for problem in error.problems]
            raise type(error)(problems) from error
        members.append(Member(f"member {number} ({member.kind})", member.weight, judge))
    return Ensemble(members)


class Ensemble:
    """Adds weighted scores of `members`; each is asked once for all rows."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = tuple(members)

    def __call__(self, prompt: str, responses: list[str]) -> list[float]:
        return scores_of_one(self.many, prompt, responses)

    def many(self, rows: Sequence[Row]) -> list[Verdict]:
        """One Verdict a row; a failed one names the first member that failed."""
        asked = [judge_rows(member.judge, rows) for member in self.members]
        return [self._sum([verdicts[row] for verdicts in asked], len(rows[row][1])) for row in range(len(rows))]

    def _sum(self, verdicts: Sequence[Verdict], num_responses: int) -> Verdict:
        totals = [0.0] * num_responses
        for member, verdict in zip(self.members, verdicts, strict=True):
            if verdict.scores is None:
                return Verdict.failed(f"{member.name}: {verdict.reason}")
            totals = [total + member.weight * score for total, score in zip(totals, verdict.scores, strict=True)]
        return verdict_of(totals, num_responses)
