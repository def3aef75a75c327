"""The balancing loss of experts: one value and one gradient however a global batch is laid out, and transformers' own.

Decision: expected values come from plain forwards of padded rows, all at once, with router logits as transformers returns
them; the step is run in every layout without DeepSpeed in float64, and with it on two ranks.
"""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from raydpo.artifacts import ExampleTable
from raydpo.batches import collate_rows, lay_out
from raydpo.config.sections import ObjectiveSection
from raydpo.models.attention import register
from raydpo.models.logprobs import AnswerLogProbs
from raydpo.models.lora import add_lora
from raydpo.models.routing import row_counts
from raydpo.objectives.loss import Loss
from raydpo.train.balance import Balance, Experts, observe_experts
from raydpo.train.feed import Feed
from raydpo.train.step import BatchLoss, accumulate
from tests.models.test_attention import norms_in_float64
from tests.tables import write_examples

PROMPT, OTHER = [5, 6, 7, 8, 9, 10], [11, 12]
PAIRS = [
    (PROMPT, [20, 21, 2], [22, 2]),
    (OTHER, [30, 2], [31, 33, 34, 2]),
    (PROMPT, [20, 21, 2], [20, 23, 24, 2]),  # an answer of the first pair once more, and one that begins as it does
    (PROMPT, [20, 21, 2], [25, 2]),
]
SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 64,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
WHOLE, SINGLE = 10**6, 1


class Plain:
    """A step's engine without DeepSpeed."""

    device = torch.device("cpu")

    def __init__(self, scoring):
        self.forward = self.routed = scoring

    def backward(self, loss):
        loss.backward()


def model_of(attention, family="qwen3_moe"):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SHAPE, **EXPERTS, intermediate_size=24, head_dim=8, norm_topk_prob=True)
    choices = {"attn_implementation": attention, "experts_implementation": "eager"}  # the other ones know no float64
    model = AutoModelForCausalLM.from_config(config, **choices).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # small weights leave all experts equally likely
    return routers_in_float64(norms_in_float64(model))


def routers_in_float64(model):
    """transformers' routers have a softmax in float32, which leaves nothing of nine digits."""

    def forward(router, hidden):
        logits = functional.linear(hidden.reshape(-1, router.hidden_dim), router.weight)
        value, index = logits.softmax(-1).topk(router.top_k, dim=-1)
        return logits, value / value.sum(-1, keepdim=True), index

    for module in model.modules():
        if type(module).__name__.endswith("TopKRouter"):
            module.forward = partial(forward, module)
    return model


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    write_examples(folder, ((prompt, answers) for prompt, *answers in PAIRS))
    return ExampleTable.open(folder, "train")


def rows():
    return [(np.array(prompt), np.array(answer)) for prompt, *answers in PAIRS for answer in answers]


def gradient_of(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def step(table, layout, budget, num_ranks=1, model=None, coefficient=1.0):
    """(balancing loss, gradient of objective and balancing loss) of one global batch; ranks one after the other."""
    model = model or model_of(register() if layout == "packed" else "sdpa")
    engine, loss = Plain(AnswerLogProbs(model)), Loss(ObjectiveSection(name="simpo").terms)
    examples, experts = np.arange(len(table)), Experts(coefficient, 2)
    feeds = [Feed(table, rank, num_ranks, 2, budget, None, layout=layout) for rank in range(num_ranks)]
    batches = [list(feed.batches(examples)) for feed in feeds]
    sums = sum(observe_experts(engine.routed, experts, of_rank, "cpu") for of_rank in batches)
    balance = Balance(experts, sums) if coefficient else None
    for of_rank in batches:
        accumulate(engine, BatchLoss(loss, feeds[0].counts(examples, loss), {}, 1e-3, balance), of_rank)
    return float(Balance(experts, sums).loss), gradient_of(model)


def brute_force(model):
    """The balancing loss of all rows, padded, in float64 and as transformers has it."""
    batch = collate_rows(rows())
    found = model.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_router_logits=True)
    mask = batch.attention_mask.flatten().repeat(len(found.router_logits)).bool()
    probability = torch.cat(found.router_logits).softmax(-1)[mask]
    chosen = torch.zeros_like(probability).scatter_(1, probability.topk(2, dim=-1).indices, 1.0)
    return 4 * (chosen.mean(0) * probability.mean(0)).sum(), load_balancing_loss_func(
        found.router_logits, 4, 2, batch.attention_mask
    )


@pytest.fixture(scope="module")
def expected(table):
    """(balancing loss, its gradient, the objective's gradient) by brute force."""
    model = model_of("sdpa")
    loss, theirs = brute_force(model)
    assert float(loss) == pytest.approx(float(theirs), rel=1e-6)
    loss.backward()
    of_balance = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])
    _, of_objective = step(table, "padded", WHOLE, coefficient=0.0)
    return float(loss), of_balance, of_objective


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("budget", [WHOLE, 20, SINGLE])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_every_layout_has_one_balancing_loss_and_one_gradient(table, expected, layout, budget, num_ranks):
    value, of_balance, of_objective = expected
    found, gradient = step(table, layout, budget, num_ranks)
    assert found == pytest.approx(value, rel=1e-12)
    assert of_balance.norm() > 1e-3
    torch.testing.assert_close(gradient, of_objective + of_balance, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("coefficient", [0.5, 3.0])
def test_the_coefficient_is_a_factor_of_it_alone(table, expected, coefficient):
    value, of_balance, of_objective = expected
    found, gradient = step(table, "packed", WHOLE, coefficient=coefficient)
    assert found == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(gradient, of_objective + coefficient * of_balance, rtol=1e-9, atol=1e-9)


def test_going_down_the_gradient_evens_out_the_experts():
    """A sign: of experts that are asked unevenly, the loss falls toward k of top-k, which it has when all are alike."""
    model = model_of("sdpa")
    losses = []
    for _ in range(60):
        loss, _ = brute_force(model)
        losses.append(float(loss))
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for layer in model.model.layers:
                layer.mlp.gate.weight -= 0.3 * layer.mlp.gate.weight.grad
    assert losses[0] > 2.05
    assert losses[-1] < losses[0] - 0.03
    assert losses[-1] > 1.9


def test_a_token_counts_in_every_row_that_holds_it(table):
    packed, padded = lay_out(rows(), "packed"), collate_rows(rows())
    assert row_counts(packed).sum() == padded.attention_mask.sum() == sum(len(p) + len(a) for p, a in rows())
    for token in range(64):
        counted = row_counts(packed)[packed.input_ids.flatten() == token].sum()
        assert counted == (padded.input_ids[padded.attention_mask == 1] == token).sum()
    assert packed.input_ids.numel() < row_counts(packed).sum()


def test_an_adapter_is_balanced_by_its_hidden_states(table):
    """The routers are not adapted; what reaches them is."""
    options = {"rank": 2, "alpha": 4, "target_modules": ("q_proj", "v_proj"), "seed": 0}
    gradients = []
    for coefficient in (0.0, 1.0):
        model = add_lora(model_of(register()), **options)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(generator=torch.Generator().manual_seed(1))
        gradients.append(step(table, "packed", WHOLE, model=model, coefficient=coefficient)[1])
    assert (gradients[1] - gradients[0]).norm() > 1e-3


def test_recomputed_layers_give_the_same(table, expected):
    model = model_of(register())
    model.gradient_checkpointing_enable({"use_reentrant": False})
    found, gradient = step(table, "packed", WHOLE, model=model.train())
    value, of_balance, of_objective = expected
    assert math.isclose(found, value, rel_tol=1e-12)
    torch.testing.assert_close(gradient, of_objective + of_balance, rtol=1e-9, atol=1e-9)
