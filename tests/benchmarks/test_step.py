"""The comparison of steps: both sides see the same, what is counted is what is computed, and it runs on a bare machine."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.step import flops, measure
from benchmarks.step.__main__ import main
from benchmarks.step.ours import Table
from benchmarks.step.shapes import SHAPES, make_model, num_layers_of, pairs_of
from benchmarks.step.side import SIDES, Spec, load_side, no_reference
from raydpo.models.memory import Living
from raydpo.models.work import Work, row_counts, shared_prompt_counts, work_of
from raydpo.train.feed import Feed

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_memory")]

ROOT = Path(__file__).parents[2]
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Options of glibc's mallopt: how much at the end of the heap is given back, and how many blocks have pages of their own."""


def spec_of(folder, tokens=8192, device_pairs=8):
    return Spec(str(folder), "float32", "cpu", tokens, device_pairs)


@pytest.fixture(scope="module")
def kept_memory():
    """Logits of padded rows are gigabytes that come and go, and most of a test's time would be the kernel's, which hands
    out each page anew. This process keeps its pages meanwhile, where the C library can be told so."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        yield
        return
    for option, kept in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1)):
        libc.mallopt(option, kept)
    yield
    for option, default in ((M_MMAP_MAX, 65536), (M_TRIM_THRESHOLD, 128 * 1024)):
        libc.mallopt(option, default)
    libc.malloc_trim(0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    make_model("tiny", folder, "float32")
    return folder


@pytest.mark.parametrize("tokens", [8192, 300], ids=["one micro-batch", "several"])
def test_both_sides_take_the_same_steps(tiny, tokens):
    """From the same weights on the same pairs: reference log-probs, the loss of three steps, the weights after them."""
    pairs = pairs_of("hh", 4, "tiny")
    ours, theirs = (load_side(side, spec_of(tiny, tokens, device_pairs=4)) for side in SIDES)
    reference = ours.reference(pairs)
    np.testing.assert_allclose([nats.sum(dtype=np.float64) for nats in reference], theirs.reference(pairs), atol=1e-3)
    losses = {}
    for side in (ours, theirs):
        prepared = side.prepare(pairs, no_reference(pairs))  # a loss that is not ln 2
        losses[side] = [side.step(prepared) for _ in range(3)]
    assert abs(losses[ours][0] - np.log(2)) > 0.01
    assert losses[ours] == pytest.approx(losses[theirs], rel=1e-4)
    assert losses[ours][2] < losses[ours][0]
    for mine, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=3e-6, rtol=0)


@pytest.mark.parametrize("side", SIDES)
def test_counts_of_products_that_are_not_computed(tiny, tmp_path, side):
    pairs = pairs_of("hh", 3, "tiny")
    counts = {}
    for layers in (1, 2, 3):
        make_model("tiny", tmp_path / str(layers), "float32", layers)
        one = load_side(side, spec_of(tmp_path / str(layers)))
        prepared = one.prepare(pairs, no_reference(pairs))
        counts[layers] = flops.executed(lambda one=one, prepared=prepared: one.step(prepared))
        computed = flops.executed(lambda one=one, prepared=prepared: one.step(prepared), is_computed=True)
        assert counts[layers] == computed > 0
    assert flops.for_layers(counts[1], counts[2], num_layers_of("tiny")) == counts[3]


@pytest.mark.parametrize("side", SIDES)
def test_counted_bytes_are_those_of_a_step_that_is_computed(tiny, tmp_path, side):
    """To a hundredth (what is not computed is not written in place either); they grow linearly with the layers, and are more
    than weights, gradients and optimizer state: four times the weights."""
    pairs, peaks = pairs_of("hh", 3, "tiny"), {}
    for layers in (1, 2, 3):
        make_model("tiny", tmp_path / str(layers), "float32", layers)
        one, other = (load_side(side, spec_of(tmp_path / str(layers))) for _ in range(2))
        _, peaks[layers] = measure.counted_step(one, pairs)
        weights = sum(4 * weight.numel() for weight in other.model.parameters())
        with Living() as living:
            for some in (pairs[:1], pairs):
                other.step(other.prepare(some, no_reference(some)))
        assert peaks[layers] == pytest.approx(weights + max(living.trace), rel=0.01)
        assert peaks[layers] > 4 * weights
    assert flops.for_layers(peaks[1], peaks[2], num_layers_of("tiny")) == pytest.approx(peaks[3], rel=0.01)


@pytest.mark.parametrize("side", SIDES)
def test_checkpointing_is_on_for_both_sides(tiny, side):
    pairs, counts = pairs_of("hh", 2, "tiny"), []
    for checkpointing in (False, True):
        one = load_side(side, replace(spec_of(tiny), checkpointing=checkpointing))
        prepared = one.prepare(pairs, no_reference(pairs))
        counts.append(flops.executed(lambda one=one, prepared=prepared: one.step(prepared)))
    assert counts[1] > counts[0]


def test_the_products_of_padded_rows_by_hand(tiny):
    """TRL pads 2 x 3 rows to the longest and runs the head on every position, forward and twice and again backward."""
    pairs, theirs = pairs_of("hh", 3, "tiny"), load_side("TRL", spec_of(tiny))
    longest = max(len(p.prompt) + len(a) for p in pairs for a in p.answers)
    prepared = theirs.prepare(pairs, no_reference(pairs))
    work = work_of(theirs.model)
    expected = work.step(6 * longest, 6 * (longest - 1), 6 * longest**2)
    assert flops.executed(lambda: theirs.step(prepared)) == pytest.approx(expected, rel=1e-9)


@pytest.fixture(scope="module")
def layered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("56m")
    for layers in (1, 2):
        make_model("56m", folder / str(layers), "float32", layers)
    return folder


def counted_step(folder, side, pairs):
    counts = []
    for layers in (1, 2):
        one = load_side(side, spec_of(folder / str(layers), device_pairs=len(pairs)))
        prepared = one.prepare(pairs, no_reference(pairs))
        counts.append(flops.executed(lambda one=one, prepared=prepared: one.step(prepared)))
    return flops.for_layers(counts[0], counts[1], num_layers_of("56m"))


WORK_56M = Work(token=46_399_488, answer_token=2 * 512 * 32_000, attended=4 * 8 * 512)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_executes_little_more_than_it_must(layered, shape):
    pairs = pairs_of(shape, 2 if shape == "long_prompt" else 8)
    assert counted_step(layered, "raydpo", pairs) / flops.least_step(pairs, WORK_56M) <= 1.1


def test_a_third_of_the_products_of_padded_rows_on_real_pairs(layered):
    pairs = pairs_of("hh", 4)
    assert counted_step(layered, "raydpo", pairs) / counted_step(layered, "TRL", pairs) <= 0.33


def test_work_of_a_shape(layered):
    one, two = (work_of(load_side("raydpo", spec_of(layered / str(n))).model) for n in (1, 2))
    assert two.token - one.token == WORK_56M.token / 8
    assert two.answer_token == WORK_56M.answer_token
    assert two.attended == WORK_56M.attended / 4


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_two_ranks_share_the_work_of_real_pairs(layout):
    pairs = pairs_of("hh", 64)
    table = Table(pairs)
    counts = (shared_prompt_counts if layout == "packed" else row_counts)(table.prompt_lengths, table.answer_lengths)
    work = WORK_56M.step(*counts)
    for batch in np.random.default_rng(0).permuted(np.tile(np.arange(64), (20, 1)), axis=1)[:, :32]:
        feeds = [Feed(table, rank, 2, 2, 2048, None, layout=layout, work=WORK_56M) for rank in range(2)]
        shares = [[batch[p] for micro, _ in feed.micro_batches(batch) for p in micro] for feed in feeds]
        assert sorted(shares[0] + shares[1]) == sorted(batch)
        loads = [work[share].sum() for share in shares]
        assert max(loads) / np.mean(loads) <= 1.03


def test_lengths_of_the_shapes():
    for shape, means in {"ultrafeedback": (180, 350, 300), "long_prompt": (3000, 300, 300)}.items():
        lengths = np.array([[len(p.prompt), *map(len, p.answers)] for p in pairs_of(shape, 2000)])
        np.testing.assert_allclose(lengths.mean(axis=0), means, rtol=0.05)
        np.testing.assert_allclose(lengths.std(axis=0) / means, 0.6, rtol=0.1)
    assert len(pairs_of("hh", 64)) == 64
    with pytest.raises(SystemExit, match="holds 64"):
        pairs_of("hh", 65)


BARE = """
import sys
sys.modules.update(dict.fromkeys({absent}))  # an import of one of them fails
from benchmarks.step.shapes import pairs_of
from benchmarks.step.side import Spec, load_side
side = load_side("raydpo", Spec({folder!r}, "float32", "cpu", 8192, 8))
pairs = pairs_of("hh", 2, "tiny")
print(side.step(side.prepare(pairs, side.reference(pairs))))
"""


def test_a_step_needs_torch_and_transformers_alone(tiny):
    absent = {"ray", "deepspeed", "pyarrow", "pydantic", "datasets", "trl", "tensorboard", "rich"}
    program = BARE.format(absent=absent, folder=str(tiny))
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(np.log(2), abs=1e-6)


def test_the_whole_comparison(tmp_path):
    command = [sys.executable, "-m", "benchmarks.step", "--model", "tiny", "--pairs", "2", "--repeats", "2"]
    command += ["--shapes", "hh", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    *shown, written = (line for line in done.stdout.splitlines() if not line.startswith("["))  # a log line of DeepSpeed
    assert written.startswith("written: ")
    assert max(map(len, shown)) <= 100
    (file,) = tmp_path.glob("step_tiny_hh_2-pairs_*-cpu-cores_*.json")
    told = json.loads(file.read_text())
    assert told["made"]["versions"]["trl"]
    assert [found["shape"] for found in told["results"]] == ["hh"]
    for found in told["results"]:
        for side in SIDES:
            one = found["sides"][side]
            assert len(one["step_s"]) == len(one["loss"]) == 2
            assert one["pairs_per_s"] > 0
            assert one["peak_bytes"] > 1e8
            assert one["flops"]["step"] > one["flops"]["reference"] > 0
        ours, theirs = (found["sides"][side]["loss"] for side in SIDES)
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert "of the FLOPs of a step" in done.stdout
    assert " x pairs/s" in done.stdout


def test_counts_alone(tmp_path, monkeypatch, capsys):
    command = ["step", "--model", "tiny", "--pairs", "2", "--repeats", "0", "--shapes", "hh", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*command, "--threads", str(torch.get_num_threads())])
    main()
    (found,) = json.loads(next(tmp_path.iterdir()).read_text())["results"]
    assert found["sides"]["raydpo"].keys() == {"flops", "counted_peak_bytes", "counted_device_pairs", "mfu"}
    assert "of the FLOPs of a step" in capsys.readouterr().out
