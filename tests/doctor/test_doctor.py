"""What `raydpo doctor` finds, each with a machine that has it, as far as one can be made here."""

from __future__ import annotations

import errno
import fcntl
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raydpo import cli
from raydpo.doctor import (
    Finding,
    clock,
    devices,
    examination,
    examine_all,
    folder_abilities,
    hub_access,
    machine_limits,
    ray_exposure,
    versions,
)
from raydpo.doctor.listeners import Listener, listeners_of

ROOT = Path(__file__).parents[2]
CANARY = "hf_canary0123456789abcdef"
SECRETS = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "RAY_AUTH_TOKEN",
    "OPENAI_API_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "WANDB_API_KEY",
)


def by_name(findings: Iterator[Finding] | list[Finding]) -> dict[str, Finding]:
    found = list(findings)
    assert len({finding.name for finding in found}) == len(found)
    return {finding.name: finding for finding in found}


def refusing(number: int) -> Any:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SECRETS, *hub_access.OFFLINE, "RAY_ADDRESS", "RAY_AUTH_MODE", "HF_HOME", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("package", "found", "level"),
    [
        ("ray", "2.53.9", "fail"),
        ("ray", "2.54", "ok"),
        ("ray", "2.60.0", "ok"),
        ("ray", "3", "ok"),
        ("torch", "2.9.1+cu128", "fail"),
        ("torch", "2.10.0a0+git", "ok"),
        ("torch", "unknown", "fail"),
        ("torch", None, "fail"),
    ],
)
def test_versions_with_known_holes_fail(package: str, found: str | None, level: str) -> None:
    finding = versions.floor(package, found)
    assert finding.level == level
    assert (found or "not installed") in finding.text
    assert level == "ok" or f"pip install '{package}>=" in finding.text


def test_the_stack_is_compared_with_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "constraints.txt"
    here = versions.installed("numpy")
    torch = str(versions.installed("torch")).partition("+")[0]
    lock.write_text(f"# tested\nnumpy=={here}\ntorch=={torch}\nno-such-package==1\n")
    assert versions.against_lock(lock) == Finding("stack", "ok", "2 packages in the versions of constraints.txt")
    lock.write_text("numpy==0.1\n")
    finding = versions.against_lock(lock)
    assert finding.level == "warn"
    assert f"numpy {here} (tested: 0.1)" in finding.text
    assert versions.against_lock(tmp_path / "gone").level == "ok"


def test_a_folder_of_this_machine_can_do_everything_and_stays_as_it_was(tmp_path: Path) -> None:
    found = by_name(folder_abilities.check("run.dir", tmp_path / "not" / "there"))
    assert [name for name in found if name != "run.dir"] == [f"run.dir {name}" for name in folder_abilities._FINE]
    assert {finding.level for name, finding in found.items() if name != "run.dir"} == {"ok"}
    assert str(tmp_path / "not" / "there") in found["run.dir"].text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "function", "number", "name", "level"),
    [
        (fcntl, "flock", errno.ENOLCK, "flock", "warn"),
        (os, "link", errno.EPERM, "link", "warn"),
        (os, "replace", errno.EXDEV, "rename", "fail"),
        (os, "fsync", errno.EINVAL, "folder fsync", "warn"),
        (os, "fsync", errno.EIO, "folder fsync", "warn"),
    ],
)
def test_what_a_file_system_lacks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, function: str, number: int, name: str, level: str
) -> None:
    monkeypatch.setattr(module, function, refusing(number))
    found = by_name(folder_abilities.check("run.dir", tmp_path))
    assert found[f"run.dir {name}"].level == level
    assert {finding.name for finding in found.values() if finding.level != "ok"} - {"run.dir"} == {f"run.dir {name}"}


@pytest.mark.parametrize(("name", "function"), [("flock", "flock"), ("link", "link")])
def test_an_ability_that_keeps_nobody_out_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, function: str
) -> None:
    monkeypatch.setattr(fcntl if name == "flock" else os, function, lambda *_: None)
    assert by_name(folder_abilities.check("run.dir", tmp_path))[f"run.dir {name}"].level == "warn"


@pytest.mark.parametrize(("shift_s", "word"), [(-3600.0, "ahead"), (3600.0, "behind")])
def test_a_server_with_another_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift_s: float, word: str
) -> None:
    now = folder_abilities.time.time
    monkeypatch.setattr(folder_abilities.time, "time", lambda: now() + shift_s)
    finding = by_name(folder_abilities.check("run.dir", tmp_path))["run.dir file times"]
    assert finding.level == "warn"
    assert f"3600 s {word}" in finding.text


def test_a_folder_that_nobody_can_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    (only,) = folder_abilities.check("run.dir", tmp_path / "file" / "below")
    assert only.level == "fail"
    assert "is a file" in only.text
    monkeypatch.setattr(folder_abilities.tempfile, "mkdtemp", refusing(errno.EROFS))
    *_, last = folder_abilities.check("run.dir", tmp_path)
    assert last == Finding("run.dir", "fail", f"{tmp_path} cannot be written to (Read-only file system)")


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mount") is None, reason="only root can mount a small file system"
)
def test_a_disk_of_seven_megabytes(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=7m", "small", str(tmp_path)], check=False).returncode:
        pytest.skip("this container may not mount")
    try:
        finding = by_name(folder_abilities.check("run.dir", tmp_path))["run.dir"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert finding.level == "fail"
    assert "on tmpfs" in finding.text


@pytest.mark.parametrize(
    ("folder", "kind", "network"),
    [
        ("/data/runs", "nfs4", True),
        ("/data", "nfs4", True),
        ("/database", "ext4", False),
        ("/my runs/a", "fuse.gcsfuse", True),
    ],
)
def test_the_file_system_is_that_of_the_closest_mount(tmp_path: Path, folder: str, kind: str, network: bool) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda / ext4 rw 0 0\nserver:/x /data nfs4 rw 0 0\nbucket /my\\040runs fuse.gcsfuse rw 0 0\nproc /proc proc rw 0 0\n"
    )
    assert folder_abilities.kind_of_mount(Path(folder), mounts) == kind
    assert folder_abilities.is_network(kind) == network
    assert folder_abilities.kind_of_mount(Path(folder), tmp_path / "gone") == "an unknown file system"


@pytest.mark.parametrize(("free", "level"), [(50 * 2**20, "fail"), (2**30, "warn"), (2**40, "ok")])
def test_free_bytes(free: int, level: str) -> None:
    assert folder_abilities.room("run.dir", free, "here").level == level


@pytest.mark.parametrize(("state", "level"), [(None, "ok"), (0, "ok"), (4, "ok"), (5, "warn")])
def test_a_clock_that_nothing_keeps_in_step(state: int | None, level: str) -> None:
    assert clock.judged(state).level == level
    assert clock.kernel_state() in (None, 0, 1, 2, 3, 4, 5)


def test_cpus_and_memory_of_a_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tmp_path / "cpu" / "job", tmp_path / "pod" / "job"
    for folder in (old, new, tmp_path / "memory" / "job"):
        folder.mkdir(parents=True)
    (tmp_path / "pod" / "cpu.max").write_text("150000 100000\n")
    (new / "cpu.max").write_text("max 100000\n")
    (new / "memory.max").write_text("max\n")
    (tmp_path / "pod" / "memory.max").write_text(f"{2**30}\n")
    groups = "0::/pod/job\n"
    monkeypatch.setattr(
        machine_limits, "_read", lambda path: groups if path == Path("/proc/self/cgroup") else read(path)
    )
    read = lambda path: path.read_text().strip() if path.is_file() else None  # noqa: E731
    assert machine_limits.cpu_quota(tmp_path) == 1.5
    assert machine_limits.memory_limit(tmp_path) == 2**30
    groups = "4:cpu,cpuacct:/job\n3:memory:/job\n"
    (old / "cpu.cfs_quota_us").write_text("400000\n")
    (old / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "memory" / "job" / "memory.limit_in_bytes").write_text(f"{2**63 - 4096}\n")
    assert machine_limits.cpu_quota(tmp_path) == 4.0
    assert machine_limits.memory_limit(tmp_path) is None
    (old / "cpu.cfs_quota_us").write_text("-1\n")
    assert machine_limits.cpu_quota(tmp_path) is None


def test_too_few_cpus_too_little_memory_a_small_shm_and_an_open_umask(tmp_path: Path) -> None:
    finding = machine_limits.cpus(16, 2.5)
    assert finding.level == "warn"
    assert "RAYDPO_LOCAL_CPUS=2" in finding.text
    assert machine_limits.cpus(16, None).level == machine_limits.cpus(4, 4.0).level == "ok"
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 16777216 kB\nMemFree: 1 kB\nMemAvailable: 8388608 kB\n")
    assert machine_limits.memory(meminfo, None) == Finding("memory", "ok", "8.0 GiB free of 16.0")
    assert "limited to 1.0 GiB" in machine_limits.memory(meminfo, 2**30).text
    assert machine_limits.memory(meminfo, 2**30).level == "warn"
    assert machine_limits.shared_memory(tmp_path / "gone").level == "warn"
    assert machine_limits.umask(0o000).level == "warn"
    assert machine_limits.umask(0o022) == Finding("umask", "ok", "0022")


def test_the_umask_is_left_as_it_is() -> None:
    before = os.umask(0o027)
    try:
        assert by_name(machine_limits.check())["umask"].text == "0027"
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("body", "nodes", "levels"),
    [
        ("echo 'NVIDIA H200, 143771 MiB, 570.1'; echo 'NVIDIA H200, 143771 MiB, 570.1'", ["nvidia0"], ["ok", "ok"]),
        ("exit 9", ["nvidia0"], ["fail"]),
        ("exit 6", [], ["ok"]),
    ],
)
def test_what_nvidia_smi_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, nodes: list[str], levels: list[str]
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "installed", lambda _: "2.13.0+cu130")
    assert [finding.level for finding in devices.gpus(str(program), nodes)] == levels
    monkeypatch.setattr(devices, "installed", lambda _: "2.13.0+cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    more = ["warn", "fail"] if len(levels) == 2 else []
    assert [finding.level for finding in devices.gpus(str(program), nodes)] == [*levels, *more]
    program.unlink()
    assert [finding.level for finding in devices.gpus(str(program), nodes)] == ["fail"]


@pytest.mark.parametrize(("status", "level"), [(200, "fail"), (401, "ok"), (403, "ok")])
def test_a_dashboard_that_wants_no_token(status: int, level: str) -> None:
    class Dashboard(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/api/version"
            assert "Authorization" not in self.headers
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Dashboard) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        found = ray_exposure.answer("127.0.0.1", server.server_port)
        thread.join()
    assert found == status
    assert ray_exposure.dashboard("127.0.0.1", found).level == level
    assert ray_exposure.dashboard("127.0.0.1", None).level == "ok"


def test_ports_of_a_process_are_found_with_the_address_they_listen_at() -> None:
    code = (
        "import socket, sys\n"
        "places = (('127.0.0.1', socket.AF_INET), ('0.0.0.0', socket.AF_INET), ('::1', socket.AF_INET6))\n"
        "held = [socket.create_server((host, 0), family=family) for host, family in places]\n"
        "print(*(each.getsockname()[1] for each in held), flush=True)\n"
        "sys.stdin.read()\n"
    )
    name = f"stands-for-gcs_server-{os.getpid()}"
    with subprocess.Popen(
        [sys.executable, "-c", code, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        loopback, everywhere, six = map(int, process.stdout.readline().split())
        found = listeners_of([name])
        process.communicate()
    expected = {Listener("127.0.0.1", loopback), Listener("0.0.0.0", everywhere), Listener("::1", six)}
    assert set(found) == expected
    finding = ray_exposure.ports(found)
    assert finding.level == "warn"
    assert str(everywhere) in finding.text
    assert str(loopback) not in finding.text
    assert ray_exposure.ports([Listener("127.0.0.1", 6379)]).level == "ok"
    assert ray_exposure.ports([]).level == "ok"


@pytest.mark.parametrize(
    ("address", "wants", "has", "level"),
    [
        ("", False, False, "ok"),
        ("local", False, False, "ok"),
        ("10.0.0.1:6379", False, True, "warn"),
        ("10.0.0.1:6379", True, False, "fail"),
        ("10.0.0.1:6379", True, True, "ok"),
    ],
)
def test_a_cluster_without_a_token(address: str, wants: bool, has: bool, level: str) -> None:
    assert ray_exposure.how_it_is_reached(address, has_token=has, wants_token=wants).level == level


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("auto", "127.0.0.1"),
        ("head:6379", "head"),
        ("[::1]:6379", "::1"),
        ("ray://user:password@head:10001/x", "head"),
        ("head", "head"),
    ],
)
def test_of_an_address_the_host_alone_is_shown(address: str, host: str) -> None:
    assert ray_exposure._host(address) == host


def test_the_hub_with_and_without_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (finding,) = hub_access.check()
    assert "token: no" in finding.text
    (tmp_path / "token").write_text(CANARY)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (finding,) = hub_access.check()
    assert finding.text == "offline (HF_HUB_OFFLINE): only what is in the cache is found; token: yes"


def test_a_check_that_breaks_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError(CANARY)

    monkeypatch.setattr(clock, "check", broken)
    found = by_name(examine_all({"run.dir": tmp_path}))
    assert found["clock"] == Finding("clock", "warn", "could not be looked at (ZeroDivisionError)")
    assert {"ray", "torch", "stack", "run.dir flock", "CPUs", "umask", "hub"} <= set(found)


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "text"])
@pytest.mark.parametrize("level", ["warn", "fail"])
def test_exit_code_and_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool, level: Any
) -> None:
    run = tmp_path / "run.yaml"
    run.write_text(
        f"model: {{path: m}}\nobjective: {{name: dpo}}\ndata: {{train: a.jsonl}}\nrun: {{dir: {tmp_path / 'out'}}}\n"
        f"reference: {{cache_dir: {tmp_path / 'cache'}}}\n"
    )
    monkeypatch.setattr(examination.clock, "check", lambda: [Finding("clock", level, "is odd")])
    monkeypatch.setattr(examination.ray_exposure, "check", lambda: [])
    code = cli.main(["doctor", str(run), *["--json"] * as_json])
    out = capsys.readouterr().out
    assert code == (level == "fail")
    if as_json:
        result = json.loads(out)
        assert result["ok"] == (level != "fail")
        assert {"name": "clock", "level": level, "text": "is odd"} in result["findings"]
        assert all(set(finding) == {"name", "level", "text"} for finding in result["findings"])
    else:
        assert any(line.split() == [level, "clock", "is", "odd"] for line in out.splitlines())
    assert str(tmp_path / "out") in out
    assert str(tmp_path / "cache") in out
    assert not (tmp_path / "out").exists()


def test_a_config_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", str(tmp_path / "gone.yaml")]) == 2
    assert "gone.yaml" in capsys.readouterr().err


def test_it_prints_no_secret_and_imports_neither_torch_nor_ray(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text(CANARY)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    secrets = dict.fromkeys(SECRETS, CANARY)
    address = {"RAY_ADDRESS": f"ray://user:{CANARY}@127.0.0.1:{port}", "RAY_AUTH_MODE": "token", "HOME": str(home)}
    code = (
        "import sys\nfrom raydpo.cli import main\nmain(['doctor', '--json'])\n"
        "print([name for name in ('torch', 'ray', 'transformers', 'deepspeed', 'datasets') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, **secrets, **address, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert CANARY not in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
