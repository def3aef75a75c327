"""Chat templates that never end, or make text without end: an error in CPU seconds, whatever thread it is in."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from raydpo.data import render_watch
from raydpo.data.bad_rows import BadRow
from raydpo.data.chat_template import Template
from raydpo.data.render_watch import Overtime, within_bounds
from raydpo.data.template import open_tokenizer
from raydpo.errors import DataError
from tests.data.conftest import CHATML, Run, save_tokenizer

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a * b %}{% endfor %}{% endfor %}"
BOMBS = {
    "loops": LOOPS,
    "times": "{{ 'x' * 20000000000 }}",
    "times-list": "{{ ([1] * 20000000000) | length }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "product": "{% set ns = namespace(n=7) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "doubling": "{% set ns = namespace(t='x') %}{% for i in range(60) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
    "joining": "{% set ns = namespace(t='x') %}{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
    "blocks": "{% set ns = namespace(t='x') %}{% for i in range(60) %}{% set t %}{{ ns.t }}{{ ns.t }}{% endset %}"
    "{% set ns.t = t %}{% endfor %}",
    "output": "{% for i in range(99999) %}{% for j in range(99999) %}{{ 'y' * 60000 }}{% endfor %}{% endfor %}",
    "macro": "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "center": "{{ 'x' | center(20000000000) }}",
    "ljust": "{{ 'x'.ljust(20000000000) }}",
    "zfill": "{{ 'x'.zfill(20000000000) }}",
    "percent": "{{ '%020000000000d' % 1 }}",
    "format": "{{ '{:>20000000000}'.format('x') }}",
    "format-filter": "{{ '%20000000000s' | format('x') }}",
    "indent": "{{ [1] | tojson(indent=2000000000) }}",
    "replace": "{{ ('x' * 60000).replace('', 'y' * 60000) }}",
    "replace-filter": "{{ ('x' * 60000) | replace('x', 'y' * 60000) }}",
    "join": "{{ (['y' * 60000] * 60000) | join(',') }}",
    "batch": "{{ [1] | batch(2000000000, 'x') | list }}",
    "lipsum": "{{ lipsum(n=1000000) }}",
    "nesting": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_the_start(name: str, tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path, bos=None, eos="<|endoftext|>", template=BOMBS[name], specials=[])
    if name == "lipsum":  # is not there: refused as any template that fails is, row by row
        with pytest.raises(BadRow, match="lipsum"):
            Template(open_tokenizer(str(folder), None)).write([{"role": "user", "content": "x"}])
        return
    with pytest.raises(DataError, match=r"The chat template of .* (took more than 2 CPU|asks for more|calls itself)"):
        open_tokenizer(str(folder), None)


def test_a_bomb_that_waits_for_its_row_leaves_two_out_and_then_ends(run: Run, tmp_path: Path) -> None:
    template = "{% for m in messages if m.content == 'now' %}{{ 'x' * 20000000000 }}{% endfor %}" + CHATML
    folder = save_tokenizer(
        tmp_path / "t", bos=None, eos="<|im_end|>", template=template, specials=["<|im_start|>"], writes_bos=False
    )
    rows = [
        {"prompt": [{"role": "user", "content": text}], "chosen": [said("a")], "rejected": [said("b")]}
        for text in ("one", "now", "two")
    ]
    report = run(rows, folder, max_bad_fraction=0.5).report
    assert report.quarantined == {"template_limits": 1}
    assert report.pairs_used == 2
    with pytest.raises(DataError, match="asks for more than it may: 1 characters or items 20,000,000,000 times"):
        run([rows[1]] * 3 + rows[:1] * 30, folder)


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def test_what_a_template_may_make_grows_with_the_conversation(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path, bos=None, eos="<|endoftext|>", template=CHATML, specials=[])
    long = "x" * (9 << 20)
    assert long in Template(open_tokenizer(str(folder), None)).write([{"role": "user", "content": long}])


def spin() -> None:
    while True:
        sum(range(100))


def test_it_holds_in_any_thread_and_ends_that_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render_watch, "MOST_CPU_S", 0.2)
    said: dict[str, str] = {}

    def work(name: str, job: Any) -> None:
        try:
            said[name] = within_bounds(job)
        except Overtime:
            said[name] = "overtime"

    def wait() -> str:
        time.sleep(0.3)  # takes no CPU time: only what a thread uses itself counts
        return "done"

    jobs = {"spins": spin, "waits": wait, "spins too": spin}
    threads = [threading.Thread(target=work, args=one) for one in jobs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {"spins": "overtime", "waits": "done", "spins too": "overtime"}


def test_a_template_file_that_is_none_is_refused(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path / "t", bos=None, eos="<|endoftext|>", template=None, specials=[])
    (tmp_path / "long.jinja").write_text("x" * (2 << 20))
    for name in (str(tmp_path), "/dev/zero", str(tmp_path / "long.jinja"), "a\0"):
        with pytest.raises(DataError, match="cannot be read"):
            open_tokenizer(str(folder), name)


UNHEARD = """
import hashlib
import sys
from raydpo.data import render_watch

render_watch.MOST_CPU_S = 0.0
for _ in range(3):
    try:
        render_watch.within_bounds(lambda: hashlib.pbkdf2_hmac("sha256", b"", b"", 10**6))  # in C: heard at its end
    except render_watch.Overtime:
        print("over")
sys.settrace(lambda *_: None)
(lambda: None)()
sys.settrace(None)
print("traced")
"""


def test_what_was_not_heard_in_time_leaves_nothing_behind() -> None:
    """An interpreter with a mark of something to raise, and nothing to raise, does not come back from a trace function."""
    done = subprocess.run([sys.executable, "-c", UNHEARD], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines() == ["over"] * 3 + ["traced"]
