"""Each prompt with the answer to another one: the rows from which KTO estimates a KL divergence.

In: the finished shards of a split, one answer an example. Out: the same examples with a second answer, one to the next
prompt (after the last comes the first).
Decision: a fixed function of the data set, so that the reference log-probs of these rows are cached like any others, and
the estimate depends neither on batches nor on ranks; an added example changes the rows of the prompt before it and no
others. Where prompt and answer together are longer than max_length the answer is cut, which is still a sample of its
first tokens. It keeps its mask, cut likewise; where no token of the loss is left, its log-ratio is 0.
"""

from __future__ import annotations

import numpy as np

from raydpo.artifacts.examples import ExampleTable, ExampleWriter
from raydpo.errors import DataError
from raydpo.schema.rows import row_key


def partners(prompt_keys: np.ndarray) -> np.ndarray:
    """The example whose answer each example takes: [n] int64. prompt_keys: [n], equal for equal prompts.

    Examples of one prompt that follow each other are a run; the k-th of a run takes the k-th of the next run (from the
    front again when that is shorter), so that desirable and undesirable answers are both taken. Raises ValueError when
    all prompts are the same.
    """
    count = len(prompt_keys)
    starts = np.flatnonzero(np.concatenate([[True], prompt_keys[1:] != prompt_keys[:-1]]))
    if len(starts) == 1:
        raise ValueError("all prompts are the same")
    sizes = np.diff(np.append(starts, count))
    found = np.empty(count, dtype=np.int64)
    for run, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        following = (run + 1) % len(starts)
        if prompt_keys[starts[following]] == prompt_keys[start]:  # the last run and the first, round the end
            following = (following + 1) % len(starts)
        found[start : start + size] = starts[following] + np.arange(size) % sizes[following]
    return found


def add_mismatched(table: ExampleTable, writer: ExampleWriter, split: str, max_length: int) -> None:
    """Write every example of `table` with its mismatched answer. Raises DataError when all prompts are the same."""
    prompts = np.array([row_key(table.prompt_ids(example), []) for example in range(len(table))])
    try:
        chosen = partners(prompts)
    except ValueError:
        raise DataError(  # prompts that became one when they were cut: the others were found before
            f"data.{split}: all {len(table):,} examples have the same prompt, and objective kto compares each prompt with the "
            "answer to another one. Give data with at least two prompts, or use objective apo_zero_unpaired."
        ) from None
    for example, partner in enumerate(chosen.tolist()):
        prompt = table.prompt_ids(example)
        other = table.answer_ids(partner)[0][: max_length - len(prompt)]
        mask = table.answer_masks(partner)[0]
        mask = None if mask is None or mask[: len(other)].all() else mask[: len(other)]
        writer.add(
            prompt,
            [*table.answer_ids(example), other],
            [*table.row_keys(example), row_key(prompt, other, mask)],
            table.source(example),
            bool(table.labels[example]),
            float(table.weights[example]),
            [*table.answer_masks(example), mask],
        )
