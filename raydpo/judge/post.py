"""One POST to a server that may do anything: all of its answer, within a time and a number of bytes, or what came instead.

Comes in: URL, body, headers and the bounds. Goes out: the bytes of the answer. Decision: the time is that of the whole
request, so every wait on the socket gets what is left of it; a server that drips bytes is as slow as one that is silent.
Redirects are not followed, since they would carry the key elsewhere. Not bounded: looking up the name of the host.
"""

from __future__ import annotations

import http.client
import io
import math
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from raydpo.redaction import redacted

MOST_REPLY_BYTES = 4 * 2**20
"""A reply of 100,000 tokens with everything around it fits."""
LONGEST_WAIT_S = 60.0
"""What a server may ask for at most before it is asked again."""
_SHOWN = 200
_READ_BYTES = 4096

Cause = Literal["slow", "silent", "busy", "refused", "odd"]
"""slow: no whole answer in time. silent: no connection, or one that broke. busy: status 429 or 5xx. refused: a redirect, or
status 401, 403, 404. odd: anything else, which says nothing about the next request."""


class NoReply(Exception):
    """A request without an answer that can be used. The text is a clause without a full stop and without secrets.

    cause: which kind of failure it is. wait_s: what the server asked for before it is asked again.
    """

    def __init__(self, message: str, cause: Cause, wait_s: float = 0.0) -> None:
        super().__init__(redacted(message))
        self.cause, self.wait_s = cause, wait_s


def post(url: str, body: bytes, headers: Mapping[str, str], *, timeout_s: float, most_bytes: int) -> bytes:
    """The answer to `body`, at most `most_bytes` of it. Raises NoReply."""
    deadline_s = time.monotonic() + timeout_s
    request = urllib.request.Request(url, data=body, headers=dict(headers), method="POST")
    try:
        with _opener(deadline_s).open(request, timeout=timeout_s) as response:
            return _whole(response, most_bytes)
    except urllib.error.HTTPError as error:
        with error:
            raise _of_status(error) from error
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError is an OSError; ValueError: bad chunks
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, TimeoutError) or time.monotonic() >= deadline_s:
            raise NoReply(f"no whole reply within {timeout_s:g} s", "slow") from error
        raise NoReply(f"no connection ({type(reason).__name__}: {reason})", "silent") from error


def excerpt(data: bytes | str) -> str:
    """The first 200 characters of what a server said, secrets taken out before it is cut."""
    text = data if isinstance(data, str) else data[:_READ_BYTES].decode("utf-8", "replace")
    return redacted(text.strip())[:_SHOWN]


def retry_after_s(value: str | None) -> float:
    """Seconds of a header Retry-After, given as seconds or as a date; 0 when it says nothing, at most 60."""
    if not value:
        return 0.0
    try:
        wait_s = float(value)
    except ValueError:
        try:
            wait_s = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return 0.0 if math.isnan(wait_s) else min(max(0.0, wait_s), LONGEST_WAIT_S)


def _whole(response: http.client.HTTPResponse, most_bytes: int) -> bytes:
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() not in ("", "identity"):
        raise NoReply(f"its reply is encoded as {encoding[:40]}, which was not asked for", "odd")
    answer = response.read(most_bytes + 1)
    if len(answer) > most_bytes:
        raise NoReply(f"its reply has more than {most_bytes:,} bytes", "odd")
    if response.length:  # what Content-Length promised in addition
        raise NoReply(f"the connection ended {response.length:,} bytes before the end of the reply", "silent")
    return answer


def _of_status(error: urllib.error.HTTPError) -> NoReply:
    try:
        text = excerpt(error.read(_READ_BYTES))
    except (OSError, http.client.HTTPException, ValueError):
        text = ""
    message = f"status {error.code} ({text or excerpt(str(error.reason))})"
    if error.code == 429 or error.code >= 500:
        return NoReply(message, "busy", retry_after_s(error.headers.get("Retry-After")))
    return NoReply(message, "refused" if error.code < 400 or error.code in (401, 403, 404) else "odd")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _opener(deadline_s: float) -> urllib.request.OpenerDirector:
    """Opens connections whose answers are read until `deadline_s` of the monotonic clock and no longer."""

    class Response(http.client.HTTPResponse):
        def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
            super().__init__(sock, *args, **kwargs)
            self.fp = io.BufferedReader(_UntilDeadline(self.fp.detach(), sock, deadline_s))

    class Plain(http.client.HTTPConnection):
        response_class = Response

    class Tls(http.client.HTTPSConnection):
        response_class = Response

    class PlainHandler(urllib.request.HTTPHandler):
        def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Plain, request)

    class TlsHandler(urllib.request.HTTPSHandler):
        def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Tls, request)

    return urllib.request.build_opener(_NoRedirect, PlainHandler, TlsHandler)


class _UntilDeadline(io.RawIOBase):
    """Reads from a socket; each read may wait for what is left until the deadline."""

    def __init__(self, source: io.RawIOBase, sock: socket.socket, deadline_s: float) -> None:
        self._source, self._socket, self._deadline_s = source, sock, deadline_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        if self._socket.fileno() >= 0:  # else it is closed for sending, and only what was read stays
            self._socket.settimeout(left_s)
        return self._source.readinto(buffer)

    def close(self) -> None:
        self._source.close()
        super().close()
