"""Several pairs of one prompt in a global batch: their prompt and equal answers are read once, and no number changes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from raydpo.artifacts import ExampleTable
from raydpo.config.sections import ObjectiveSection
from raydpo.models.attention import register
from raydpo.models.logprobs import AnswerLogProbs
from raydpo.objectives.loss import Loss
from raydpo.schema.rows import row_key
from raydpo.train.feed import Feed
from raydpo.train.step import BatchLoss, accumulate
from tests.tables import write_examples

pytestmark = pytest.mark.slow

PROMPT, OTHER = [5, 6, 7, 8, 9, 10], [11, 12]
BEST, *WORSE = [20, 21, 2], [22, 2], [20, 23, 24, 2], [25, 2]
PAIRS = [(PROMPT, BEST, WORSE[0]), (OTHER, [30, 2], [31, 2]), *((PROMPT, BEST, worse) for worse in WORSE[1:])]
SECTIONS = [{"name": "dpo", "ld_alpha": 0.5}, {"name": "orpo"}, {"name": "dpo", "plus": ["sft"]}]


class Plain:
    """A step's engine without DeepSpeed. (Tolerances below are those of a norm that transformers computes in float32.)"""

    device = torch.device("cpu")

    def __init__(self, scoring):
        self.forward, self.tokens = scoring, 0
        scoring.model.get_decoder().register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs):
        self.tokens += kwargs["input_ids"].numel()

    def backward(self, loss):
        loss.backward()


def table_of(folder, pairs):
    write_examples(folder, ((prompt, answers) for prompt, *answers in pairs))
    return ExampleTable.open(folder, "train")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return table_of(tmp_path_factory.mktemp("pairs"), PAIRS)


def lookup(keys):
    lengths = {row_key(prompt, answer): len(answer) for prompt, *answers in PAIRS for answer in answers}
    return [np.array([-0.1 * int(key[:2], 16) / 16] * lengths[key], np.float32) for key in keys]


def step(table, section, layout, budget=10**6):
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "attn_implementation": register()}
    if layout == "padded":
        heads["attn_implementation"] = "eager"
    model = LlamaForCausalLM(LlamaConfig(**shape, **heads)).double()
    engine, loss = Plain(AnswerLogProbs(model)), Loss(ObjectiveSection.model_validate(section).terms)
    feed = Feed(table, 0, 1, 2, budget, lookup if loss.needs_reference else None, layout=layout)
    examples = np.arange(len(table))
    batch_loss = BatchLoss(loss, feed.counts(examples, loss), {}, 1e-3)
    sums = accumulate(engine, batch_loss, feed.batches(examples))
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    return engine.tokens, sums.vector(["loss", "rewards/margins"]), gradient


@pytest.mark.parametrize("section", SECTIONS, ids=str)
def test_prompt_and_equal_answers_are_read_once_and_no_number_changes(table, section):
    rows, expected, padded = step(table, section, "padded")
    tokens, found, packed = step(table, section, "packed")
    assert tokens == len(PROMPT) + len(BEST) + sum(map(len, WORSE)) + len(OTHER) + 2 + 2
    assert rows == 8 * 10
    assert found == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-7)
    assert packed.norm() > 0


def test_a_prompt_with_more_answers_than_the_budget_is_read_again(table):
    tokens, found, gradient = step(table, {"name": "dpo"}, "packed", budget=len(PROMPT) + 12)
    _, expected, whole = step(table, {"name": "dpo"}, "packed")
    assert tokens == 2 * len(PROMPT) + 2 * len(BEST) + sum(map(len, WORSE)) + len(OTHER) + 2 + 2
    assert found == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(gradient, whole, rtol=1e-5, atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=20),
    st.integers(1, 3),
    st.integers(1, 80),
)
def test_every_pair_stands_once_and_those_of_one_prompt_together(tmp_path_factory, sizes, num_ranks, budget):
    pairs = [([3 + number] * (2 + 3 * number), [1] * chosen, [2] * rejected) for number, chosen, rejected in sizes]
    table = table_of(tmp_path_factory.mktemp("sizes"), pairs)
    feeds = [Feed(table, rank, num_ranks, 2, budget, None, layout="packed") for rank in range(num_ranks)]
    shares = [[micro for micro, _ in feed.micro_batches(np.arange(len(pairs)))] for feed in feeds]
    micro_batches = [micro for share in shares for micro in share]
    assert sorted(position for micro in micro_batches for position in micro) == list(range(len(pairs)))
    assert len({len(share) for share in shares}) == 1
    for micro in micro_batches:
        prompts = [sizes[position][0] for position in micro]
        runs = [number for at, number in enumerate(prompts) if at == 0 or prompts[at - 1] != number]
        tokens = sum(2 + 3 * number for number in runs) + sum(sum(sizes[position][1:]) for position in micro)
        assert tokens <= budget or len(micro) == 1
