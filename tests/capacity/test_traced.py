"""What a model costs without its weights is what its weights cost."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.counted_training import write_model
from raydpo.capacity.skeleton import depths, skeleton_of
from raydpo.capacity.traced import _packed, trace
from raydpo.errors import ConfigError
from raydpo.models.layout import choose_layout
from raydpo.models.logprobs import AnswerLogProbs
from raydpo.models.lora import add_lora
from raydpo.models.memory import ActivationCost, Living, measure
from raydpo.models.pretrained import load_model
from raydpo.models.text_part import freeze_what_text_does_not_reach

LORA = {"rank": 4, "alpha": 8, "target_modules": "all-linear"}
SMALL = {"vocab_size": 300, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {**SMALL, "intermediate_size": 48, "tie_word_embeddings": True},
    "gemma2": {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 64},
    "gpt_neox": {**SMALL, "intermediate_size": 64},
    "bloom": {"vocab_size": 300, "hidden_size": 32, "n_head": 4, "n_layer": 2},
}


def made(folder: Path, family: str, **shape: Any) -> Path:
    write_model(folder, family, {**SHAPES[family], **shape})
    return folder


def measured(folder: Path, dtype: str, lora: Any, length: int) -> tuple[str, ActivationCost, list[int]]:
    """(layout, cost, trained and frozen weights) as a start measures them."""
    model = load_model(folder, dtype, "auto")
    layout, _ = choose_layout(model, "auto")
    freeze_what_text_does_not_reach(model)
    model = model if lora is None else add_lora(model, seed=0, **lora)
    model.train()
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad == wanted) for wanted in (True, False)]
    return layout, measure(AnswerLogProbs(model), layout, num_answers=2, length=length), counts


CASES = [
    ("llama", None, "float32"),
    ("llama", LORA, "bfloat16"),
    ("gemma2", LORA, "float32"),
    ("gpt_neox", None, "bfloat16"),
    ("bloom", None, "float32"),  # ALiBi: padded rows
]


@pytest.mark.parametrize(
    ("family", "lora", "dtype"), CASES, ids=[f"{f}-{'lora' if lora else 'full'}-{d}" for f, lora, d in CASES]
)
def test_what_is_traced_without_weights_is_what_a_start_measures(
    family: str, lora: Any, dtype: str, tmp_path: Path
) -> None:
    folder = made(tmp_path / "model", family)
    layout, cost, counts = measured(folder, dtype, lora, 96)
    skeleton = skeleton_of(folder, lora)
    found = trace(
        folder, dtype=dtype, lora=lora, attention="auto", num_answers=2, length=96, num_layers=skeleton.num_layers
    )
    assert [skeleton.trained, skeleton.frozen] == counts
    assert (found.why, found.layout) == ("", layout)
    assert found.training == cost
    assert 0 < found.forward < cost.kept
    assert 0 < found.forward_head < cost.head


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_forward_alone_costs_the_same_at_any_depth(tmp_path: Path, dtype: str) -> None:
    """As a real one of four layers, counted; a forward keeps nothing of the layers behind it."""
    shape: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 224}
    costs = {
        layers: trace(
            made(tmp_path / str(layers), "llama", **shape, num_hidden_layers=layers),
            dtype=dtype,
            lora=None,
            attention="auto",
            num_answers=1,
            length=128,
            num_layers=layers,
        ).forward
        for layers in (4, 12, 80)
    }
    assert costs[12] == costs[80] == pytest.approx(costs[4], rel=0.01)
    model = load_model(tmp_path / "4", dtype, "auto")
    choose_layout(model, "auto")
    scoring, peaks = AnswerLogProbs(model), []
    for tokens in (128, 256):
        with torch.no_grad(), Living() as living:
            scoring.hidden(_packed(tokens))
        peaks.append(max(living.trace))
    assert costs[80] == pytest.approx((peaks[1] - peaks[0]) / 128, rel=0.05)


def test_a_few_layers_of_each_kind_say_what_many_cost(tmp_path: Path) -> None:
    folder = made(tmp_path / "model", "gemma2", num_hidden_layers=10)
    assert depths(folder) == (2, 4)  # layers with and without a window take turns
    _, cost, _ = measured(folder, "float32", None, 96)
    found = trace(folder, dtype="float32", lora=None, attention="auto", num_answers=2, length=96, num_layers=10)
    assert found.training.num_layers == cost.num_layers == 10
    for name in ("kept", "kept_again", "passing", "passing_again", "head"):
        assert getattr(found.training, name) == pytest.approx(getattr(cost, name), rel=1e-9), name


def test_a_tied_head_is_counted_once_and_numbers_of_kinds_add_up(tmp_path: Path) -> None:
    skeleton = skeleton_of(made(tmp_path / "model", "llama"))
    assert skeleton.is_tied
    assert skeleton.head == skeleton.by_kind["embedding"] == 300 * 32
    assert sum(skeleton.by_kind.values()) == skeleton.total == skeleton.base
    assert skeleton.key_value_numbers == 2 * 2 * 32
    adapted = skeleton_of(tmp_path / "model", LORA)
    assert adapted.by_kind["adapter"] == adapted.trained < adapted.frozen == skeleton.total
    assert adapted.head == 0


def test_nothing_is_left_of_a_trace(tmp_path: Path) -> None:
    folder = made(tmp_path / "model", "llama")
    state = torch.random.get_rng_state()
    trace(folder, dtype="float32", lora=LORA, attention="auto", num_answers=2, length=32, num_layers=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.ones(2).sum().item() == 2


@pytest.mark.parametrize(("family", "num_sharing", "sent"), [("llama", 2, 256), ("gemma2", 4, 192)])
def test_ranks_that_share_a_stream_have_a_part_of_its_cost(
    family: str, num_sharing: int, sent: int, tmp_path: Path
) -> None:
    """Sent: four exchanges of 32 float32 in two layers, of one of P tokens, to P - 1 of P ranks; 2 heads of keys are 4 then."""
    folder = made(tmp_path / "model", family)
    shape: dict[str, Any] = {"dtype": "float32", "lora": None, "attention": "auto", "num_answers": 2, "length": 96}
    alone, shared = (trace(folder, **shape, num_layers=2, num_sharing=number) for number in (1, num_sharing))
    assert (alone.sent, shared.sent) == (0, sent)
    assert shared.training.kept == pytest.approx(alone.training.kept / num_sharing, rel=0.1)
    assert shared.training.kept_again == pytest.approx(alone.training.kept_again / num_sharing, rel=0.1)
    assert (shared.training.head, shared.forward) == (alone.training.head, alone.forward)


def test_rows_and_heads_that_cannot_be_shared_are_refused(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"dtype": "float32", "lora": None, "num_answers": 2, "length": 96, "num_layers": 2}
    with pytest.raises(ConfigError, match="rows of this model are padded"):
        trace(made(tmp_path / "bloom", "bloom"), **shape, attention="auto", num_sharing=2)
    with pytest.raises(ConfigError, match="3 needs a number of attention heads that 3 divides"):
        trace(made(tmp_path / "llama", "llama"), **shape, attention="auto", num_sharing=3)
