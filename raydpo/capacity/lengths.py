"""How long the examples of a run are and how many: what micro-batches hold, for bytes and for time.

Comes in: what a preparation found, or numbers that a person gives. Goes out: tokens of an example, of a micro-batch, of a step.
Decision: a mean example and the longest one stand for the data; an answer counts as the longest of its example, so that time is
an upper estimate where answers differ much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from raydpo.config.sections import DataSection, TrainSection
from raydpo.data import DataReport
from raydpo.models.layout import Layout


@dataclass(frozen=True)
class Lengths:
    """prompt, answer: mean tokens. longest: tokens of the longest prompt with its answer. num_answers: of an example.
    examples, held_out: of the training and the held-out split. source: where the numbers are from."""

    prompt: float
    answer: float
    longest: int
    num_answers: int
    examples: int
    held_out: int
    source: str

    def example(self, layout: Layout) -> float:
        """Tokens of a mean example in a micro-batch: the prompt once where answers share it."""
        return self.num_answers * self.answer + self.prompt * (1 if layout == "packed" else self.num_answers)

    def longest_example(self, layout: Layout) -> int:
        """Tokens of the longest example."""
        if layout == "padded":
            return self.longest * self.num_answers
        share = self.answer / max(1.0, self.prompt + self.answer)
        return math.ceil(self.longest * (1 + (self.num_answers - 1) * share))

    def answer_share(self, layout: Layout) -> float:
        """Answer tokens of all tokens."""
        return self.num_answers * self.answer / max(1.0, self.example(layout))

    def micro_batch(self, train: TrainSection, num_ranks: int, layout: Layout) -> int:
        """Tokens of the fullest micro-batch: the budget, the longest example, or all that a rank has in a step; ranks that
        share their sequences have it together."""
        alone = self.longest_example(layout)
        of_rank = self._examples_a_step(train, num_ranks) * alone
        return max(1, alone, min(train.tokens_per_microbatch, of_rank))

    def num_micro_batches(self, train: TrainSection, num_ranks: int, layout: Layout) -> int:
        """Of a rank in a step."""
        tokens = self.example(layout) * self._examples_a_step(train, num_ranks)
        return max(1, math.ceil(tokens / max(train.tokens_per_microbatch, self.example(layout))))

    def answers_of_rank(self, tokens: int, num_sharing: int, layout: Layout) -> int:
        """Answer tokens of a micro-batch of `tokens` whose predictors one of the ranks that share it has, at most: they stand
        together behind their prompt."""
        answers = round(tokens * self.answer_share(layout))
        if num_sharing == 1:
            return answers
        alone = self.longest_example(layout)
        example = max(1, alone if tokens <= alone else round(self.example(layout)))
        of_example, stretch = example * self.answer_share(layout), math.ceil(tokens / num_sharing)
        whole, rest = divmod(stretch, example)
        return min(answers, round(whole * of_example + min(rest, of_example)))

    def _examples_a_step(self, train: TrainSection, num_ranks: int) -> int:
        """Of a rank, or of the ranks that share their sequences."""
        return math.ceil(train.global_batch_pairs * train.sequence_parallel_size / num_ranks)


def from_report(report: DataReport, num_answers: int) -> Lengths:
    """Of data that were read."""
    found = report.lengths
    prompt, answer = found["prompt_tokens"]["mean"], found["answer_tokens"]["mean"]
    longest, pairs = int(found["total_tokens"]["max"]), (report.train_pairs, report.eval_pairs)
    return Lengths(prompt, answer, longest, num_answers, *pairs, "the data")


def stated(data: DataSection, num_answers: int, prompt: int, answer: int, examples: int) -> Lengths:
    """Of numbers that a person gave; the longest row is data.max_length."""
    return Lengths(
        prompt, answer, data.max_length, num_answers, examples, 0, "given, the longest row is data.max_length"
    )
