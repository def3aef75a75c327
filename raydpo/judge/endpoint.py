"""Replies of an OpenAI-compatible server: POST {endpoint}/chat/completions.

Comes in: conversations. Goes out: one reply each, or the error that took its place.
Decision: the standard library alone, so that a judge needs no client package; the price is one connection a request,
which is nothing next to the seconds that a reply takes. What may pass (429, 5xx, a lost connection) is tried again a
bounded number of times, everything else is not; redirects are not followed, since they would carry the key elsewhere.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from raydpo.errors import ConfigError, WorkerError
from raydpo.judge.pairwise import Messages
from raydpo.schema.pulse import beat

NUM_THREADS = 8
NUM_TRIES = 5
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
_EXCERPT_BYTES = 200


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class _Passing(Exception):
    """A failure that another try may not have. wait_s: what the server asked for; None: it said nothing at all."""

    def __init__(self, message: str, wait_s: float | None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Endpoint:
    """`complete` of a server: endpoint(conversations) -> replies, temperature 0.

    endpoint: base URL, such as http://host:8000/v1.
    num_threads: requests at a time.
    api_key_variable: environment variable with the key, which may be unset.
    timeout_s: longest silence of the server.
    first_wait_s: before the second try; doubles with each further one.

    Raises ConfigError for a URL that is not http or holds a password, and for a key that no header can carry.
    """

    def __init__(
        self,
        endpoint: str,
        model: str,
        *,
        api_key_variable: str = "OPENAI_API_KEY",
        timeout_s: float = 120.0,
        num_threads: int = NUM_THREADS,
        first_wait_s: float = FIRST_WAIT_S,
    ) -> None:
        _check_url(endpoint)
        self.url = endpoint.rstrip("/") + "/chat/completions"
        self.model, self.timeout_s = model, timeout_s
        self.num_threads, self.first_wait_s = num_threads, first_wait_s
        self._headers = {"Content-Type": "application/json", **_authorization(api_key_variable)}
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._is_silent = False

    def __call__(self, conversations: Sequence[Messages]) -> list[str | Exception]:
        """A reply to each conversation; a WorkerError that names URL and status where there is none."""
        if not conversations:
            return []
        with ThreadPoolExecutor(min(self.num_threads, len(conversations))) as pool:
            return list(pool.map(self._reply, conversations))

    def _reply(self, messages: Messages) -> str | Exception:
        body = json.dumps({"model": self.model, "messages": messages, "temperature": 0}).encode()
        wait_s = self.first_wait_s
        for number in itertools.count(1):
            beat()
            try:
                reply: str | Exception = self._post(body)
            except _Passing as error:
                # A server that was silent through all tries of one request is asked once by the others.
                is_silent = error.wait_s is None
                if number >= NUM_TRIES or (is_silent and self._is_silent):
                    self._is_silent = is_silent
                    return WorkerError(f"{self.url}: {error} (tries: {number})")
                time.sleep(min(max(wait_s, error.wait_s or 0.0), LONGEST_WAIT_S))
                wait_s *= 2
                continue
            except WorkerError as error:
                reply = error
            break
        self._is_silent = False
        return reply

    def _post(self, body: bytes) -> str:
        """One request. Raises _Passing, or WorkerError for what another try would not fix."""
        request = urllib.request.Request(self.url, data=body, headers=self._headers, method="POST")
        try:
            with self._opener.open(request, timeout=self.timeout_s) as response:
                status, answer = response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                message = f"status {error.code} ({_excerpt(error)})"
                if error.code == 429 or error.code >= 500:
                    raise _Passing(message, _retry_after_s(error.headers)) from error
                raise WorkerError(f"{self.url}: {message}") from error
        except (OSError, http.client.HTTPException) as error:  # URLError and TimeoutError are OSErrors
            reason = getattr(error, "reason", None) or error
            raise _Passing(f"no connection ({type(reason).__name__}: {reason})", None) from error
        try:
            content = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            content = None
        if not isinstance(content, str):
            shown = answer[:_EXCERPT_BYTES].decode("utf-8", "replace")
            raise WorkerError(f"{self.url}: status {status}, without choices[0].message.content: {shown!r}")
        return content


def _check_url(endpoint: str) -> None:
    if "@" in endpoint:
        raise ConfigError(
            "judge.endpoint: the URL holds a user name or password (it has an @), which would end up in logs; nothing was "
            "asked. Put the key into an environment variable (judge.api_key_variable)."
        )
    try:
        parts = urlsplit(endpoint)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 0) >= 0
        is_url = is_url and endpoint.isascii() and endpoint.isprintable() and " " not in endpoint
    except ValueError:
        is_url = False
    if not is_url:
        raise ConfigError(
            f"judge.endpoint: {endpoint!r} is not a URL of http or https; nothing was asked. Give the base URL of an "
            "OpenAI-compatible server, such as http://host:8000/v1."
        )


def _authorization(variable: str) -> dict[str, str]:
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"judge.api_key_variable: {variable} holds characters that no HTTP header can carry (its value is not shown); "
            "nothing was asked. Set it to the key alone."
        )
    return {"Authorization": f"Bearer {key}"} if key else {}


def _excerpt(error: urllib.error.HTTPError) -> str:
    try:
        text = error.read(_EXCERPT_BYTES).decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException):
        text = ""
    return text or str(error.reason)


def _retry_after_s(headers: Any) -> float:
    try:
        return max(0.0, float(headers.get("Retry-After", "")))
    except ValueError:
        return 0.0
