"""What a model can read: ids of its vocabulary, and no more tokens than it has positions.

Decision: a prompt without room for the longest answer is refused and not cut, because its answers would be those to
another prompt; all that is wrong is named at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raydpo.errors import DataError
from raydpo.models.config_file import num_positions

Ids = Sequence[int]


@dataclass(frozen=True)
class Limits:
    """vocab_size: ids of the model. num_positions: tokens of a prompt with its answer at most; None: no limit."""

    vocab_size: int
    num_positions: int | None

    @classmethod
    def of(cls, config: Any, max_length: int | None = None) -> Limits:
        """Of a transformers config, and of `max_length` where that is less."""
        given = [limit for limit in (num_positions(config), max_length) if limit is not None]
        return cls(config.get_text_config().vocab_size, min(given, default=None))

    def check_prompts(self, prompts: Sequence[Ids], max_new_tokens: int) -> None:
        """Raises DataError that names every prompt that cannot be continued by `max_new_tokens`."""
        problems = []
        for index, prompt in enumerate(prompts):
            if not prompt:
                problems.append(
                    f"Prompt {index} has no tokens; there is nothing to continue. Give at least a BOS token."
                )
            elif problem := self._vocabulary_problem(prompt):
                problems.append(f"Prompt {index} {problem}")
            elif self.num_positions is not None and len(prompt) + max_new_tokens > self.num_positions:
                problems.append(
                    f"Prompt {index} has {len(prompt)} tokens, which with {max_new_tokens} new ones is more than the "
                    f"{self.num_positions} positions of the model; the answer would be noise. Shorten it or lower "
                    "max_new_tokens."
                )
        if problems:
            raise DataError(problems)

    def check_sequences(self, sequences: Sequence[tuple[Ids, Ids]]) -> None:
        """Raises DataError that names every sequence that cannot be scored."""
        problems = []
        for index, (prompt, answer) in enumerate(sequences):
            length = len(prompt) + len(answer)
            if not prompt:
                problems.append(
                    f"Sequence {index} has a prompt of no tokens; nothing predicts its answer. Give at least a BOS token."
                )
            elif problem := self._vocabulary_problem((*prompt, *answer)):
                problems.append(f"Sequence {index} {problem}")
            elif self.num_positions is not None and length > self.num_positions:
                problems.append(
                    f"Sequence {index} has {length} tokens, more than the {self.num_positions} positions of the model; its "
                    "log-probs would be noise. Shorten it."
                )
        if problems:
            raise DataError(problems)

    def _vocabulary_problem(self, ids: Ids) -> str:
        if 0 <= min(ids) <= max(ids) < self.vocab_size:
            return ""
        return (
            f"holds token ids from {min(ids)} to {max(ids)}; allowed are 0 to {self.vocab_size - 1}. Encode it with the "
            "tokenizer of this model."
        )


def end_ids(generation_config: Any, config: Any, taught: Sequence[int] = ()) -> list[int]:
    """End-of-sequence ids of a model: those of its generation config, else those of its config; and those it was `taught`."""
    known = generation_config.eos_token_id
    ids = config.get_text_config().eos_token_id if known is None else known
    return list(dict.fromkeys([*([ids] if isinstance(ids, int) else ids or []), *taught]))
