"""Which layers of a reward model go to which GPU. No GPU is needed: a map is made of names and sizes alone."""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import accelerate
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from raydpo.config.round_sections import JudgeSection
from raydpo.errors import ResourceError
from raydpo.judge.build import build_judge
from raydpo.judge.spread_model import SHARE, layer_map
from tests.judge.test_reward_model import save

GIB = 1 << 30


def llama(num_layers: int = 10) -> Any:
    """About 7 GB in bfloat16, none of them there."""
    shape = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "vocab_size": 32000}
    with torch.device("meta"):
        return LlamaForSequenceClassification(LlamaConfig(**shape, num_hidden_layers=num_layers)).bfloat16()


def bytes_on(model: Any, found: dict[str, int]) -> dict[int, int]:
    sums: dict[int, int] = dict.fromkeys(found.values(), 0)
    for name, weight in model.named_parameters():
        (device,) = (gpu for place, gpu in found.items() if name == place or name.startswith(f"{place}."))
        sums[device] += weight.nbytes
    return sums


@pytest.mark.parametrize("num_gpus", [2, 3, 4])
def test_layers_stand_in_order_evenly_over_all_gpus(num_gpus):
    model = llama()
    found = layer_map(model, dict.fromkeys(range(num_gpus), 80 * GIB))
    sums = bytes_on(model, found)
    layers = [next(gpu for place, gpu in found.items() if place == f"model.layers.{n}") for n in range(10)]
    assert all(before <= after for before, after in pairwise(layers))
    assert sorted(sums) == list(range(num_gpus))
    layer = sum(weight.nbytes for weight in model.model.layers[0].parameters())
    whole = sum(weight.nbytes for weight in model.parameters())
    assert max(sums.values()) <= whole / num_gpus + layer + 1


def test_a_gpu_with_less_room_gets_less():
    model = llama()
    sums = bytes_on(model, layer_map(model, {0: GIB, 1: 80 * GIB, 2: 80 * GIB}))
    assert 0 < sums[0] <= SHARE * GIB < sums[1]


def test_what_does_not_fit_is_refused_and_never_left_in_main_memory():
    with pytest.raises(ResourceError, match=r"has 4\.3 GB of weights, and the GPUs have 2\.1, 2\.1 GB free"):
        layer_map(llama(), {0: 2 * GIB, 1: 2 * GIB})


def test_a_family_that_does_not_say_where_it_may_be_cut_is_refused():
    model = llama(2)
    model._no_split_modules = set()
    with pytest.raises(ResourceError, match="between which layers LlamaForSequenceClassification may be cut"):
        layer_map(model, {0: GIB, 1: GIB})


def test_an_encoder_is_spread_as_well():
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig(num_labels=1))
    sums = bytes_on(model, layer_map(model, {0: GIB, 1: GIB}))
    assert sorted(sums) == [0, 1]


def test_accelerate_takes_what_it_is_given():
    inspect.signature(accelerate.dispatch_model).bind(None, {}, skip_keys=None)


@pytest.mark.parametrize(("gpus", "expected"), [(0, []), (0.5, []), (1, []), (2, [2])])
def test_a_judge_of_several_gpus_spreads_its_model(gpus, expected, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("raydpo.judge.reward_model.spread", lambda model, num: asked.append(num) or model)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_: self)  # there is no GPU
    section = JudgeSection(kind="reward_model", model=str(save(tmp_path)), gpus_per_worker=gpus)
    build_judge(section)
    assert asked == expected
