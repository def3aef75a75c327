"""Replies of an OpenAI-compatible server: POST {endpoint}/chat/completions.

Comes in: conversations. Goes out: one reply each, or the error that took its place; and how far it is, for whoever listens.
Decision: the standard library alone, so that a judge needs no client package; the price is one connection a request,
which is nothing next to the seconds that a reply takes. What may pass is tried again a bounded number of times, everything
else is not; when requests fail alike in a row the server is taken for gone, and the rest of the batch is not asked.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from raydpo.config.round_sections import REQUEST_TIMEOUT_S
from raydpo.errors import ConfigError, WorkerError
from raydpo.judge.asked import Asked, Asking, unheard
from raydpo.judge.pairwise import Messages
from raydpo.judge.post import LONGEST_WAIT_S, MOST_REPLY_BYTES, Cause, NoReply, excerpt, post
from raydpo.redaction import keep_secret
from raydpo.schema.pulse import beat

NUM_THREADS = 8
NUM_TRIES = 5
NUM_TRIES_OF_SLOW = 2
"""A server that is too slow for a request is not faster when it gets the request again."""
NUM_ALIKE = 8
"""Requests that fail of the same cause in a row before the server counts as gone."""
FIRST_WAIT_S = 1.0
_OF_THE_SERVER: tuple[Cause, ...] = ("slow", "silent", "busy", "refused")


class Endpoint:
    """`complete` of a server: endpoint(conversations) -> replies, temperature 0.

    endpoint: base URL, such as http://host:8000/v1.
    num_threads: requests at a time.
    api_key_variable: environment variable with the key, which may be unset.
    max_tokens: longest reply; one that is cut there is an error.
    timeout_s: for one request, from connecting to the last byte.
    most_bytes: of an answer.
    first_wait_s: before the second try; doubles with each further one.
    tell: gets the progress of each batch, from several threads, one at a time.

    Raises ConfigError for a URL that is not http or holds a password, and for a key that no header can carry.
    """

    def __init__(
        self,
        endpoint: str,
        model: str,
        *,
        api_key_variable: str = "OPENAI_API_KEY",
        max_tokens: int = 512,
        timeout_s: float = REQUEST_TIMEOUT_S,
        most_bytes: int = MOST_REPLY_BYTES,
        num_threads: int = NUM_THREADS,
        first_wait_s: float = FIRST_WAIT_S,
        tell: Callable[[Asked], None] = unheard,
    ) -> None:
        _check_url(endpoint)
        self.url = endpoint.rstrip("/") + "/chat/completions"
        self.model, self.max_tokens, self.timeout_s, self.most_bytes = model, max_tokens, timeout_s, most_bytes
        self.num_threads, self.first_wait_s, self.tell = num_threads, first_wait_s, tell
        self._headers = {"Content-Type": "application/json", **_authorization(api_key_variable)}
        self._limit_key = "max_tokens"
        self._health = _Health()

    def __call__(self, conversations: Sequence[Messages]) -> list[str | Exception]:
        """A reply to each conversation; a WorkerError that names URL and status where there is none."""
        if not conversations:
            return []
        asking = Asking(self.url, len(conversations), self.tell)
        probed = [self._reply(conversations[0], asking, is_probe=True)] if self._health.is_gone else []
        rest = conversations[len(probed) :]
        pool = ThreadPoolExecutor(min(self.num_threads, len(conversations)))
        try:
            return probed + list(pool.map(lambda messages: self._reply(messages, asking), rest))
        except BaseException:  # a person or a deadline ends the batch: what waits for its next try gives up
            asking.is_over.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _reply(self, messages: Messages, asking: Asking, *, is_probe: bool = False) -> str | Exception:
        try:
            if self._health.is_gone and not is_probe:
                return WorkerError(f"{self.url}: not asked, after {NUM_ALIKE} requests in a row: {self._health.said}")
            return self._tried(messages, asking)
        finally:
            asking.finished()

    def _tried(self, messages: Messages, asking: Asking) -> str | Exception:
        wait_s = self.first_wait_s
        for number in itertools.count(1):
            beat()
            try:
                reply = self._post(messages)
            except NoReply as error:
                if number < self._most_tries(error.cause) and not self._health.is_gone:
                    pause_s = min(max(wait_s, error.wait_s), LONGEST_WAIT_S)
                    asking.tried_again(f"{self._said(error)}; asked again in {pause_s:.3g} s (try {number + 1})")
                    wait_s *= 2
                    if not asking.is_over.wait(pause_s):
                        continue
                tries = f" (tries: {number})" if error.cause in ("slow", "silent", "busy") else ""
                told = f"{self._said(error)}{tries}"
                self._health.failed(error.cause, told)
                return WorkerError(f"{self.url}: {told}")
            self._health.answered()
            return reply
        raise AssertionError("tries are bounded")

    def _most_tries(self, cause: Cause) -> int:
        """A server that was silent or too slow through all tries of one request is asked once by the others."""
        if cause in ("slow", "silent") and self._health.last == cause:
            return 1
        return {"slow": NUM_TRIES_OF_SLOW, "silent": NUM_TRIES, "busy": NUM_TRIES}.get(cause, 1)

    def _said(self, error: NoReply) -> str:
        if error.cause != "slow":
            return str(error)
        return (
            f"the judge is too slow: {error} (judge.timeout_s). Raise it, lower judge.max_tokens ({self.max_tokens}), or "
            "give the server less to do at a time"
        )

    def _post(self, messages: Messages) -> str:
        """One request; two for a server that knows the bound on tokens by its other name alone."""
        key = self._limit_key
        asked = {"model": self.model, "messages": messages, "temperature": 0, key: self.max_tokens}
        try:
            answer = post(
                self.url,
                json.dumps(asked).encode(),
                self._headers,
                timeout_s=self.timeout_s,
                most_bytes=self.most_bytes,
            )
        except NoReply as error:
            if key == "max_tokens" and "max_completion_tokens" in str(error) and error.cause == "odd":
                self._limit_key = "max_completion_tokens"
                return self._post(messages)
            raise
        return self._content(answer)

    def _content(self, answer: bytes) -> str:
        try:
            choice = json.loads(answer)["choices"][0]
            content, ending = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError):
            content = ending = None
        except RecursionError:
            raise NoReply("status 200, with JSON that is nested too deep to be read", "odd") from None
        if ending == "length":
            raise NoReply(
                f"the reply was cut after judge.max_tokens = {self.max_tokens} tokens (finish_reason: length), so its last "
                "line is no verdict. Raise judge.max_tokens, or ask for short explanations in judge.instruction",
                "odd",
            )
        if not isinstance(content, str):
            raise NoReply(f"status 200, without choices[0].message.content: {excerpt(answer)!r}", "odd")
        return content


class _Health:
    """How the last requests ended, whichever thread made them. last: the cause that all of them failed of, if they did."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.last: Cause | None = None
        self.said, self._num_alike = "", 0

    @property
    def is_gone(self) -> bool:
        return self._num_alike >= NUM_ALIKE

    def answered(self) -> None:
        with self._lock:
            self.last, self._num_alike = None, 0

    def failed(self, cause: Cause, said: str) -> None:
        """A cause of one request alone (`odd`) is an answer, too: the server is there."""
        if cause not in _OF_THE_SERVER:
            return self.answered()
        with self._lock:
            self._num_alike = self._num_alike + 1 if cause == self.last else 1
            self.last, self.said = cause, said


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
    keep_secret(variable, key)
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"judge.api_key_variable: {variable} holds characters that no HTTP header can carry (its value is not shown); "
            "nothing was asked. Set it to the key alone."
        )
    return {"Authorization": f"Bearer {key}"} if key else {}
