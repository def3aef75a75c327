"""Compiled layers: the numbers of plain forwards, and nothing compiled anew when other batches come."""

from copy import deepcopy

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoConfig, AutoModelForCausalLM

from raydpo.errors import ConfigError
from raydpo.models.attention import register
from raydpo.models.compiled import compile_layers
from tests.models.test_attention import FAMILIES, ROWS, assert_same, group, recompute

pytestmark = pytest.mark.slow

BATCHES = [ROWS["pairs"], [*ROWS["five answers"], *group(8, 2)], group(7, 3)]


@torch._dynamo.config.patch(disable=False)  # a vLLM engine on a CPU switches compiling off for its process
@pytest.mark.parametrize(
    ("family", "checkpointing"),
    [("llama", False), ("llama", True), ("gemma3_text", False)],
    ids=["llama", "llama recomputed", "layers of two kinds"],
)
def test_values_and_gradients_equal_plain_forwards_and_one_batch_compiles_for_all(family, checkpointing):
    torch._dynamo.reset()
    torch.manual_seed(0)
    # No other size is that of a hidden state: torch.compile takes equal sizes for the same.
    config = AutoConfig.for_model(family, **FAMILIES[family] | {"hidden_size": 160}, pad_token_id=0)
    plain = AutoModelForCausalLM.from_config(deepcopy(config)).double()
    ours = AutoModelForCausalLM.from_config(config, attn_implementation=register()).double()
    ours.load_state_dict(plain.state_dict())
    if checkpointing:
        recompute(ours)
    compile_layers(ours, "packed")
    graphs = [counters["stats"]["unique_graphs"]]
    for rows in BATCHES:
        plain.zero_grad()
        ours.zero_grad()
        assert_same(plain, ours, rows, 1e-5)  # norms are computed in float32
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[1] > graphs[0]
    assert graphs[2:] == graphs[1:2] * 2


def test_a_model_without_layers_that_can_be_compiled_is_an_error():
    with pytest.raises(ConfigError, match=r"train\.compile: Linear has no layers"):
        compile_layers(torch.nn.Linear(2, 2), "padded")
