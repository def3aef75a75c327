"""The command line: verbs, exit codes, where text goes. In-process where possible, as a program where it matters."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import raydpo
from raydpo import cli
from raydpo.errors import IntegrityError, WorkerError
from raydpo.schema.events import Note

RUN = "run: {dir: a}\nmodel: {path: b}\n"


@pytest.fixture
def run_yaml(tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return str(path)


def program(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    root = str(Path(raydpo.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": root}
    command = [sys.executable, "-m", "raydpo", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, **more)


def test_python_m_is_the_program(run_yaml: str) -> None:
    shown = program("config", "show", run_yaml, "run.seed=4")
    assert shown.returncode == 0
    assert "seed: 4" in shown.stdout
    wrong = program("train", run_yaml, "run.seed=x", "train.epochz=1")
    assert wrong.returncode == 2
    assert wrong.stdout == ""
    assert wrong.stderr.splitlines()[0] == "raydpo train: 4 problems", "the two keys, no data, and no model in b"
    assert "Traceback" not in wrong.stderr
    assert "train.epochs" in wrong.stderr


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for flag, words in (("--version", raydpo.__version__), ("--help", "quickstart")):
        with pytest.raises(SystemExit) as stopped:
            cli.main([flag])
        assert stopped.value.code == 0
        assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "VERB"),
        (["trian", "x"], "invalid choice"),
        (["train"], "run.yaml"),
        (["config"], "ACTION"),
        (["train", "run.yaml", "--train.epochs=2"], "without dashes: train.epochs=2"),
        (["train", "run.yaml", "--jsn"], "--jsn"),
        (["quickstart", "--seed", "-1"], "allowed: a whole number"),
        (["quickstart", "a.b=c"], "a.b=c"),
        (["cache", "gc", "--older-than-days", "nan"], "allowed: a number of days"),
        (["cache", "gc", "--grace-hours", "-1"], "allowed: a number of hours"),
        (["cache", "compact", "--shard-mb", "0"], "a whole number of megabytes, 1 to 1,024"),
    ],
)
def test_wrong_words_end_with_2(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["precompute", "train", "check", "evaluate", "config show"])
def test_every_verb_refuses_a_missing_file(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*verb.split(), str(tmp_path / "no.yaml")]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"raydpo {verb}: ")
    assert "there is no such file" in shown.err


def test_overrides_may_follow_flags(run_yaml: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "show", run_yaml, "run.seed=1", "--json", "train.epochs=3"]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert shown["config"]["run"]["seed"] == 1
    assert shown["config"]["train"]["epochs"] == 3
    assert shown["origins"]["train.epochs"] == "command line"
    assert shown["origins"]["run.dir"] == f"{run_yaml}:1"


def test_config_show_loads_back(run_yaml: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "show", run_yaml, "train.learning_rate=5e-7"]) == 0
    again = tmp_path / "again.yaml"
    again.write_text(capsys.readouterr().out)
    assert raydpo.Config.load(again) == raydpo.Config.load(run_yaml, ["train.learning_rate=5e-7"])


def test_config_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "schema"]) == 0
    assert "ObjectiveSection" in json.loads(capsys.readouterr().out)["$defs"]


def work(observer: Any) -> dict[str, Any]:
    print("a library prints")
    observer(Note("info", "a note"))
    return {"train": {"steps": 3}, "eval": {"last": {"eval/loss": float("nan")}}, "run_dir": Path("a")}


def test_json_is_the_last_line_of_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._with_screen(Namespace(json=True), work) == 0
    shown = capsys.readouterr()
    summary = json.loads(shown.out)
    assert summary == {"train": {"steps": 3}, "eval": {"last": {"eval/loss": None}}, "run_dir": "a"}
    for words in ("a library prints", "a note", "3 steps"):
        assert words in shown.err


def test_without_json_people_read_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._with_screen(Namespace(json=False), work) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    for words in ("a library prints", "a note", "3 steps"):
        assert words in shown.out


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (IntegrityError("shard x: byte 7 differs."), 1, "IntegrityError: shard x: byte 7 differs."),
        (WorkerError("rank 1 died."), 1, "WorkerError: rank 1 died."),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C. The same command goes on"),
    ],
)
def test_failures_have_their_exit_code(
    error: BaseException,
    code: int,
    said: str,
    run_yaml: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(args: Namespace) -> int:
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    assert cli.main(["train", run_yaml]) == code
    shown = capsys.readouterr()
    assert said in shown.err
    assert "Traceback" not in shown.err


def test_a_bug_keeps_its_traceback(run_yaml: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: Namespace) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "_run", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", run_yaml])


def test_a_reader_that_leaves_is_no_error() -> None:
    root = str(Path(raydpo.__file__).parents[1])
    command = f"{sys.executable} -m raydpo config schema | head -1"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": root}
    )
    assert done.stdout == "{\n"
    assert done.stderr == ""


def test_ctrl_c_on_the_program(tmp_path: Path) -> None:
    """A real SIGINT while the config is read from a pipe that never ends."""
    fifo = tmp_path / "run.yaml"
    os.mkfifo(fifo)
    root = str(Path(raydpo.__file__).parents[1])
    # A shell without job control starts background jobs with SIGINT ignored, and children inherit that: undo it.
    program = "import signal, runpy; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "runpy.run_module('raydpo', run_name='__main__', alter_sys=True)"
    held = os.open(fifo, os.O_RDWR)
    command = [sys.executable, "-c", program, "train", f"/dev/fd/{held}"]  # as a shell's <(...) gives it
    environment = {**os.environ, "PYTHONPATH": root}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, pass_fds=(held,)) as child:
        try:
            while child.poll() is None and _num_open(child.pid, fifo) < 2:
                time.sleep(0.05)  # until the program reads it
            child.send_signal(signal.SIGINT)
            _, said = child.communicate(timeout=300)
            os.close(held)
        finally:
            child.kill()  # a program that did not stop would be waited for without end
    assert child.returncode == 130
    assert b"stopped by Ctrl-C" in said
    assert b"Traceback" not in said


def _num_open(pid: int, path: Path) -> int:
    """How often a process has `path` open."""
    found = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found += link.readlink() == path
    return found


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    """A cache directory with one cache of two rows in two shards."""
    from raydpo.artifacts import CacheIdentity, ReferenceCache

    names = [field.name for field in dataclasses.fields(CacheIdentity)]
    cache = ReferenceCache(tmp_path / "cache", CacheIdentity(**{name: name for name in names}))
    cache.open()
    for number in range(2):
        values = [np.array([-1.0, -0.5 - number], dtype=np.float32)]
        cache.write_shard(f"shard-{number}", [f"{number:032x}"], values)
    return tmp_path / "cache"


def test_cache_list_verify_gc(cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--cache-dir", str(cache_dir)]
    assert cli.main(["cache", "list", *place]) == 0
    assert "2 rows  4 tokens" in capsys.readouterr().out
    assert cli.main(["cache", "list", "--json", *place]) == 0
    listed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [cache["rows"] for cache in listed["caches"]] == [2]
    assert cli.main(["cache", "verify", *place]) == 0
    assert "2 shards read, 0 damaged" in capsys.readouterr().out

    shard = sorted(cache_dir.rglob("*.arrow"))[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert cli.main(["cache", "verify", *place]) == 1
    said = capsys.readouterr().out
    assert "1 damaged" in said
    assert shard.name in said

    assert cli.main(["cache", "gc", *place]) == 0
    assert "0 removed" in capsys.readouterr().out
    assert cli.main(["cache", "gc", "--older-than-days", "0", "--dry-run", *place]) == 0
    assert "1 would be removed" in capsys.readouterr().out
    assert shard.exists()
    assert cli.main(["cache", "gc", "--older-than-days", "0", "--json", *place]) == 0
    assert len(json.loads(capsys.readouterr().out)["removals"]) == 1
    assert not shard.exists()


def test_cache_compact_and_what_runs_keep(cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--cache-dir", str(cache_dir)]
    assert cli.main(["cache", "compact", *place]) == 0
    assert "2 shards are 1, " in capsys.readouterr().out
    assert cli.main(["cache", "compact", "--json", *place]) == 0
    (done,) = json.loads(capsys.readouterr().out.splitlines()[-1])["caches"]
    assert (done["shards_before"], done["shards"], done["damaged"]) == (1, 1, [])
    assert cli.main(["cache", "gc", *place]) == 0
    assert "0 removed" in capsys.readouterr().out
    (tmp_path / "runs" / "one").mkdir(parents=True)
    pointer = {"identity": next(cache_dir.iterdir()).name}
    (tmp_path / "runs" / "one" / "reference.json").write_text(json.dumps(pointer))
    old = ["--older-than-days", "0", "--grace-hours", "0", "--json", *place]
    assert cli.main(["cache", "gc", "--runs", str(tmp_path / "runs"), *old]) == 0
    removed = [Path(removal["path"]).parent.name for removal in json.loads(capsys.readouterr().out)["removals"]]
    assert sorted(removed) == ["replaced", *["shards"] * 4], (
        "two records, two files and their list; the cache is a run's"
    )
    assert cli.main(["cache", "list", *place]) == 0
    assert "2 rows  4 tokens" in capsys.readouterr().out
    assert cli.main(["cache", "gc", "--runs", str(tmp_path / "no"), *old]) == 2
    assert "is not a folder. Nothing was removed" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["list", "verify", "compact", "gc"])
def test_a_cache_dir_that_is_not_there(action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cache", action, "--cache-dir", str(tmp_path / "no")]) == 2
    assert "is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--beta", "0.1"], "objective.beta=0.1"),
        (["--learning-rate=1e-5"], "train.learning_rate=1e-5"),
        (["--train.epochs", "2"], "train.epochs=2"),
        (["--beta"], "objective.beta=VALUE"),
    ],
    ids=lambda words: "-".join(words).strip("-") if isinstance(words, list) else None,
)
def test_a_config_value_that_is_written_as_an_option_is_written_right_in_the_error(
    run_yaml: str, capsys: pytest.CaptureFixture[str], words: list[str], meant: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", run_yaml, *words])
    assert ended.value.code == 2
    assert f"config values are given without dashes: {meant}" in capsys.readouterr().err


def test_an_option_that_nobody_knows_gets_no_hint(run_yaml: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", run_yaml, "--nonsense", "3"])
    assert "without dashes" not in capsys.readouterr().err


def test_other_names_of_an_objective_and_of_a_hub_data_set_are_told(
    run_yaml: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", run_yaml, "objective=sigmoid"]) == 2
    assert "did you mean dpo, which TRL calls so?" in capsys.readouterr().err


def test_the_shell_completes_verbs_and_options(tmp_path: Path) -> None:
    out = tmp_path / "words"
    for line, expected in (("raydpo insp", "inspect"), ("raydpo report --o", "--out")):
        env = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(out), "_ARGCOMPLETE_IFS": "\n"}
        env |= {"COMP_LINE": line, "COMP_POINT": str(len(line))}
        with contextlib.suppress(FileNotFoundError):
            out.unlink()
        root = str(Path(raydpo.__file__).parents[1])
        command = [sys.executable, "-m", "raydpo"]
        subprocess.run(command, env={**os.environ, "PYTHONPATH": root, **env}, timeout=300, capture_output=True)
        assert expected in out.read_text().split()
