"""Ops of DeepSpeed that are compiled where they run: its Adam for main memory, and what moves tensors to NVMe.

Comes in: nothing, or what DeepSpeed is told. Goes out: a compiled file, or a sentence why there is none. Decision: a process of
its own builds in a folder of its own, and only what was built, loaded and tried is put into a cache of this machine, so that
a build that was cut short leaves nothing behind: DeepSpeed's own would leave a lock, for which every later start waits. The
price is half a minute at the first start on a machine.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from raydpo.artifacts.mirror_path import copies_root
from raydpo.artifacts.node_lock import once_a_node

ADAM = "cpu_adam"
_LIMIT_S = 900
_PROGRAM = """
import torch
from deepspeed.ops.op_builder.cpu import CPUAdamBuilder
op = CPUAdamBuilder().jit_load(verbose=False)
op.create_adam(0, 1e-3, 0.9, 0.999, 1e-8, 0.0, True, False)
op.adam_update(0, 1, 1e-3, 0.9, 0.999, 1e-8, 0.0, True, *(torch.ones(64) for _ in range(4)))
op.destroy_adam(0)
print(op.__file__)
"""


class NoOp(Exception):
    """An op that is not to be had on this machine: why, as a clause."""


def built_adam() -> Path:
    """The compiled Adam of this machine, built now where it was not before. Raises NoOp."""
    file = copies_root().with_name("raydpo-ops") / _key() / f"{ADAM}.so"
    with once_a_node(file, "op"):
        if not file.is_file():
            _build(file)
    return file


def load_adam(file: Path) -> None:
    """Have DeepSpeed take its Adam from `file` in this process. Raises NoOp where it cannot be loaded."""
    from deepspeed.ops.op_builder import CPUAdamBuilder

    try:
        described = importlib.util.spec_from_file_location(ADAM, file)
        assert described is not None
        assert described.loader is not None
        module = importlib.util.module_from_spec(described)
        described.loader.exec_module(module)
    except (ImportError, OSError) as error:
        raise NoOp(f"{file} cannot be loaded: {error}") from error
    CPUAdamBuilder._loaded_ops[ADAM] = module


def on_nvme(config: Mapping[str, Any]) -> list[str]:
    """What DeepSpeed is told to offload to NVMe."""
    zero = config["zero_optimization"]
    return [name for name in ("offload_optimizer", "offload_param") if (zero.get(name) or {}).get("device") == "nvme"]


def nvme_problem(asked: Sequence[str]) -> str:
    """Why this machine cannot offload `asked` to NVMe; empty where it can."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    try:
        if AsyncIOBuilder().is_compatible():
            return ""
        why = "libaio, or a C compiler that links it, is not there"
    except Exception as error:  # noqa: BLE001 - it runs a compiler, and may fail in any way
        why = f"{type(error).__name__}: {error}"
    where = " and ".join(f"zero_optimization.{name}" for name in asked)
    return (
        f"train.deepspeed: {where} on nvme needs DeepSpeed's op async_io, which does not build on {platform.node()}: {why}. "
        "Nothing was trained. Install libaio with its headers (libaio-dev, libaio-devel) and a C++ compiler there, or offload "
        "to main memory (train.offload_optimizer, train.offload_parameters)."
    )


def _key() -> str:
    """Of what the compiled file depends on: versions, and the processor, for which it is compiled."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.is_file() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    parts = (version("deepspeed"), version("torch"), str(sys.implementation.cache_tag), platform.machine(), features)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _build(file: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="raydpo-op-", ignore_cleanup_errors=True) as folder:
        environment = {**os.environ, "TORCH_EXTENSIONS_DIR": folder, "DS_ACCELERATOR": "cpu"}
        command = [sys.executable, "-c", _PROGRAM]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_LIMIT_S)
        except subprocess.TimeoutExpired as error:
            raise NoOp(f"its build took more than {_LIMIT_S} s") from error
        if done.returncode:
            raise NoOp(f"its build ended with code {done.returncode}: {_said(done.stderr)}")
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        shutil.copyfile(done.stdout.splitlines()[-1], part)
        part.replace(file)


def _said(errors: str) -> str:
    """The line of a failed build that says most."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    told = [line for line in lines if "error:" in line or "Error:" in line or "not found" in line]
    return (told or lines or ["no word"])[-1][:300]
