"""SFT: the mean over answer tokens of the global batch, computed by hand from plain forwards."""

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from raydpo.artifacts import ExampleTable
from raydpo.batches import Order
from raydpo.config.sections import ObjectiveSection
from raydpo.objectives.loss import Loss
from raydpo.schema.rank_events import Probed
from raydpo.train.feed import Feed
from tests.train.world import GLOBAL_BATCH, NUM_TRAIN, plain_nats

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def table(world):
    return ExampleTable.open(world.data, "train")


def test_the_denominator_is_answer_tokens_of_the_answers_that_are_read(table):
    feed = Feed(table, 0, 1, 1, 512, None)
    examples = np.array([5, 0, 7])
    tokens = sum(len(table.answer_ids(e)[0]) for e in examples)
    assert feed.counts(examples, Loss(ObjectiveSection(name="sft").terms)) == [tokens]
    pairs = Feed(table, 0, 1, 2, 512, None)
    assert pairs.counts(examples, Loss(ObjectiveSection(name="dpo").terms)) == [3]
    both_terms = Loss(ObjectiveSection(name="dpo", plus=["sft", "nll"]).terms)
    assert pairs.counts(examples, both_terms) == [3, tokens, 3]
    both = [[len(table.prompt_ids(e)) + len(answer) for answer in table.answer_ids(e)] for e in examples]
    assert pairs.row_lengths(examples).tolist() == both
    assert feed.row_lengths(examples).tolist() == [[first] for first, _ in both]


def test_ranks_share_a_global_batch(table):
    examples = np.arange(3, 30)
    shares = [Feed(table, rank, 3, 2, 300, None).micro_batches(examples) for rank in range(3)]
    assert sorted(place for share in shares for micro, _ in share for place in micro) == list(range(27))
    batches = list(Feed(table, 1, 3, 2, 300, None).batches(examples, first=100))
    assert [batch.positions.tolist() for batch in batches] == [[100 + p for p in micro] for micro, _ in shares[1]]
    assert len({len(share) for share in shares}) == 1


@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 0), (2, 0), (2, 3)])
def test_the_loss_of_the_first_batch_by_hand(runs, world, table, num_ranks, stage):
    run = runs.get(num_ranks=num_ranks, objective="sft", zero_stage=stage)
    model = AutoModelForCausalLM.from_pretrained(world.reference)
    batch = Order(NUM_TRAIN, GLOBAL_BATCH, 1, seed=3).examples(0)
    nats = np.concatenate([plain_nats(model, table.prompt_ids(e), table.answer_ids(e)[0]) for e in batch])
    assert run.losses[0] == pytest.approx(-nats.sum() / len(nats), abs=1e-5)
    assert run.series("logps/chosen")[0] == pytest.approx(nats.sum() / len(batch), rel=1e-6)
    held_out = ExampleTable.open(world.data, "eval")
    every = [plain_nats(model, held_out.prompt_ids(e), held_out.answer_ids(e)[0]) for e in range(len(held_out))]
    mean = -np.concatenate(every).sum() / sum(map(len, every))
    assert run.first_evaluation["eval/loss"] == pytest.approx(mean, abs=1e-5)
    assert not run.of(Probed)


def test_sft_learns_the_same_on_two_ranks(runs):
    one, two = runs.get(objective="sft"), runs.get(num_ranks=2, objective="sft", zero_stage=3)
    assert two.losses == pytest.approx(one.losses, abs=1e-5)
    assert one.losses[-1] < one.losses[0] - 0.3
