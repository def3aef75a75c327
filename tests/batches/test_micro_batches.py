"""Tensors of a micro-batch, by hand: where each token stands, what predicts it, whose it is."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from raydpo.batches import MicroBatch, collate, collate_rows, lay_out
from raydpo.batches.micro_batches import pack_rows


def row(prompt: list[int], answer: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(prompt, dtype=np.int32), np.array(answer, dtype=np.int32)


ROWS = [row([1, 2], [5, 6]), row([1, 2], [5, 7, 8]), row([3], [9])]
"""Two answers to one prompt that begin with the same token, and one to another prompt."""


def test_padded_rows() -> None:
    batch = collate_rows(ROWS, pad_id=4)
    assert batch.input_ids.tolist() == [[1, 2, 5, 6, 4], [1, 2, 5, 7, 8], [3, 9, 4, 4, 4]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert batch.predictors.tolist() == [1, 2, 6, 7, 8, 10]
    assert batch.targets.tolist() == [5, 6, 5, 7, 8, 9]
    assert batch.sequences.tolist() == [0, 0, 1, 1, 1, 2]
    assert (batch.num_sequences, batch.num_chunks) == (3, 1)
    assert (batch.position_ids, batch.segments) == (None, None)
    assert collate_rows(ROWS).input_ids[2].tolist() == [3, 9, 0, 0, 0], "padded with 0"


def test_what_predicts_a_token_stands_before_it() -> None:
    """In either layout: the flattened ids at a predictor are the token before the target."""
    before = [token for prompt, answer in ROWS for token in [prompt[-1], *answer[:-1]]]
    for layout in ("padded", "packed"):
        batch = lay_out(ROWS, layout)  # type: ignore[arg-type]
        assert batch.input_ids.flatten()[batch.predictors].tolist() == before


def test_a_packed_stream_shares_the_common_beginning() -> None:
    batch = pack_rows(ROWS)
    # places:                       0  1  2  3 | 4  5 | 6  7     (1 2 5 is shared by the first two rows)
    assert batch.input_ids.tolist() == [[1, 2, 5, 6, 7, 8, 3, 9]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 3, 4, 0, 1]]
    assert batch.segments == ((0, 4, 0, 0), (4, 6, 0, 3), (6, 8, 6, 6))
    assert batch.predictors.tolist() == [1, 2, 1, 2, 4, 6]
    assert batch.targets.tolist() == [5, 6, 5, 7, 8, 9]
    assert batch.sequences.tolist() == [0, 0, 1, 1, 1, 2]
    assert (batch.num_sequences, batch.attention_mask) == (3, None)
    assert {tensor.dtype for tensor in (batch.input_ids, batch.predictors, batch.targets)} == {torch.int64}


def test_equal_rows_are_read_once() -> None:
    batch = pack_rows([row([1], [2, 3]), row([1], [2, 3]), row([1], [2, 3, 4])])
    assert batch.input_ids.tolist() == [[1, 2, 3, 3, 4]], "one of each stays its own: the last token is not shared"
    assert batch.segments == ((0, 3, 0, 0), (3, 5, 0, 2))
    assert batch.predictors.tolist() == [0, 1, 0, 1, 0, 1, 3]
    assert batch.sequences.tolist() == [0, 0, 1, 1, 2, 2, 2]


def test_rows_share_only_with_those_that_follow() -> None:
    """The same prompt again, after another one, is a segment of its own."""
    batch = pack_rows([row([1, 2], [5]), row([3], [9]), row([1, 2], [6])])
    assert batch.input_ids.tolist() == [[1, 2, 5, 3, 9, 1, 2, 6]]
    assert batch.segments == ((0, 3, 0, 0), (3, 5, 3, 3), (5, 8, 5, 5))
    assert pack_rows([row([1], [7, 8]), row([1], [9])]).segments == ((0, 3, 0, 0), (3, 4, 0, 1))


def test_layouts_have_their_names() -> None:
    assert lay_out(ROWS, "packed").segments is not None
    assert lay_out(ROWS, "padded").segments is None


@dataclass
class Table:
    """Three examples of two answers each."""

    is_weighted: bool = True
    prompt_lengths: np.ndarray = field(default_factory=lambda: np.array([1, 2, 1]))
    answer_lengths: np.ndarray = field(default_factory=lambda: np.array([[1, 2], [1, 1], [2, 1]]))
    loss_lengths: np.ndarray = field(default_factory=lambda: np.array([[1, 2], [1, 1], [2, 1]]))
    labels: np.ndarray = field(default_factory=lambda: np.array([True, False, True]))
    weights: np.ndarray = field(default_factory=lambda: np.array([1.0, 0.5, 2.0], dtype=np.float32))

    def __len__(self) -> int:
        return 3

    def prompt_ids(self, example: int) -> np.ndarray:
        return np.arange(self.prompt_lengths[example], dtype=np.int32) + 10 * example

    def answer_ids(self, example: int) -> list[np.ndarray]:
        return [np.full(n, 100 * (example + 1) + a, dtype=np.int32) for a, n in enumerate(self.answer_lengths[example])]

    def answer_masks(self, example: int) -> list[np.ndarray | None]:
        return [None, None]

    def row_keys(self, example: int) -> list[str]:
        return [f"{example}-{answer}" for answer in range(2)]

    def source(self, example: int) -> str:
        return f"table:{example}"


def nats_of(keys: list[str]) -> list[np.ndarray]:
    """A value by example, answer and token, in float64 as nobody stores it."""
    table = Table()
    found = []
    for key in keys:
        example, answer = map(int, key.split("-"))
        found.append(-(10.0 * example + answer) - 0.25 * np.arange(table.answer_lengths[example][answer]))
    return found


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_micro_batch_names_its_examples(layout: str) -> None:
    batch = collate(Table(), [2, 0], [0, 1], nats_of, num_chunks=3, positions=[7, 4], layout=layout)  # type: ignore[arg-type]
    assert batch.num_examples == 2
    assert batch.answers.tolist() == [[0, 1], [2, 3]]
    assert batch.sequences.targets.tolist() == [300, 300, 301, 100, 101, 101]
    assert (batch.sequences.num_sequences, batch.sequences.num_chunks) == (4, 3)
    assert batch.reference_nats is not None
    assert batch.reference_nats.tolist() == [-20.0, -20.25, -21.0, 0.0, -1.0, -1.25]
    assert batch.reference_nats.dtype == torch.float32
    assert batch.labels.tolist() == [True, True]
    assert batch.weights is not None
    assert batch.weights.tolist() == [2.0, 1.0]
    assert batch.positions.tolist() == [7, 4]
    assert (batch.answers.dtype, batch.positions.dtype) == (torch.int64, torch.int64)
    assert (batch.sequences.segments is None) == (layout == "padded")


def test_columns_choose_and_order_the_answers() -> None:
    batch = collate(Table(), [1], [1], nats_of)
    assert batch.answers.tolist() == [[0]]
    assert batch.sequences.targets.tolist() == [201]
    assert batch.reference_nats is not None
    assert batch.reference_nats.tolist() == [-11.0]
    both = collate(Table(), [1], [1, 0], nats_of)
    assert both.sequences.targets.tolist() == [201, 200]


def test_what_is_not_there_is_none() -> None:
    batch = collate(Table(is_weighted=False), [0, 1, 2], [0, 1], None)
    assert (batch.reference_nats, batch.weights) == (None, None)
    assert batch.positions.tolist() == [0, 1, 2], "by default in their order"
    assert batch.labels.tolist() == [True, False, True]


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_an_empty_micro_batch_is_one_token_that_counts_nothing(layout: str) -> None:
    batch = collate(Table(), [], [0, 1], nats_of, num_chunks=2, positions=[], layout=layout)  # type: ignore[arg-type]
    assert batch.num_examples == 0
    assert batch.answers.shape == (0, 2)
    assert batch.sequences.targets.tolist() == [0]
    assert batch.sequences.input_ids.flatten().tolist() == [0, 0]
    assert batch.sequences.num_chunks == 2
    assert batch.reference_nats is not None
    assert batch.reference_nats.tolist() == [0.0]
    assert (len(batch.labels), len(batch.positions)) == (0, 0)
    assert collate(Table(), [], [0], None).reference_nats is None


def test_a_micro_batch_moves_as_a_whole() -> None:
    batch = collate(Table(), [0, 1], [0, 1], nats_of)
    moved = batch.to("meta")
    assert isinstance(moved, MicroBatch)
    tensors = (moved.answers, moved.labels, moved.positions, moved.reference_nats, moved.weights)
    assert {tensor.device.type for tensor in tensors if tensor is not None} == {"meta"}
    assert moved.sequences.input_ids.device.type == "meta"
    assert moved.sequences.num_sequences == batch.sequences.num_sequences
    assert collate(Table(is_weighted=False), [0], [0], None).to("meta").weights is None
