"""Rounds that end by their pairs: which prompts such a round may take, where it ended, and where the next one begins.

Comes in: the committed end of the round before. Goes out: prompts, and the cut that ends the round. Decision: a round takes the
next prompts of one endless line, as many as make its pairs, and commits with them the place after the last one, so that a round
depends on the config and the rounds before it alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from raydpo.artifacts import digest_of_rows, read_commit
from raydpo.driver.roles import WantedSamples
from raydpo.driver.round_cut import RoundCut
from raydpo.rounds.paired_rows import Scores, open_groups
from raydpo.rundir.piece import Piece
from raydpo.rundir.prompt_line import PromptPlace, take
from raydpo.rundir.rounds_folder import RoundsFolder
from raydpo.schema.samples import Prompt, Sample

VLLM_SEQUENCES = 256
"""That an engine has in work where `generate.vllm.max_num_seqs` is not set."""


@dataclass(frozen=True)
class Chosen:
    """Prompts of a round; of one that ends by its pairs, those that it may take. digest: of what says which they are."""

    prompts: Sequence[Prompt]
    digest: str


class PairStream:
    """Of a run with `rounds.pairs_per_round`. prompts: of the run."""

    def __init__(self, layout: RoundsFolder, prompts: Sequence[Prompt]) -> None:
        self._layout, self._prompts = layout, prompts
        self._digest = digest_of_rows(map(vars, prompts))
        rounds = layout.rounds
        self._most = min(rounds.prompts_per_round or len(prompts), len(prompts))
        self._compares_prompts = "mismatched" in layout.config.objective.batch_kinds

    def chosen(self, index: int) -> Chosen:
        """What round `index` may take; the pairs of the round before must be committed."""
        numbers, _ = self._take(index, self._most)
        prompts = [self._prompts[number] for number in numbers]
        return Chosen(prompts, digest_of_rows([{"of": self._digest, "prompts": numbers}]))

    def ended(self, index: int, num_prompts: int) -> dict[str, Any]:
        """For the manifest of the pairs: where round `index`, which used `num_prompts`, ended."""
        return {"ended": self._take(index, num_prompts)[1].record()}

    def cut(
        self,
        wanted: WantedSamples,
        scores: Piece,
        num_pairs: Callable[[Prompt, Sequence[Sample], Scores], int],
    ) -> RoundCut:
        """Ends the round. scores: takes the parts of those of `wanted`."""
        size = self._layout.config.generate.prompts_per_item

        def pairs_of(number: int) -> list[int]:
            lot = wanted.lot(number)
            groups = open_groups(wanted.piece, lot, number, size)
            rows = scores.part(number)
            return [
                num_pairs(*each, row["scores"]) for each, row in zip(zip(lot, groups, strict=True), rows, strict=True)
            ]

        return RoundCut(len(wanted.requests), most_ahead(self._layout), self._is_enough, pairs_of)

    def _is_enough(self, pairs: Sequence[int]) -> bool:
        wanted = self._layout.rounds.pairs_per_round
        assert wanted is not None
        needed = 2 if self._compares_prompts else 1
        return sum(pairs) >= wanted and sum(map(bool, pairs)) >= needed

    def _take(self, index: int, number: int) -> tuple[list[int], PromptPlace]:
        place = PromptPlace()
        if index:
            place = PromptPlace.of(read_commit(self._layout.round(index - 1) / "pairs")["meta"]["ended"])
        rounds, seed = self._layout.rounds, self._layout.config.run.seed
        return take(place, number, len(self._prompts), rounds.prompts_per_round, seed)


def most_ahead(layout: RoundsFolder) -> int:
    """Requests that may be begun beyond the last one up to which all are judged: twice what generators have in work."""
    section, in_work = layout.config.generate, 1
    if section.engine == "vllm":
        sequences = section.vllm.max_num_seqs or VLLM_SEQUENCES
        in_work += math.ceil(sequences / (section.prompts_per_item * section.num_answers))
    return 2 * section.num_workers * in_work
