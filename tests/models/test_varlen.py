"""Segments of a packed stream as one varlen call. The kernels need a GPU; here a kernel by definition stands for them,
which proves the layout of queries, keys and bounds, and that the check at the first use finds a kernel that is wrong."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raydpo.batches.micro_batches import pack_rows
from raydpo.models.attention import segment_by_segment
from raydpo.models.varlen import TOLERANCE, disagreement, kernel_for, varlen_attention

CPU = torch.device("cpu")
HEADS = (4, 2, 16, 16)


def by_definition(shift=0, window_shift=0):
    """Softmax over the keys that a query sees, causal from the bottom right (shift 0), in the dtype of the inputs."""

    def run(q, k, v, bounds, scale, window):
        cu_q, cu_k, most_q, most_k = bounds
        outputs = []
        for (a, b), (c, d) in zip(itertools.pairwise(cu_q.tolist()), itertools.pairwise(cu_k.tolist()), strict=True):
            assert b - a <= most_q
            assert d - c <= most_k
            keys, values = (x[c:d].repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
            scores = torch.einsum("qhd,khd->hqk", q[a:b], keys) * (q.shape[-1] ** -0.5 if scale is None else scale)
            distance = torch.arange(b - a)[:, None] + (d - c) - (b - a) - shift - torch.arange(d - c)
            seen = (distance >= 0) & (distance < (d - c + 1 if window is None else window + window_shift))
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num()
            outputs.append(torch.einsum("hqk,khd->qhd", weights, values))
        return torch.cat(outputs)

    return run


@pytest.mark.parametrize("heads", [HEADS, (3, 3, 12, 20)])
def test_the_definition_passes_the_check(heads):
    assert disagreement(by_definition(), CPU, torch.float64, heads, segment_by_segment) < 1e-12


def not_a_number(q, k, v, bounds, scale, window):
    return by_definition()(q, k, v, bounds, scale, window) * torch.nan


@pytest.mark.parametrize(
    "wrong", [by_definition(shift=1), by_definition(window_shift=1), not_a_number], ids=["causal", "window", "nan"]
)
def test_a_kernel_that_is_wrong_does_not(wrong):
    assert disagreement(wrong, CPU, torch.float64, HEADS, segment_by_segment) > TOLERANCE


def test_a_mask_from_the_top_left_does_not():
    def top_left(q, k, v, bounds, scale, window):
        if window is None:  # a query sees as many keys as there are queries up to it
            cu_q, cu_k, *_ = bounds
            keys = [torch.arange(c, c + b - a) for (a, b), (c, _) in zip(pairs(cu_q), pairs(cu_k), strict=True)]
            places = torch.cat(keys)
            return by_definition()(q, k[places], v[places], (cu_q, cu_q, *bounds[2:]), scale, window)
        return by_definition()(q, k, v, bounds, scale, window)

    def pairs(cu):
        return itertools.pairwise(cu.tolist())

    assert disagreement(top_left, CPU, torch.float64, HEADS, segment_by_segment) > TOLERANCE


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(1, 7), min_size=1, max_size=4)), min_size=1, max_size=3)
)
def test_any_stream(groups):
    draw = np.random.default_rng(0)
    rows = []
    for prompt_length, answers in groups:
        prompt = draw.integers(0, 50, prompt_length)
        rows += [(prompt, draw.integers(0, 3, length)) for length in answers]
    batch = pack_rows(rows)
    length = batch.input_ids.shape[1]
    q, k, v = (torch.from_numpy(draw.standard_normal((1, heads, length, 8))) for heads in (4, 2, 2))
    for window in (None, 3):
        ours = varlen_attention(q, k, v, batch.segments, 0.3, window, by_definition())
        torch.testing.assert_close(ours, segment_by_segment(q, k, v, batch.segments, 0.3, window), atol=1e-12, rtol=0)


@pytest.mark.filterwarnings("default")
def test_without_a_kernel_a_warning_says_why():
    kernel_for.cache_clear()
    with pytest.warns(UserWarning, match=r"segment by segment, no varlen kernel serves cpu: .*torch_kernel: "):
        assert kernel_for(CPU, torch.bfloat16, HEADS, segment_by_segment) is None
    with warnings.catch_warnings(record=True) as again:
        warnings.simplefilter("always")
        assert kernel_for(CPU, torch.bfloat16, HEADS, segment_by_segment) is None
    assert again == []
