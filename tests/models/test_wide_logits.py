"""Logits of a bfloat16 head against float64's of the same numbers, and gradients against autograd's."""

import copy

import pytest
import torch
from torch import nn

from raydpo.batches import collate_rows
from raydpo.models import wide_logits
from raydpo.models.logprobs import AnswerLogProbs
from raydpo.models.lora import add_lora
from raydpo.models.wide_logits import widen
from tests.models.test_logprobs import ROWS, make_model


def made(bias=False, dtype=torch.bfloat16, num_ids=301):
    torch.manual_seed(0)
    head = nn.Linear(96, num_ids, bias=bias).to(dtype)
    with torch.no_grad():
        head.weight.mul_(12)  # logits between 16 and 32 lie on a grid of 0.125 in bfloat16
    hidden = (torch.randn(7, 96) * 4).to(dtype)
    return head, hidden


@pytest.mark.parametrize("bias", [False, True])
def test_logits_are_sums_in_float32(bias):
    head, hidden = made(bias)
    exact = nn.functional.linear(hidden.double(), head.weight.double(), head.bias.double() if bias else None)
    rounded = head(hidden)
    widen(head)
    wide = head(hidden)
    assert wide.dtype == torch.float32
    assert (wide - exact).abs().max() < 1e-4 < 0.05 < (rounded - exact).abs().max()


@pytest.mark.parametrize("block_rows", [1000, 64, 1])
def test_gradients_are_those_of_the_product(monkeypatch, block_rows):
    monkeypatch.setattr(wide_logits, "BLOCK_BYTES", 4 * 96 * block_rows)
    head, hidden = made()
    widen(head)
    hidden.requires_grad_()
    weights = torch.randn(7, 301)
    (head(hidden).softmax(-1) * weights).sum().backward()
    exact, exact_hidden = made(dtype=torch.float64)[0], hidden.detach().double().requires_grad_()
    with torch.no_grad():
        exact.weight.copy_(head.weight)
    (exact(exact_hidden).softmax(-1) * weights.double()).sum().backward()
    for ours, theirs in ((hidden.grad, exact_hidden.grad), (head.weight.grad, exact.weight.grad)):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.double(), theirs, rtol=2.0**-8, atol=1e-5 * float(theirs.abs().max()))


def test_a_frozen_head_gets_no_gradient_and_other_dtypes_stay_what_they_were():
    head, hidden = made()
    widen(head.requires_grad_(False))
    head(hidden.requires_grad_()).sum().backward()
    assert head.weight.grad is None
    assert hidden.grad is not None
    for dtype in (torch.float32, torch.float64):
        plain, hidden = made(dtype=dtype)
        before = plain(hidden)
        widen(plain)
        assert torch.equal(plain(hidden), before)
        assert plain(hidden).dtype == dtype


def test_adapters_on_the_head_are_added_to_float32():
    model = make_model("llama", torch.bfloat16)
    adapted = add_lora(copy.deepcopy(model), seed=0, rank=2, alpha=4, target_modules=("lm_head",))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    head = AnswerLogProbs(adapted).head
    hidden = torch.randn(3, 32).bfloat16()
    weight = head.base_layer.weight.double()
    delta = 2 * head.lora_B["default"].weight.double() @ head.lora_A["default"].weight.double()
    assert head(hidden).dtype == torch.float32
    torch.testing.assert_close(head(hidden).double(), hidden.double() @ (weight + delta).t(), rtol=2e-2, atol=2e-2)


def test_log_probs_are_those_of_float64_from_the_same_hidden_states():
    model = make_model("llama", torch.bfloat16)
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
    scoring = AnswerLogProbs(model)
    batch = collate_rows(ROWS)
    with torch.no_grad():
        hidden = scoring.hidden(batch).flatten(0, 1)[batch.predictors].double()
        exact = (hidden @ model.lm_head.weight.double().t()).log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]
        assert (scoring(batch) - exact).abs().max() < 1e-4
