"""A budget for activations changes which layers run twice and how examples are grouped, and nothing else."""

import pytest
import torch

from raydpo.models.layout import choose_layout
from raydpo.models.logprobs import AnswerLogProbs
from raydpo.models.memory import measure
from raydpo.models.pretrained import load_model
from raydpo.schema.rank_events import Noted
from raydpo.train.activations import fit_activations, size
from raydpo.train.run_feeds import make_feed
from tests.train import jobs
from tests.train.gang import Place

pytestmark = pytest.mark.slow

LORA = {"rank": 4, "alpha": 8}
TINY = 1e-6
"""GB: less than one example takes."""


@pytest.fixture(scope="module")
def loaded(world, runs):
    """(scoring, training feed), as `build_trainer` makes them."""
    model = load_model(world.reference, "float32", "auto")
    layout, _ = choose_layout(model, "auto")
    feed = make_feed(Place(0, 1), runs.spec(), "train", None, layout)
    return AnswerLogProbs(model.train()), feed


@pytest.fixture(scope="module")
def one_layer(loaded):
    """GB that are enough when one of the two layers is recomputed."""
    scoring, feed = loaded
    longest = int(feed.sequence_lengths(torch.arange(len(feed.table)).numpy()).max())
    cost = measure(scoring, feed.layout, num_answers=2, length=longest)
    assert longest < 1024
    assert cost.bytes(1024, 1) < 0.8 * cost.bytes(1024, 0)
    return cost.bytes(1024, 1) / 1e9


def noted(run):
    (event,) = (event for event in run.of(Noted) if "layers recomputed" in event.text)
    return event.text


@pytest.mark.parametrize(
    ("num_ranks", "options"),
    [(1, {}), (1, {"lora": LORA}), (2, {"zero_stage": 3})],
    ids=["full", "lora", "full zero 3"],
)
def test_a_budget_gives_the_same_update(runs, one_layer, num_ranks, options):
    plain = runs.get(num_ranks=num_ranks, **options)
    budgeted = runs.get(num_ranks=num_ranks, activation_memory_gb=one_layer, **options)
    assert "0 of 2 layers recomputed" in noted(plain)
    assert "1 of 2 layers recomputed" in noted(budgeted)
    assert budgeted.losses == pytest.approx(plain.losses, abs=1e-6)
    assert budgeted.series("grad_norm") == pytest.approx(plain.series("grad_norm"), rel=1e-5)


def test_only_the_chosen_layers_run_twice(runs, gangs, one_layer):
    ((micro_batches, calls),) = gangs[1].run(jobs.count_layer_calls, runs.spec(activation_memory_gb=one_layer))
    assert micro_batches > 1
    assert calls == [2 * micro_batches, micro_batches]


@pytest.mark.parametrize(("num_ranks", "options"), [(1, {}), (2, {"zero_stage": 3})], ids=["one rank", "two, zero 3"])
def test_a_batch_that_does_not_fit_is_split_and_trained_all_the_same(runs, gangs, num_ranks, options):
    split = runs.get(num_ranks=num_ranks, activation_memory_gb=TINY, **options)
    assert split.losses == pytest.approx(runs.get().losses, abs=1e-5)
    assert "train.tokens_per_microbatch: 1,024 would not fit into train.activation_memory_gb" in noted(split)
    assert "more than train.activation_memory_gb" in noted(split)


def test_micro_batches_get_as_many_tokens_as_fit(loaded, runs, one_layer):
    scoring, feed = loaded
    examples = torch.arange(14).numpy()
    found = {}
    for budget in (None, one_layer / 2, TINY):
        train = runs.spec(activation_memory_gb=budget).config.train
        fitted, line = fit_activations(scoring, feed, train)
        found[budget] = [len(positions) for positions, _ in fitted.micro_batches(examples)]
        assert f"{fitted.tokens_per_microbatch:,} tokens a micro-batch" in line
        if budget == one_layer / 2:
            assert 1 < fitted.tokens_per_microbatch < 1024
    assert len(found[None]) < len(found[one_layer / 2]) < len(found[TINY])
    assert found[TINY] == [1] * 14
    assert all(sum(sizes) == 14 for sizes in found.values())


def test_sizes_are_for_people():
    assert [size(n) for n in (1_270_000_000, 130_000_000, 2_140_000)] == ["1.3 GB", "0.1 GB", "2.1 MB"]
