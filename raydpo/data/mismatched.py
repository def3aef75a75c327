"""Each prompt with the answer to another one: the rows from which KTO estimates a KL divergence.

In: the finished shards of a split, one answer an example. Out: the same examples with a second answer, that of the next
example (after the last comes the first) whose prompt is another one.
Decision: a fixed function of the data set, so that the reference log-probs of these rows are cached like any others, and
the estimate depends neither on batches nor on ranks; an added example changes the row of one neighbour. Where prompt
and answer together are longer than max_length the answer is cut, which is still a sample of its first tokens.
"""

from __future__ import annotations

import numpy as np

from raydpo.artifacts.examples import ExampleTable, ExampleWriter
from raydpo.errors import DataError
from raydpo.schema import row_key


def partners(prompt_keys: np.ndarray) -> np.ndarray:
    """Next example with another prompt, cyclic: [n] int64. prompt_keys: [n], equal for equal prompts.

    Raises ValueError when all prompts are the same.
    """
    count = len(prompt_keys)
    if count and bool((prompt_keys == prompt_keys[0]).all()):
        raise ValueError("all prompts are the same")
    nearest = np.arange(1, count + 1) % max(count, 1)
    # Backwards, twice round: whoever's neighbour has the same prompt has that neighbour's partner.
    for example in [*range(count - 1, -1, -1), *range(count - 1, -1, -1)]:
        neighbour = (example + 1) % count
        same = prompt_keys[neighbour] == prompt_keys[example]
        nearest[example] = nearest[neighbour] if same else neighbour
    return nearest


def add_mismatched(table: ExampleTable, writer: ExampleWriter, split: str, max_length: int) -> None:
    """Write every example of `table` with its mismatched answer. Raises DataError when all prompts are the same."""
    prompts = np.array([row_key(table.prompt_ids(example), []) for example in range(len(table))])
    try:
        chosen = partners(prompts)
    except ValueError:
        raise DataError(
            f"data.{split}: all {len(table):,} examples have the same prompt, and objective kto compares each prompt with the "
            "answer to another one. Give data with at least two prompts, or use objective apo_zero_unpaired."
        ) from None
    for example, partner in enumerate(chosen.tolist()):
        prompt = table.prompt_ids(example)
        other = table.answer_ids(partner)[0][: max_length - len(prompt)]
        writer.add(
            prompt,
            [*table.answer_ids(example), other],
            [*table.row_keys(example), row_key(prompt, other)],
            table.source(example),
            bool(table.labels[example]),
            float(table.weights[example]),
        )
