"""A real HTTP server in a thread that answers like an OpenAI-compatible one."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[[BaseHTTPRequestHandler], None]
Answer = Callable[[dict[str, Any]], "str | tuple[int, str] | tuple[int, str, dict[str, str]] | Behaviour"]


class Served:
    """url: base of the endpoint. requests: (path, headers, body) of each, as they came."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []


@contextmanager
def serving(answer: Answer) -> Iterator[Served]:
    """answer(body): the text of a reply, or (status, raw body) or (status, raw body, headers), or what to
    do with the connection."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                served.requests.append((self.path, dict(self.headers), body))
                given = answer(body)
            if callable(given):
                with suppress(OSError):  # the client has left
                    given(self)
                return
            if isinstance(given, str):
                given = (200, json.dumps({"choices": [{"message": {"role": "assistant", "content": given}}]}))
            self.send_response(given[0])
            for name, value in (given[2] if len(given) > 2 else {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(given[1].encode())))
            self.end_headers()
            self.wfile.write(given[1].encode())

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True  # one may still drip
    served = Served(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def shown(body: dict[str, Any]) -> tuple[str, str]:
    """Answers A and B of a question, by the code of its marks."""
    content = body["messages"][0]["content"]
    first, second = (
        re.search(rf"(\w+) \[answer {n}\]\n(.*)\n\[end of answer {n}\] \1", content, re.DOTALL) for n in "AB"
    )
    assert first is not None
    assert second is not None
    return first[2], second[2]


def longer(body: dict[str, Any]) -> str:
    """Prefers the longer answer, says so first, and calls equal lengths a tie."""
    first, second = shown(body)
    verdict = "tie" if len(first) == len(second) else "A" if len(first) > len(second) else "B"
    return f"A has {len(first)} and B has {len(second)} characters.\n\n{verdict}\n"
