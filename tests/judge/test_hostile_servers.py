"""A judge server may do anything: each behaviour is a reply, or an error of that request alone that says what came."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import time
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from raydpo.errors import WorkerError
from raydpo.judge.endpoint import Endpoint
from raydpo.judge.pairwise import Pairwise
from raydpo.judge.post import LONGEST_WAIT_S, retry_after_s
from raydpo.judge.verdict import LONGEST_REASON, judge_row
from tests.judge.servers import Answer, serving

KEY = "canary-oai-7f3a"
ONE = [{"role": "user", "content": "hello"}]


def reply(content: Any, **more: Any) -> str:
    return json.dumps({"choices": [{"message": {"content": content}, **more}]})


def sending(*pieces: bytes, promised: int | None = None, headers: dict[str, str] | None = None) -> Answer:
    """200 with a body as it is, and a Content-Length that need not be true."""

    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        if promised is not None:
            handler.send_header("Content-Length", str(promised))
        handler.end_headers()
        for piece in pieces:
            handler.wfile.write(piece)

    return lambda body: behave


def dripping(start: bytes) -> Answer:
    """`start`, and then a byte at a time without an end."""

    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(start)
        while True:
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.02)

    return lambda body: behave


def flooding(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"x" * 65536)


def hanging_up(handler: BaseHTTPRequestHandler) -> None:
    """No answer at all."""


def first_then(first: Any, then: Any) -> Callable[[], Answer]:
    def make() -> Answer:
        counter = itertools.count()
        return lambda body: first if next(counter) == 0 else then

    return make


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
GOOD = reply("fine")
DATE = formatdate(time.time() - 60, usegmt=True)
TOO_SLOW = r"the judge is too slow: no whole reply within 0\.3 s \(judge\.timeout_s\).*\(tries: 2\)"

BEHAVIOURS: dict[str, tuple[Callable[[], Answer], str, int]] = {
    # how it answers; the reply, or / and what the error says; requests that it gets
    "a good reply": (lambda: lambda body: "fine", "fine", 1),
    "a drip of a body": (lambda: dripping(HEAD), f"/{TOO_SLOW}", 2),
    "a drip of a head": (lambda: dripping(b"HTTP/1.1 200 OK\r\nX: "), f"/{TOO_SLOW}", 2),
    "a body without an end": (lambda: lambda body: flooding, "/its reply has more than 65,536 bytes", 1),
    "a large body": (lambda: lambda body: (200, reply("x" * 2**22)), "/its reply has more than 65,536 bytes", 1),
    "deep nesting": (lambda: lambda body: (200, "[" * 60_000), "/nested too deep to be read", 1),
    "an echo of the key": (
        lambda: lambda body: (400, f"bad key Bearer {KEY}"),
        "/bad key Bearer <redacted OPENAI_API_KEY>",
        1,
    ),
    "an echo at the cut": (lambda: lambda body: (400, "x" * 190 + KEY), r"/status 400 \(x{190}<redacted", 1),
    "an echo in a good reply": (lambda: lambda body: (200, f'{{"you": "{KEY}"}}'), "/<redacted OPENAI_API_KEY>", 1),
    "a redirect": (lambda: lambda body: (307, "", {"Location": "http://127.0.0.1:9/"}), "/status 307", 1),
    "429 with a date": (first_then((429, "wait", {"Retry-After": DATE}), "fine"), "fine", 2),
    "429 with nonsense": (first_then((429, "wait", {"Retry-After": "soon"}), "fine"), "fine", 2),
    "500 for ever": (lambda: lambda body: (500, "oops"), r"/status 500 \(oops\) \(tries: 5\)", 5),
    "an empty body": (lambda: lambda body: (200, ""), r"/without choices\[0\]\.message\.content: ''", 1),
    "no JSON": (lambda: lambda body: (200, "<html>"), r"/without choices\[0\]\.message\.content: '<html>'", 1),
    "another schema": (lambda: lambda body: (200, '{"choices": "A"}'), r"/without choices\[0\]", 1),
    "no choices": (lambda: lambda body: (200, '{"choices": []}'), r"/without choices\[0\]", 1),
    "content null": (lambda: lambda body: (200, reply(None)), r"/without choices\[0\]", 1),
    "content NaN": (lambda: lambda body: (200, reply(float("nan"))), r"/without choices\[0\]", 1),
    "a huge number": (lambda: lambda body: (200, f'{{"choices": {"9" * 6000}}}'), r"/without choices\[0\]", 1),
    "bytes that are no text": (lambda: sending(b'{"choices": "\xff\xfe"}'), r"/without choices\[0\]", 1),
    "half of a pair": (lambda: lambda body: (200, reply("\ud800")), "\ud800", 1),
    "a cut reply": (
        lambda: lambda body: (200, reply("A", finish_reason="length")),
        r"/cut after judge\.max_tokens = 512",
        1,
    ),
    "hanging up": (first_then(hanging_up, "fine"), "fine", 2),
    "hanging up in the middle": (
        lambda: sending(b'{"choices": [', promised=500),
        r"/ended 487 bytes before the end.*tries: 5",
        5,
    ),
    "broken chunks": (
        lambda: sending(b"zz\r\nabc", headers={"Transfer-Encoding": "chunked"}),
        r"/no connection \(.*\) \(tries: 5\)",
        5,
    ),
    "a short length": (lambda: sending(GOOD.encode(), promised=10), r"/without choices\[0\]", 1),
    "an encoding": (
        lambda: sending(gzip.compress(GOOD.encode()), headers={"Content-Encoding": "gzip"}),
        "/its reply is encoded as gzip, which was not asked for",
        1,
    ),
    "no HTTP": (
        lambda: lambda body: lambda handler: handler.wfile.write(b"SSH-2.0\r\n\r\n") and None,
        r"/BadStatusLine",
        5,
    ),
}


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_a_server_that(behaviour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    make, expected, num_requests = BEHAVIOURS[behaviour]
    timeout_s = 0.3 if "drip" in behaviour else 30
    with serving(make()) as served:
        client = Endpoint(served.url, "m", timeout_s=timeout_s, most_bytes=65_536, first_wait_s=0.001)
        (found,) = client([ONE])
    assert len(served.requests) == num_requests
    if not expected.startswith("/"):
        assert found == expected
        return
    assert isinstance(found, WorkerError)
    assert str(found).startswith(f"{served.url}/chat/completions: ")
    assert re.search(expected[1:], str(found)), str(found)
    assert KEY not in str(found)
    assert len(str(found)) < 500


@pytest.mark.parametrize("behaviour", ["deep nesting", "half of a pair", "an echo of the key", "a cut reply"])
def test_its_row_fails_with_a_reason_that_can_be_kept(behaviour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(BEHAVIOURS[behaviour][0]()) as served:
        verdict = judge_row(Pairwise(Endpoint(served.url, "m")), "p", ["one", "two"])
    assert verdict.scores is None
    assert 0 < len(verdict.reason.encode()) <= LONGEST_REASON
    assert KEY not in verdict.reason


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("7", 7),
        ("0.5", 0.5),
        ("-3", 0),
        ("1e9", LONGEST_WAIT_S),
        ("inf", LONGEST_WAIT_S),
        ("nan", 0),
        ("soon", 0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST_WAIT_S),
        ("Fri, 31 Dec 99999999999 23:59:59 GMT", 0),
    ],
)
def test_what_a_server_asks_to_wait(value: str | None, seconds: float) -> None:
    assert retry_after_s(value) == seconds


def test_a_date_is_counted_from_now() -> None:
    assert 20 < retry_after_s(formatdate(time.time() + 30, usegmt=True)) <= 30
