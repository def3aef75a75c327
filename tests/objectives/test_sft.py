"""SFT: a sum over answer tokens, with the tokens as its count."""

import pytest
import torch

from raydpo.objectives import ObjectiveInput
from raydpo.objectives.sft import SFT


def test_loss_is_the_summed_negative_log_likelihood_of_the_tokens():
    nats = torch.tensor([-1.0, -2.0, -4.0], requires_grad=True)
    one_answer = ObjectiveInput(nats, None, torch.tensor([0, 0, 1]), torch.tensor([[0], [1]]), 2)
    output = SFT()(one_answer)
    output.loss_sum.backward()
    assert output.loss_sum.item() == 7.0
    assert output.metrics["loss"][1] == 3
    assert float(output.metrics["logps/chosen"][0]) / output.metrics["logps/chosen"][1] == pytest.approx(-3.5)
    assert (nats.grad == -1).all()
    assert SFT.unit == "tokens"
