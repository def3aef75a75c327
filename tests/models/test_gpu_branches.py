"""What runs on a GPU alone, without one: torch's varlen kernels by their recorded signatures, and a step on fake tensors."""

import inspect
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from raydpo.batches.micro_batches import pack_rows
from raydpo.models import attention, varlen
from raydpo.models.attention import segment_by_segment
from raydpo.models.layout import choose_layout
from raydpo.models.logprobs import AnswerLogProbs
from raydpo.models.varlen import called_with_what_it_takes, disagreement, kernel_for
from raydpo.schema.rank_events import Alive, Noted
from raydpo.train.loop import _with_news
from tests.models.test_varlen import CPU, HEADS, by_definition


def of_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    assert is_causal
    return by_definition()(query, key, value, (cu_seq_q, cu_seq_k, max_q, max_k), None, None)


def of_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)):
    left, right = window_size
    assert right == 0
    window = None if left < 0 else left + 1
    return by_definition()(query, key, value, (cu_seq_q, cu_seq_k, max_q, max_k), scale, window)


def of_2_12(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1),
    enable_gqa=False, seqused_k=None, block_table=None, num_splits=None,
):  # fmt: skip
    assert enable_gqa == (query.shape[1] != key.shape[1])
    more = {"scale": scale, "window_size": window_size}
    return of_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **more)


def test_the_newest_signature_is_the_installed_one():
    varlen_attn = pytest.importorskip("torch.nn.attention.varlen").varlen_attn
    assert list(inspect.signature(of_2_12).parameters) == list(inspect.signature(varlen_attn).parameters)


@pytest.mark.parametrize("heads", [HEADS, (3, 3, 16, 16)])
@pytest.mark.parametrize("recorded", [of_2_10, of_2_11, of_2_12])
def test_every_signature_since_2_10_is_called_rightly(recorded, heads):
    kernel = called_with_what_it_takes(recorded)
    assert disagreement(kernel, CPU, torch.float64, heads, segment_by_segment, is_windowed=False) < 1e-12
    if recorded is of_2_10:
        with pytest.raises(NotImplementedError, match=r"from 2\.11 on"):
            disagreement(kernel, CPU, torch.float64, heads, segment_by_segment)
    else:
        assert disagreement(kernel, CPU, torch.float64, heads, segment_by_segment) < 1e-12


@pytest.mark.parametrize("recorded", [of_2_10, of_2_11, of_2_12])
def test_a_scale_of_the_model_is_kept(recorded):
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 90, 16, dtype=torch.float64, generator=draw) for heads in (4, 2, 2))
    segments = varlen.CHECKED_SEGMENTS
    ours = varlen.varlen_attention(q, k, v, segments, 0.3, None, called_with_what_it_takes(recorded))
    torch.testing.assert_close(ours, segment_by_segment(q, k, v, segments, 0.3, None), atol=1e-12, rtol=0)


@pytest.mark.parametrize("recorded", [of_2_10, of_2_11, of_2_12])
def test_each_is_chosen_where_it_serves_and_a_person_hears_where_none_does(monkeypatch, recorded):
    monkeypatch.setattr(varlen, "torch_kernel", lambda: called_with_what_it_takes(recorded))
    monkeypatch.setattr(varlen, "_unserved", [])
    kernel_for.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernel_for(CPU, torch.bfloat16, HEADS, segment_by_segment, is_windowed=False) is not None
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        windowed = kernel_for(CPU, torch.bfloat16, HEADS, segment_by_segment, is_windowed=True)
    kernel_for.cache_clear()
    assert (windowed is None) == (recorded is of_2_10)
    said = [event.text for event in _with_news(iter([Alive(1), Alive(2)])) if isinstance(event, Noted)]
    assert len(said) == (recorded is of_2_10)
    assert all("segment by segment" in text and "from 2.11 on" in text for text in said)


class Counted(TorchDispatchMode):
    """Operations by name."""

    def __init__(self):
        super().__init__()
        self.ops = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_a_fake_tensor_answers_no_question():
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        bool(torch.ones(2).all())


@pytest.mark.parametrize("num_pairs", [2, 6])
def test_a_micro_batch_asks_the_device_for_nothing(monkeypatch, num_pairs):
    """Fake tensors have no values, so .item(), bool() or a choice by a mask would be an error: none is asked for.

    They are on the CPU, for a build of torch without CUDA has no autograd for fake CUDA ones; the kernel is torch's.
    """
    draw = np.random.default_rng(0)
    prompts = [draw.integers(0, 99, 20) for _ in range(num_pairs)]
    batch = pack_rows([(prompt, draw.integers(0, 99, 7)) for prompt in prompts for _ in range(2)])
    config = AutoConfig.for_model(
        "llama", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=99
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    assert choose_layout(model, "auto")[0] == "packed"
    kernel = called_with_what_it_takes(pytest.importorskip("torch.nn.attention.varlen").varlen_attn)
    monkeypatch.setattr(attention, "_kernel", lambda *_: kernel)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, Counted() as counted:
        for module in model.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                setattr(module, name, torch.nn.Parameter(fake.from_tensor(weight.detach())))
        nats = AnswerLogProbs(model)(batch.to("cpu"))
        nats.sum().backward()
    assert nats.shape == (14 * num_pairs,)
    assert nats.dtype == torch.float32
    assert counted.ops["_varlen_attn"] == counted.ops["_varlen_attn_backward"] == 2
