"""Answer masks, to the last digit: log-probs, losses and gradients against plain torch on one unpadded row at a time.

In float64, with norms that stay in it (transformers computes them in float32), so that 1e-9 is a bound on the layouts.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import logsigmoid, sigmoid
from transformers import LlamaConfig, LlamaForCausalLM

from raydpo.artifacts import ExampleTable, ExampleWriter
from raydpo.batches import lay_out
from raydpo.config.sections import ObjectiveSection
from raydpo.data.mismatched import add_mismatched
from raydpo.models.attention import register
from raydpo.models.logprobs import AnswerLogProbs
from raydpo.objectives.loss import Loss
from raydpo.reference.forward import score_rows
from raydpo.train.feed import Feed
from raydpo.train.step import BatchLoss, accumulate, observe
from tests.tables import Mask, write_examples

EXACT = 1e-9
LAYOUTS = ["packed", "padded"]
PROMPTS = [[5, 6, 7, 8], [9, 10], [11]]


class Row(NamedTuple):
    prompt: list[int]
    answer: list[int]
    mask: Mask = None


def model_of(layout: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    shape = {"vocab_size": 24, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    kernel = {"attn_implementation": register() if layout == "packed" else "sdpa"}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.4}
    model = LlamaForCausalLM(LlamaConfig(**shape, **heads, **kernel))
    for module in model.modules():
        for name, child in module.named_children():
            if "RMSNorm" in type(child).__name__:
                setattr(module, name, torch.nn.RMSNorm(child.weight.shape[0], eps=1e-6))
    return model.double()


def plain_nats(model: Any, row: Row) -> Tensor:
    """Log-probs of the covered tokens of one row, by the model's own forward."""
    ids = torch.tensor([row.prompt + row.answer])
    log_probs = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
    nats = log_probs.gather(1, ids[0, 1:, None]).squeeze(1)[len(row.prompt) - 1 :]
    return nats if row.mask is None else nats[torch.tensor(row.mask)]


@st.composite
def masked_rows(draw: st.DrawFn) -> Row:
    """Few tokens, so that rows begin alike and are equal often."""
    answer = draw(st.lists(st.integers(12, 13), min_size=1, max_size=6))
    marks = st.lists(st.booleans(), min_size=len(answer), max_size=len(answer))
    return Row(draw(st.sampled_from(PROMPTS)), answer, draw(st.none() | marks.filter(any)))


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {layout: model_of(layout) for layout in LAYOUTS}


@pytest.fixture(scope="module")
def plain() -> Any:
    return model_of("padded")


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=60, deadline=None)
@given(rows=st.lists(masked_rows(), min_size=1, max_size=8), budget=st.integers(1, 60))
def test_log_probs_of_covered_tokens(
    models: dict[str, Any], plain: Any, layout: Any, rows: list[Row], budget: int
) -> None:
    """Rows of one prompt, equal rows with other masks, rows with and without: each value is that of its row alone."""
    pairs = [(np.array(row.prompt, np.int32), np.array(row.answer, np.int32)) for row in rows]
    masks = [None if row.mask is None else np.array(row.mask) for row in rows]
    with torch.no_grad():
        expected = [plain_nats(plain, row) for row in rows]
        scoring = AnswerLogProbs(models[layout])
        batch = lay_out(pairs, layout, masks)
        torch.testing.assert_close(scoring(batch), torch.cat(expected), rtol=0, atol=EXACT)
        assert batch.sequences.tolist() == [s for s, nats in enumerate(expected) for _ in nats]
        values, _ = score_rows(scoring, pairs, budget, layout, "cpu", masks)
    assert [len(nats) for nats in values] == [len(nats) for nats in expected]
    for found, wanted in zip(values, expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy().astype(np.float32), rtol=0, atol=1e-6)


def test_the_model_reads_the_same_whatever_is_covered() -> None:
    rows = [(np.array(prompt, np.int32), np.array([12, 13, 14], np.int32)) for prompt in (PROMPTS[0], PROMPTS[0])]
    masks = [np.array([True, False, True]), np.array([False, True, True])]
    for layout in LAYOUTS:
        whole, part = lay_out(rows, layout), lay_out(rows, layout, masks)  # type: ignore[arg-type]
        assert torch.equal(whole.input_ids, part.input_ids)
        assert whole.segments == part.segments
        assert part.targets.tolist() == [12, 14, 13, 14]
        assert part.sequences.tolist() == [0, 0, 1, 1]


# --- losses and gradients --------------------------------------------------------------------------------------

PAIRS = [
    (Row(PROMPTS[0], [12, 13, 14, 2], [True, False, False, True]), Row(PROMPTS[0], [12, 13, 15, 2])),
    (Row(PROMPTS[0], [12, 13, 14, 2], [False, False, True, True]), Row(PROMPTS[0], [12, 2], [False, True])),
    (Row(PROMPTS[1], [16, 2]), Row(PROMPTS[1], [17, 18, 19, 2], [True, True, False, True])),
    (Row(PROMPTS[2], [16, 17, 2], [True, False, True]), Row(PROMPTS[2], [18, 19, 2], [True, False, True])),
]
"""Two pairs of one prompt whose chosen answers have the same ids and other masks; pairs with one mask, with two."""


class Plain:
    """A step's engine without DeepSpeed."""

    device = torch.device("cpu")

    def __init__(self, scoring: AnswerLogProbs) -> None:
        self.forward = scoring

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]


def table_of(folder: Path, examples: list[tuple[Row, ...]], labels: tuple[bool, ...] = ()) -> ExampleTable:
    ids = ((rows[0].prompt, [row.answer for row in rows]) for rows in examples)
    write_examples(folder, ids, masks=[[row.mask for row in rows] for rows in examples], labels=labels)
    return ExampleTable.open(folder, "train")


def reference_of(table: ExampleTable, reference: Any) -> dict[str, np.ndarray]:
    """Row key -> what a cache holds: float32 log-probs of the covered tokens, scored in one stream."""
    places = [(example, answer) for example in range(len(table)) for answer in range(table.num_answers)]
    rows = [(table.prompt_ids(example), table.answer_ids(example)[answer]) for example, answer in places]
    masks = [table.answer_masks(example)[answer] for example, answer in places]
    values, _ = score_rows(AnswerLogProbs(reference), rows, 10**6, "packed", "cpu", masks)
    keys = [table.row_keys(example)[answer] for example, answer in places]
    return dict(zip(keys, values, strict=True))


def step(
    table: ExampleTable, section: dict[str, Any], layout: Any, num_ranks: int = 1, budget: int = 10**6, answers: int = 2
) -> tuple[float, Tensor]:
    """Loss and gradient of all examples as one global batch, the ranks one after another."""
    model, loss = model_of(layout), Loss(ObjectiveSection.model_validate(section).terms)
    cache = reference_of(table, model_of("packed", seed=1))
    feeds = [
        Feed(table, rank, num_ranks, answers, budget, lambda keys: [cache[key] for key in keys], layout=layout)
        for rank in range(num_ranks)
    ]
    engine, examples, seen = Plain(AnswerLogProbs(model)), np.arange(len(table)), {}
    for kind in loss.batch_kinds:
        seen[kind] = loss.unseen(kind, len(table), "cpu")
        for feed in feeds:
            observe(engine.forward, loss, kind, feed.batches(examples, feed.columns(kind)), seen[kind])
    total = 0.0
    for feed in feeds:
        batch_loss = BatchLoss(loss, feed.counts(examples, loss), seen, 1e-3)
        sums = accumulate(engine, batch_loss, feed.batches(examples))
        found = sums.vector(["loss"])
        total += found[0]
    return total, torch.cat([p.grad.flatten() for p in model.parameters()])


def by_hand(table: ExampleTable, losses: Any) -> tuple[float, Tensor]:
    """Sum and gradient of `losses`(nats of each row under the policy, under the reference), both as lists of lists."""
    model, cache = model_of("padded"), reference_of(table, model_of("packed", seed=1))
    policy, reference = [], []
    for example in range(len(table)):
        ids = zip(table.answer_ids(example), table.answer_masks(example), strict=True)
        prompt = table.prompt_ids(example).tolist()
        rows = [Row(prompt, answer.tolist(), None if mask is None else mask.tolist()) for answer, mask in ids]
        policy.append([plain_nats(model, row) for row in rows])
        reference.append([torch.from_numpy(cache[key]).double() for key in table.row_keys(example)])
    loss_sum, mean = losses(policy, reference)
    mean.backward()
    return float(loss_sum.detach()), torch.cat([p.grad.flatten() for p in model.parameters()])


def dpo(policy: Any, reference: Any) -> tuple[Tensor, Tensor]:
    ratios = [[(p - r).sum() for p, r in zip(*both, strict=True)] for both in zip(policy, reference, strict=True)]
    each = torch.stack([-logsigmoid(0.1 * (chosen - rejected)) for chosen, rejected in ratios])
    return each.sum(), each.mean()


def simpo(policy: Any, _: Any) -> tuple[Tensor, Tensor]:
    """Means over the covered tokens."""
    each = torch.stack([-logsigmoid(2.0 * (chosen.mean() - rejected.mean() - 0.5)) for chosen, rejected in policy])
    return each.sum(), each.mean()


def sft(policy: Any, _: Any) -> tuple[Tensor, Tensor]:
    """The mean over all covered tokens of the chosen answers."""
    nats = torch.cat([chosen for chosen, _ in policy])
    return -nats.sum(), -nats.mean()


def ld_dpo(policy: Any, reference: Any) -> tuple[Tensor, Tensor]:
    """Covered tokens beyond as many as the other answer has count a half."""
    each = []
    for both in zip(policy, reference, strict=True):
        ratios = [p - r for p, r in zip(*both, strict=True)]
        shared = min(map(len, ratios))
        chosen, rejected = (one[:shared].sum() + 0.5 * one[shared:].sum() for one in ratios)
        each.append(-logsigmoid(0.1 * (chosen - rejected)))
    return torch.stack(each).sum(), torch.stack(each).mean()


CASES = [
    ({"name": "dpo", "beta": 0.1}, dpo),
    ({"name": "dpo", "beta": 0.1, "ld_alpha": 0.5}, ld_dpo),
    ({"name": "simpo", "beta": 2.0, "gamma_beta_ratio": 0.5}, simpo),
    ({"name": "dpo", "weight": 0.0, "plus": ["sft"]}, sft),
]


@pytest.mark.parametrize(("section", "losses"), CASES[:3], ids=["dpo", "dpo with ld_alpha", "simpo"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_on_pairs(tmp_path: Path, section: dict[str, Any], losses: Any, layout: str) -> None:
    table = table_of(tmp_path, PAIRS)
    expected, gradient = by_hand(table, losses)
    assert gradient.norm() > 0
    for num_ranks, budget in ((1, 10**6), (1, 1), (2, 12)):
        found, ours = step(table, section, layout, num_ranks, budget)
        assert found == pytest.approx(expected, abs=EXACT, rel=0)
        torch.testing.assert_close(ours, gradient, rtol=0, atol=EXACT)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sft_divides_by_covered_tokens(tmp_path: Path, layout: str) -> None:
    table = table_of(tmp_path, [rows[:1] for rows in PAIRS])
    assert table.loss_lengths.tolist() == [[2], [2], [2], [2]]
    expected, gradient = by_hand(table, lambda policy, reference: sft([(one[0], None) for one in policy], reference))
    found, ours = step(table, {"name": "sft"}, layout, 2, 8, answers=1)
    assert found == pytest.approx(expected, abs=EXACT, rel=0)
    torch.testing.assert_close(ours, gradient, rtol=0, atol=EXACT)


def test_masks_change_the_loss(tmp_path: Path) -> None:
    """Else nothing above is tested."""
    masked = step(table_of(tmp_path / "masked", PAIRS), CASES[0][0], "packed")
    bare = [tuple(row._replace(mask=None) for row in rows) for rows in PAIRS]
    whole = step(table_of(tmp_path / "whole", bare), CASES[0][0], "packed")
    assert abs(masked[0] - whole[0]) > 1e-3
    assert (masked[1] - whole[1]).norm() > 1e-3


LABELLED = [PAIRS[0][:1], PAIRS[2][1:], PAIRS[3][:1], PAIRS[1][1:]]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("max_length", [100, 7], ids=["whole", "cut"])
def test_kto(tmp_path: Path, layout: str, max_length: int) -> None:
    """Own and mismatched answers keep their masks; a mismatched one that is cut keeps what is left of it."""
    labels = (True, False, True, False)
    single = table_of(tmp_path / "single", LABELLED, labels)
    writer = ExampleWriter(tmp_path, "train")
    add_mismatched(single, writer, "train", max_length)
    writer.close()
    table = ExampleTable.open(tmp_path, "train")
    masks = [table.answer_masks(example)[1] for example in range(4)]
    assert [None if mask is None else mask.tolist() for mask in masks] == {
        100: [[True, True, False, True], [True, False, True], [False, True], [True, True, False, True]],
        7: [[True, True, False], [True, False, True], [False, True], [True, True, False]],
    }[max_length]

    def kto(policy: Any, reference: Any) -> tuple[Tensor, Tensor]:
        ratios = [[(p - r).sum() for p, r in zip(*both, strict=True)] for both in zip(policy, reference, strict=True)]
        z = torch.stack([other for _, other in ratios]).mean().clamp(min=0).detach()
        signs = [1 if label else -1 for label in labels]
        each = torch.stack([sigmoid(-sign * 0.1 * (u - z)) for sign, (u, _) in zip(signs, ratios, strict=True)])
        return each.sum(), each.mean()

    expected, gradient = by_hand(table, kto)
    assert gradient.norm() > 0
    for num_ranks, budget in ((1, 10**6), (2, 9)):
        found, ours = step(table, {"name": "kto", "beta": 0.1}, layout, num_ranks, budget, answers=1)
        assert found == pytest.approx(expected, abs=EXACT, rel=0)
        torch.testing.assert_close(ours, gradient, rtol=0, atol=EXACT)


def test_a_cut_that_leaves_nothing_covered_has_no_log_ratio(tmp_path: Path) -> None:
    rows = [(Row([5, 6, 7, 8], [12, 2]),), (Row([9], [14, 15, 2], [False, False, True]),)]
    single = table_of(tmp_path / "single", rows)
    writer = ExampleWriter(tmp_path, "train")
    add_mismatched(single, writer, "train", 6)
    writer.close()
    table = ExampleTable.open(tmp_path, "train")
    assert table.loss_lengths.tolist() == [[2, 0], [1, 2]]
    cache = reference_of(table, model_of("packed", seed=1))
    assert [len(cache[key]) for key in table.row_keys(0)] == [2, 0]
    for layout in LAYOUTS:
        found, gradient = step(table, {"name": "kto"}, layout, 1, 1, answers=1)
        assert np.isfinite(found)
        assert bool(gradient.isfinite().all())


@settings(max_examples=40, deadline=None)
@given(examples=st.lists(st.tuples(masked_rows(), masked_rows()), min_size=1, max_size=6), per_shard=st.integers(1, 3))
def test_a_table_gives_back_masks_and_counts(examples: list[tuple[Row, Row]], per_shard: int) -> None:
    """Also where shards without a mask stand beside those with one."""
    with tempfile.TemporaryDirectory() as folder:
        writer = ExampleWriter(Path(folder), "train", per_shard)
        for rows in examples:
            writer.add([1], [row.answer for row in rows], ["a", "b"], "x:1", answer_masks=[row.mask for row in rows])
        writer.close()
        table = ExampleTable.open(Path(folder), "train")
        for example, rows in enumerate(examples):
            found = table.answer_masks(example)
            assert [None if mask is None else mask.tolist() for mask in found] == [row.mask for row in rows]
        expected = [[len(row.answer) if row.mask is None else sum(row.mask) for row in rows] for rows in examples]
        assert table.loss_lengths.tolist() == expected
        assert table.answer_lengths.tolist() == [[len(row.answer) for row in rows] for rows in examples]
