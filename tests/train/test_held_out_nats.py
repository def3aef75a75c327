"""Log-probs that an evaluation keeps: of which examples, and that they are those that were scored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raydpo.artifacts.kept_pairs import put_together, read_kept
from raydpo.objectives import ObjectiveInput
from raydpo.train.held_out_nats import HeldOutNats


def batch(places: list[int]) -> ObjectiveInput:
    """Pairs with 2 and 1 answer tokens; a token's log-prob says place, answer and token."""
    number = len(places)
    policy = [place + 0.1 * answer + 0.01 * token for place in places for answer, token in ((0, 0), (0, 1), (1, 0))]
    return ObjectiveInput(
        policy_nats=torch.tensor(policy),
        reference_nats=torch.tensor(policy) / 2,
        sequences=torch.tensor([2 * n + answer for n in range(number) for answer in (0, 0, 1)]),
        answers=torch.tensor([[2 * n, 2 * n + 1] for n in range(number)]),
        num_sequences=2 * number,
        positions=torch.tensor(places),
    )


@pytest.mark.parametrize(
    ("most", "kept"), [(0, []), (2, [0, 5]), (3, [0, 4, 8]), (10, list(range(10))), (99, list(range(10)))]
)
def test_examples_at_equal_distances_are_kept(tmp_path: Path, most: int, kept: list[int]) -> None:
    (tmp_path / "run").mkdir()
    for rank, places in enumerate(([9, 0, 4], [1, 2, 3, 5], [6, 7, 8])):
        nats = HeldOutNats(most, 10)
        nats.add(batch(places))
        nats.write(tmp_path / "staging", 3, rank)
    put_together(tmp_path / "staging", 3, tmp_path / "run")
    found = read_kept(tmp_path / "run")
    if not kept:
        assert found is None
        return
    assert found is not None
    rows = found[1].to_pylist()
    assert [(row["example"], row["answer"]) for row in rows] == [(place, answer) for place in kept for answer in (0, 1)]
    for row in rows:
        expected = [row["example"] + 0.1 * row["answer"] + 0.01 * token for token in range(2 - row["answer"])]
        assert row["policy_nats"] == pytest.approx(expected)
        assert row["reference_nats"] == pytest.approx([each / 2 for each in expected])
