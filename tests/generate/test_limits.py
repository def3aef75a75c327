"""How rows are cut into batches, and which ids end an answer."""

from types import SimpleNamespace

import pytest

from raydpo.batches import batches_by_length
from raydpo.generate.limits import end_ids


def test_batches_hold_at_most_the_budget_and_every_row_once() -> None:
    lengths = [7, 3, 9, 3, 40, 5, 8]
    found = list(batches_by_length(lengths, 20))
    assert sorted(place for batch in found for place in batch) == list(range(7))
    assert found == [[1, 3, 5], [0, 6], [2], [4]]
    assert list(batches_by_length([], 20)) == []


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [(None, 2, [2]), (5, 2, [5]), ([5, 6], 2, [5, 6]), (None, None, []), ([], 2, [])],
)
def test_end_ids_are_those_of_the_generation_config_first(
    generation: object, config: object, expected: list[int]
) -> None:
    text = SimpleNamespace(eos_token_id=config)
    whole = SimpleNamespace(get_text_config=lambda: text)
    assert end_ids(SimpleNamespace(eos_token_id=generation), whole) == expected
