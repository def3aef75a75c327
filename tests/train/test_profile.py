"""What a profile says: parts of an operator, pieces of a trace, and the trace and table of a real training."""

import gzip
import json
import re
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from raydpo.artifacts import ExampleTable
from raydpo.batches import Order
from raydpo.schema.rank_events import Profiled, Stepped
from raydpo.train.breakdown import PARTS, PRODUCTS, Op, TimeSlice, part, shares, table
from raydpo.train.feed import Feed
from raydpo.train.profile import steps_to_record, write_trace
from raydpo.train.ranges import OPTIMIZER, STEP, WAITING, named, waited
from raydpo.train.trace import ELSEWHERE, IDLE, read_pieces
from tests.train import jobs

pytestmark = pytest.mark.slow

VOCABULARY = 1000
EVALUATE = "autograd::engine::evaluate_function: MmBackward0"


def op(name, *shapes, inside=()):
    """inside: callers, the outermost first; each a name or an Op without caller."""
    caller = None
    for outer in inside:
        named_op = Op(outer) if isinstance(outer, str) else outer
        caller = replace(named_op, caller=caller)
    return Op(name, shapes, caller)


LINEAR, HEAD = Op("aten::linear", ((2, 9, 32), (48, 32))), Op("aten::linear", ((7, 32), (1000, 32)))
BATCHED = Op("aten::matmul", ((1, 4, 9, 9), (1, 4, 9, 8)))
CASES = [
    ("other", op("aten::mul", (7, 32), (7, 32), inside=[STEP])),
    ("other", op(STEP)),
    ("other", op("aten::logsumexp", (7, 1000), inside=[STEP])),
    ("other", op("aten::_log_softmax", (7, 1000))),
    ("other", op("LogSoftmaxBackward0", (7, 1000))),
    ("linear layers", op("aten::mm", (18, 32), (32, 48), inside=[STEP, LINEAR, "aten::matmul"])),
    ("linear layers", op("aten::bmm", (2, 9, 32), (2, 32, 48), inside=[STEP, LINEAR, "aten::matmul"])),
    ("linear layers", op("aten::t", (48, 32), inside=[STEP, LINEAR])),
    ("linear layers", op("aten::addmm", (48,), (18, 32), (32, 48))),
    ("linear layers", op("aten::mm", (48, 18), (18, 32), inside=[STEP, EVALUATE, "MmBackward0"])),
    ("linear layers", op("MmBackward0", (18, 48), inside=[STEP, EVALUATE])),
    ("linear layers", op("LinearFunctionForZeroStage3Backward", (2, 9, 48))),
    ("other", op(EVALUATE, inside=[STEP])),
    ("head", op("aten::mm", (7, 32), (32, 1000), inside=[STEP, HEAD, "aten::matmul"])),
    ("head", op("aten::t", (1000, 32), inside=[STEP, HEAD])),
    ("head", op("aten::mm", (1000, 7), (7, 32), inside=[STEP, EVALUATE, "MmBackward0"])),
    ("head", op("aten::mm", (7, 1000), (1000, 32), inside=[STEP, EVALUATE, "MmBackward0"])),
    ("attention", op("aten::bmm", (4, 9, 8), (4, 8, 9), inside=[STEP, "aten::scaled_dot_product_attention"])),
    ("attention", op("aten::_scaled_dot_product_flash_attention_for_cpu_backward", (1, 4, 9, 8))),
    ("attention", op("ScaledDotProductEfficientAttentionBackward0", (1, 4, 9, 8))),
    ("attention", op("flash_attn::_flash_attn_varlen_forward", (9, 4, 8))),
    ("attention", op("FlashAttnVarlenFuncBackward", (9, 4, 8))),
    ("attention", op("aten::bmm", (4, 9, 9), (4, 9, 8), inside=[STEP, BATCHED])),
    ("attention", op("aten::_softmax", (1, 4, 9, 9), inside=[STEP])),
    ("attention", op("BmmBackward0", (4, 9, 8))),
    # Computed again in the backward pass, below the node that asked first.
    ("other", op("aten::mul", (7, 32), inside=[STEP, EVALUATE, "MmBackward0"])),
    ("other", op("aten::mul", (7, 32), inside=[STEP, "ScaledDotProductFlashAttentionBackward0"])),
    ("linear layers", op("aten::mm", (18, 32), (32, 48), inside=["ScaledDotProductFlashAttentionBackward0", LINEAR])),
    ("optimizer", op("aten::_foreach_add_", (9,), inside=[STEP, "Optimizer.step#AdamW.step"])),
    ("optimizer", op("aten::norm", (9,), inside=[STEP, OPTIMIZER])),
    ("optimizer", op(OPTIMIZER, inside=[STEP])),
    ("communication", op("c10d::allreduce_", inside=[STEP, OPTIMIZER])),
    ("communication", op("aten::copy_", (9,), inside=[STEP, "c10d::allreduce_"])),
    ("communication", op("gloo:all_gather", (9,))),
    ("communication", op("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(args)", inside=[STEP])),
    ("waiting", op(WAITING, inside=[STEP])),
    ("waiting", op("aten::copy_", (9,), inside=[STEP, WAITING])),
]


@pytest.mark.parametrize(("expected", "found"), CASES, ids=[f"{c[1].name} {c[1].shapes}" for c in CASES])
def test_each_operator_belongs_to_one_part(expected, found):
    assert part(found, VOCABULARY) == expected


def test_the_cases_reach_every_part():
    assert {expected for expected, _ in CASES} == set(PARTS)


def test_shares_and_table_add_up():
    pieces = [TimeSlice(found, 10.0 * number) for number, (_, found) in enumerate(CASES)]
    found = shares(pieces, VOCABULARY)
    assert tuple(found) == PARTS
    assert sum(found.values()) == pytest.approx(1)
    text = table(pieces, VOCABULARY, 2, "a title")
    total_ms = sum(piece.self_us for piece in pieces) / 2000
    assert re.search(rf"^all +{total_ms:.3f} +100.00%$", text, re.M)
    assert max(map(len, text.splitlines())) <= 100
    assert shares([], VOCABULARY) == dict.fromkeys(PARTS, 0.0)


@pytest.mark.parametrize(
    ("first", "last", "every", "steps"),
    [
        (1, 100, (None, None), [2, 3, 4]),
        (1, 3, (None, None), [2, 3]),
        (1, 1, (None, None), [1]),
        (5, 5, (None, None), [5]),
        (6, 5, (None, None), []),
        (41, 100, (None, 100), [42, 43, 44]),
        (41, 100, (43, None), [42, 43]),
        (41, 100, (42, 43), [42]),
        (1, 100, (1, None), [2]),
    ],
)
def test_which_steps_are_recorded(first, last, every, steps):
    assert list(steps_to_record(first, last, *every)) == steps


def event(name, start, stop, cat="cpu_op", tid=1, number=0, **more):
    arguments = {"External id": number, **more}
    return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": stop - start, "tid": tid, "args": arguments}


def by_name(pieces):
    times = {}
    for piece in pieces:
        times[piece.op.name] = times.get(piece.op.name, 0.0) + piece.self_us
    return {name: time for name, time in times.items() if time}


def test_a_collective_in_another_thread_counts_while_nothing_else_runs():
    events = [
        event("aten::mul", -20, -10),  # before the step
        event(STEP, 0, 100, cat="user_annotation"),
        event("aten::linear", 10, 40, **{"Input Dims": [[2, 3], [4, 3], []]}),
        event("aten::mm", 15, 35, **{"Input Dims": [[2, 3], [3, 4]]}),
        event("gloo:all_gather", 30, 60, cat="user_annotation", tid=7),
        event("gloo:all_gather", 50, 70, cat="user_annotation", tid=8),
        {"ph": "i", "name": "an instant", "ts": 5},
    ]
    pieces = read_pieces({"traceEvents": events})
    assert by_name(pieces) == {STEP: 40, "aten::linear": 10, "aten::mm": 20, ELSEWHERE: 30}
    (product,) = (piece.op for piece in pieces if piece.op.name == "aten::mm")
    assert [caller.name for caller in product.chain()] == ["aten::mm", "aten::linear", STEP]
    assert product.shapes == ((2, 3), (3, 4))
    assert product.caller.shapes == ((2, 3), (4, 3))
    assert shares(pieces, VOCABULARY)["communication"] == pytest.approx(0.3)


def test_on_a_gpu_each_moment_of_the_device_counts_once():
    nccl = "ncclDevKernel_AllGather"
    events = [
        event(STEP, 0, 100, cat="user_annotation", number=1),
        event("aten::mm", 1, 2, number=2, **{"Input Dims": [[2, 3], [3, VOCABULARY]]}),
        event("aten::add", 3, 4, number=3, tid=9),  # a thread of the backward pass
        event(WAITING, 60, 75, cat="user_annotation", number=4),
        event("sm90_xmma_gemm", 10, 30, cat="kernel", tid=70, number=2),
        event("vectorized_elementwise_kernel", 40, 50, cat="kernel", tid=70, number=3),
        event("vectorized_elementwise_kernel", 95, 120, cat="kernel", tid=70, number=3),  # beyond the step
        event(nccl, 20, 45, cat="kernel", tid=71, number=1),
        event("Memcpy HtoD", 70, 72, cat="gpu_memcpy", tid=70, number=4),
    ]
    pieces = read_pieces({"traceEvents": events})
    # 10-30 product, 30-40 NCCL alone, 40-50 add, 70-72 copy for the batch, 95-100 add; waiting 60-70 and 72-75.
    assert by_name(pieces) == {"aten::mm": 20, nccl: 10, "aten::add": 15, WAITING: 15, IDLE: 40}
    found = shares(pieces, VOCABULARY)
    assert found["head"] == pytest.approx(0.2)
    assert found["communication"] == pytest.approx(0.1)
    assert found["waiting"] == pytest.approx(0.15)


def micro_batches(spec, steps):
    """Calls of the head in each micro-batch of `steps` (from 1), on one rank, packed."""
    config = spec.config.train
    examples = ExampleTable.open(spec.data, "train")
    order = Order(len(examples), config.global_batch_pairs, config.epochs, spec.config.run.seed, config.max_steps)
    feed = Feed(examples, 0, 1, 2, config.tokens_per_microbatch, None, spec.chunk_tokens, "packed")
    return [calls for step in steps for _, calls in feed.micro_batches(order.examples(step - 1))]


def read_table(text):
    """Part -> share in percent, of the first of the two tables; and its last line."""
    rows = re.findall(r"^(\w[\w ]*?) +[\d.]+ +([\d.]+)%$", text, re.M)
    return {name: float(share) for name, share in rows}


def weights(run):
    return (run.staged() / "model/model.safetensors").read_bytes()


@pytest.mark.parametrize("chunk_tokens", [1024, 100])
def test_a_training_with_a_profile(runs, chunk_tokens):
    spec = replace(runs.spec(), chunk_tokens=chunk_tokens)
    plain = runs.fresh(replace(runs.spec(), chunk_tokens=chunk_tokens))
    run = runs.fresh(replace(spec, profile=True))
    assert weights(run) == weights(plain)
    assert run.losses == plain.losses
    assert plain.of(Profiled) == []

    (made,) = run.of(Profiled)
    before = [e.step for e in run.events[: run.events.index(made)] if isinstance(e, Stepped)]
    assert before == [1, 2, 3]  # as soon as step 4 is over
    folder = spec.staging / "profile"
    assert made.folder == str(folder)
    assert {path.name for path in folder.iterdir()} == {"table.txt", "trace.json"}

    pieces = read_pieces(json.loads((folder / "trace.json").read_text()))
    calls = micro_batches(spec, (2, 3, 4))
    assert (max(calls) > 1) is (chunk_tokens == 100)
    ranges = [piece.op.name for piece in pieces if piece.op.name.startswith("raydpo::")]
    assert {name: ranges.count(name) for name in ranges} == {STEP: 3, OPTIMIZER: 3, WAITING: 3}

    vocabulary = json.loads((spec.model.folder / "config.json").read_text())["vocab_size"]
    products = [part(piece.op, vocabulary) for piece in pieces if piece.op.name in PRODUCTS]
    # One forward and two products backward; a chunk of several is recomputed first.
    assert products.count("head") == sum(3 if number == 1 else 4 * number for number in calls)
    # Two layers with seven weights each: one forward and two products backward.
    assert products.count("linear layers") == 2 * 7 * 3 * len(calls)

    text = (folder / "table.txt").read_text()
    percent = read_table(text)
    assert percent.pop("all") == 100
    assert tuple(percent) == PARTS
    assert sum(percent.values()) == pytest.approx(100, abs=0.5)
    exact = {name: 100 * share for name, share in shares(pieces, vocabulary).items()}
    assert percent == pytest.approx(exact, abs=0.006)
    assert all(percent[name] > 0 for name in ("attention", "linear layers", "head", "optimizer"))
    assert exact["waiting"] > 0  # for the batches that the other thread builds
    assert max(map(len, text.splitlines())) <= 100
    assert "steps 2 to 4" in text
    assert re.match(r"profile of steps 2 to 4: .*linear layers \d+%", made.text)


@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks_make_one_profile_with_communication(runs, gangs, stage):
    spec = replace(runs.spec(zero_stage=stage), profile=True)
    spec.staging.mkdir(parents=True)
    (events, error), (others, _) = gangs[2].run(jobs.train, spec)
    assert not error
    assert [type(event) for event in events].count(Profiled) == 1
    assert Profiled not in map(type, others)
    percent = read_table((spec.staging / "profile/table.txt").read_text())
    assert all(percent[name] > 0 for name in ("attention", "linear layers", "head", "optimizer", "communication"))
    plain = runs.get(num_ranks=2, zero_stage=stage)
    assert [event.metrics["loss"] for event in events if isinstance(event, Stepped)] == plain.losses


def test_products_that_checkpointing_computes_again_are_where_they_belong(runs):
    spec = replace(runs.spec(gradient_checkpointing=True), profile=True)
    runs.fresh(spec)
    pieces = read_pieces(json.loads((spec.staging / "profile/trace.json").read_text()))
    vocabulary = json.loads((spec.model.folder / "config.json").read_text())["vocab_size"]
    products = [part(piece.op, vocabulary) for piece in pieces if piece.op.name in PRODUCTS]
    calls = micro_batches(spec, (2, 3, 4))
    assert products.count("linear layers") == 2 * 7 * 4 * len(calls)
    assert products.count("head") == 3 * len(calls)


def test_recording_is_on_for_its_steps_alone(runs, gangs):
    """(a profiler is on, `update` is the trainer's own) after each step; and after an early end."""
    spec = replace(runs.spec(), profile=True)
    ((states, after),) = gangs[1].run(jobs.watch_profile, spec)
    assert states == [(False, False), (True, False), (True, False), (False, True), (False, True)]
    assert after == (False, True)
    ((states, after),) = gangs[1].run(jobs.watch_profile, replace(spec, staging=spec.staging / "again"), stop_after=2)
    assert states == [(False, False), (True, False)]
    assert after == (False, True)


def test_a_range_costs_nothing_without_a_profiler():
    items = iter([1, 2])
    assert waited(items) is items
    assert isinstance(named(OPTIMIZER), nullcontext)
    with profile(activities=[ProfilerActivity.CPU]) as recording:
        assert list(waited(items)) == [1, 2]
        with named(OPTIMIZER):
            torch.ones(1)
    names = [found.name for found in recording.events()]
    assert (names.count(WAITING), names.count(OPTIMIZER)) == (3, 1)


def test_an_evaluation_or_a_checkpoint_ends_the_recording(runs):
    spec = replace(runs.spec(save_every=3), profile=True)
    run = runs.fresh(spec)
    assert run.of(Profiled)[0].text.startswith("profile of steps 2 to 3: ")


def test_a_large_trace_is_compressed(tmp_path):
    def recorded():
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recording:
            torch.ones(2, 3) @ torch.ones(3, 4)
        return recording

    trace = write_trace(recorded(), tmp_path / "plain")
    assert json.loads((tmp_path / "plain/trace.json").read_text()) == trace
    trace = write_trace(recorded(), tmp_path / "packed", most_plain_bytes=10)
    assert [path.name for path in (tmp_path / "packed").iterdir()] == ["trace.json.gz"]
    with gzip.open(tmp_path / "packed/trace.json.gz") as file:
        assert json.load(file) == trace
    assert "aten::mm" in [event["name"] for event in trace["traceEvents"]]
