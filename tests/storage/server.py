"""An S3-compatible server on the loopback interface, that makes conditional puts one at a time and fails where it is told to.

Goes out: `Server`: its address, and faults for requests that match. Decision: moto keeps objects in memory and looks before it
puts; the lock around conditional puts here makes that one step, as a real store does.
"""

from __future__ import annotations

import logging
import re
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Environ = dict[str, Any]
Answer = Iterable[bytes]


@dataclass
class Fault:
    """What becomes of requests.

    kind: "busy" (503, nothing done), "lost" (done, and the connection ends without an answer), "stale" (a listing that shows
        nothing).
    method, path: of the requests, the path as a pattern.
    left: how many more.
    """

    kind: str
    method: str
    path: str
    left: int = 1

    def meets(self, method: str, path: str) -> bool:
        return self.left > 0 and method == self.method and bool(re.search(self.path, path))


class Server:
    """Context manager. requests: counted as (method, path with query)."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        self._place = address, port
        self.faults: list[Fault] = []
        self.requests: Counter[str] = Counter()
        self.seen: list[str] = []
        self._one_at_a_time, self._turn = threading.Lock(), threading.Lock()

    def __enter__(self) -> Server:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._app: Callable[..., Answer] = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(*self._place, self._answer, threaded=True)
        self.url = f"http://{self._place[0]}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def add_bucket(self, name: str) -> None:
        import boto3

        boto3.client("s3", endpoint_url=self.url).create_bucket(Bucket=name)

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @contextmanager
    def failing(self, *faults: Fault) -> Iterator[None]:
        """Faults for the length of a block."""
        self.faults = list(faults)
        try:
            yield
        finally:
            self.faults = []

    def _answer(self, environ: Environ, start_response: Callable[..., Any]) -> Answer:
        method, path = environ["REQUEST_METHOD"], f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        with self._turn:
            self.requests[method] += 1
            self.seen.append(f"{method} {path}")
            fault = next((one for one in self.faults if one.meets(method, path)), None)
            if fault is not None:
                fault.left -= 1
        if fault is not None and fault.kind == "busy":
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        if "HTTP_IF_NONE_MATCH" in environ:
            with self._one_at_a_time:
                answer = list(self._app(environ, start_response))
        else:
            answer = list(self._app(environ, start_response))
        if fault is not None and fault.kind == "stale":
            listing = re.sub(rb"<Contents>.*</Contents>", b"", b"".join(answer), flags=re.DOTALL)
            return [listing.ljust(len(b"".join(answer)))]
        if fault is not None and fault.kind == "lost":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return answer


def main(address: str, port: int, bucket: str) -> None:
    """A server with a bucket, for as long as this process runs."""
    with Server(address, port) as running:
        running.add_bucket(bucket)
        print("ready", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
