"""The Adam of an offloaded optimizer: which one, that both are one update, and what is said where none can be compiled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from raydpo.config.deepspeed_keys import FORCE
from raydpo.schema.rank_events import UpdatedBy
from raydpo.train.host_adam import DEEPSPEED, TORCH, start_step
from raydpo.train.native_ops import NoOp, built_adam, load_adam
from tests.train import adam_jobs
from tests.train.test_resume import resume

BROKEN = {"CXX": "false", "CC": "false"}
OFFLOADED = {"zero_stage": 2, "offload_optimizer": True}
FORCED = {"zero_stage": 3, "offload_optimizer": True, "deepspeed": {FORCE: True}}
NVME = {
    "save": "weights",
    "deepspeed": {"zero_optimization": {"offload_optimizer": {"device": "nvme", "nvme_path": "d"}}},
}


@pytest.fixture(scope="session")
def compiled() -> Path:
    """DeepSpeed's Adam: compiled once a machine, half a minute."""
    try:
        return built_adam()
    except NoOp as error:
        pytest.skip(f"DeepSpeed's CPU Adam does not build here: {error}")


def choose(gangs, num_ranks: int, train, use_gpu: bool, copies: Path) -> str:
    answers = set(gangs[num_ranks].run(adam_jobs.choose, train, use_gpu, BROKEN, copies))
    assert len(answers) == 1
    assert not list(copies.rglob("*.so*"))
    return answers.pop()


@pytest.mark.parametrize(
    ("train", "use_gpu", "found"),
    [
        ({"zero_stage": 2}, True, ""),
        (OFFLOADED, False, f"{TORCH}: torch's AdamW updates the offloaded optimizer: there is no GPU"),
        (
            {**OFFLOADED, "deepspeed": {FORCE: False}},
            True,
            f"{TORCH}: torch's AdamW updates the offloaded optimizer: tr",
        ),
    ],
    ids=["nothing offloaded", "no GPU", "false"],
)
def test_torchs_where_nothing_is_to_be_compiled(gangs, tmp_path, train, use_gpu, found):
    assert choose(gangs, 1, train, use_gpu, tmp_path).startswith(found)
    assert bool(found) or not choose(gangs, 1, train, use_gpu, tmp_path)


def test_where_it_does_not_build_all_ranks_take_torchs_or_refuse(gangs, tmp_path):
    text = choose(gangs, 2, OFFLOADED, True, tmp_path)
    assert text.startswith(f"{TORCH}: torch's AdamW updates the offloaded optimizer, because it does not build on ")
    text = choose(gangs, 2, {**OFFLOADED, "deepspeed": {FORCE: True}}, False, tmp_path)
    assert text.startswith("refused: ")
    assert f"{FORCE}: true asks for DeepSpeed's CPU Adam, and it does not build on " in text
    assert "Nothing was trained. Install a C++ compiler" in text


def test_nvme_is_refused_where_its_op_does_not_build(gangs, tmp_path):
    text = choose(gangs, 2, NVME, False, tmp_path)
    assert text.startswith("refused: ")
    assert "zero_optimization.offload_optimizer on nvme needs DeepSpeed's op async_io, which does not build on" in text
    assert "Install libaio" in text


def test_a_build_that_is_killed_stops_no_later_one(tmp_path):
    """A compiler that never ends; then one that fails. DeepSpeed's own way would wait for a lock that nobody lets go."""
    slow = tmp_path / "compiler"
    slow.write_text("#!/bin/sh\ntouch $(dirname $0)/started\nsleep 600\n")
    slow.chmod(0o755)
    program = "from raydpo.train.native_ops import built_adam; built_adam()"
    environment = {**os.environ, "RAYDPO_STORE_DIR": str(tmp_path / "copies"), "TMPDIR": str(tmp_path)}
    first = subprocess.Popen(
        [sys.executable, "-c", program], env={**environment, "CXX": str(slow)}, start_new_session=True
    )
    while first.poll() is None and not (tmp_path / "started").exists():
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    again = subprocess.run(
        [sys.executable, "-c", program], env={**environment, **BROKEN}, capture_output=True, text=True
    )
    assert "NoOp: its build ended with code 1" in again.stderr
    assert not list((tmp_path / "copies").rglob("*.so*"))


@pytest.mark.slow
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_both_are_one_update_in_float32(compiled, weight_decay):
    """50 steps of 1e-3: within 2e-6 x (1 + the weight) of each other. They round the factor of the decay differently."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    load_adam(compiled)
    torch.manual_seed(0)
    start = [torch.randn(1003), torch.randn(67, 65)]
    ours, theirs = ([torch.nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2))
    settings = {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": weight_decay}
    adams = torch.optim.AdamW(ours, fused=True, **settings), DeepSpeedCPUAdam(theirs, adamw_mode=True, **settings)
    for _ in range(50):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        start_step(adams[1])
        for adam in adams:
            adam.step()
    for one, other, first in zip(ours, theirs, start, strict=True):
        assert (one - first).abs().max() > 1e-3
        assert torch.allclose(one, other, rtol=2e-6, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_training_with_deepspeeds_is_that_with_torchs(runs, compiled, stage):
    run = runs.get(num_ranks=2, **{**FORCED, "zero_stage": stage})
    other = runs.get(num_ranks=2, zero_stage=stage, offload_optimizer=True)
    assert [event.optimizer for each in (run, other) for event in each.of(UpdatedBy)] == [DEEPSPEED, TORCH]
    assert run.losses == pytest.approx(other.losses, abs=1e-5)
    assert run.series("grad_norm") == pytest.approx(other.series("grad_norm"), rel=1e-4)


@pytest.mark.slow
def test_it_goes_on_from_its_own_state_bit_for_bit_and_torchs_from_it(runs, compiled, tmp_path):
    straight = runs.fresh(runs.spec(**FORCED, save_every=2), 2)
    other = {"zero_stage": 3, "offload_optimizer": True}
    for place, options in (("same", FORCED), ("torch", other)):
        (tmp_path / place).mkdir()
        made = straight if place == "same" else runs.fresh(runs.spec(**FORCED, save_every=2), 2)
        again = resume(runs, made, 2, 2, tmp_path / place, **options, save_every=2)
        assert not again.error
        if place == "same":
            assert again.losses == straight.losses[2:]
        assert again.losses == pytest.approx(straight.losses[2:], abs=1e-5)
