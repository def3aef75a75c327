"""The client of an endpoint, against a real server: tries, errors, keys."""

from __future__ import annotations

import itertools
import socket
from typing import Any

import pytest

from raydpo.errors import ConfigError, WorkerError
from raydpo.judge.asked import Asked
from raydpo.judge.endpoint import NUM_ALIKE, NUM_TRIES, NUM_TRIES_OF_SLOW, Endpoint
from tests.judge.servers import serving
from tests.runtime.ray_head import free_ports

ONE = [{"role": "user", "content": "hello"}]


def endpoint(url: str, **more: Any) -> Endpoint:
    return Endpoint(url, "m", **{"first_wait_s": 0.001, "timeout_s": 30, **more})


def error_of(reply: str | Exception) -> str:
    assert isinstance(reply, WorkerError)
    return str(reply)


def test_replies_come_in_the_order_of_the_questions() -> None:
    questions = [[{"role": "user", "content": f"{number} é \ud800"}] for number in range(20)]
    with serving(lambda body: body["messages"][0]["content"].split()[0]) as served:
        assert endpoint(served.url)(questions) == [str(number) for number in range(20)]
        assert endpoint(served.url)([]) == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_passes_is_tried_again(status: int) -> None:
    counter = itertools.count()
    with serving(lambda body: (status, "busy") if next(counter) < 2 else "fine") as served:
        assert endpoint(served.url)([ONE]) == ["fine"]
    assert len(served.requests) == 3


def test_tries_are_bounded_and_the_error_names_url_and_status() -> None:
    with serving(lambda body: (503, "overloaded")) as served:
        (reply,) = endpoint(served.url)([ONE])
    expected = f"{served.url}/chat/completions: status 503 (overloaded) (tries: {NUM_TRIES})"
    assert error_of(reply) == expected
    assert len(served.requests) == NUM_TRIES


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_what_does_not_pass_is_not_tried_again(status: int) -> None:
    with serving(lambda body: (status, "no" * 1000)) as served:
        (reply,) = endpoint(served.url)([ONE])
    assert error_of(reply).startswith(f"{served.url}/chat/completions: status {status} (nono")
    assert len(error_of(reply)) < 300
    assert len(served.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 307])
def test_a_redirect_is_not_followed(status: int) -> None:
    with serving(lambda body: "stolen") as other, serving(lambda body: (status, "", {"Location": other.url})) as served:
        (reply,) = endpoint(served.url)([ONE])
    assert f"status {status}" in error_of(reply)
    assert other.requests == []


@pytest.mark.parametrize(
    "body", ["", "not json", "[]", "{}", '{"choices": []}', '{"choices": [{"message": {"content": null}}]}']
)
def test_a_body_without_a_reply_is_an_error_with_an_excerpt(body: str) -> None:
    with serving(lambda _: (200, body)) as served:
        (reply,) = endpoint(served.url)([ONE])
    assert "status 200, without choices[0].message.content" in error_of(reply)
    assert repr(body) in error_of(reply)


def test_a_server_that_is_not_there_is_tried_in_full_once() -> None:
    client = endpoint(f"http://127.0.0.1:{free_ports(1)[0]}/v1", num_threads=1)
    first, second = client([ONE, ONE])
    assert "no connection (ConnectionRefusedError" in error_of(first)
    assert error_of(first).endswith(f"(tries: {NUM_TRIES})")
    assert error_of(second).endswith("(tries: 1)")


def test_silence_is_an_error_after_the_timeout() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        client = endpoint(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.05)
        (reply,) = client([ONE])
    assert "the judge is too slow: no whole reply within 0.05 s (judge.timeout_s)" in error_of(reply)
    assert error_of(reply).endswith(f"(tries: {NUM_TRIES_OF_SLOW})")


def test_the_key_is_sent_when_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda body: (401, "who are you")) as served:
        monkeypatch.delenv("JUDGE_KEY", raising=False)
        endpoint(served.url, api_key_variable="JUDGE_KEY")([ONE])
        monkeypatch.setenv("JUDGE_KEY", "s3cret\n")
        (reply,) = endpoint(served.url, api_key_variable="JUDGE_KEY")([ONE])
    assert "Authorization" not in served.requests[0][1]
    assert served.requests[1][1]["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in error_of(reply)


def test_a_key_that_no_header_can_carry_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "s3cret\nX-Other: 1")
    with pytest.raises(ConfigError, match="JUDGE_KEY holds characters") as caught:
        endpoint("http://localhost", api_key_variable="JUDGE_KEY")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["", "localhost:8000/v1", "file:///etc/passwd", "http://", "http://h:port/v1", "http://h/a b"]
)
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(ConfigError, match=r"judge\.endpoint: .* is not a URL of http or https"):
        endpoint(url)


@pytest.mark.parametrize("url", ["http://me:s3cret@host/v1", "http://me:s3cret@", "me:s3cret@host"])
def test_a_url_with_a_password_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match="the URL holds a user name or password") as caught:
        endpoint(url)
    assert "s3cret" not in str(caught.value)


def test_a_server_that_is_busy_after_a_silence_is_asked_again() -> None:
    counter = itertools.count()
    with serving(lambda body: (503, "busy") if next(counter) < 2 else "fine") as served:
        client = endpoint(f"http://127.0.0.1:{free_ports(1)[0]}/v1")
        error_of(client([ONE])[0])
        client.url = served.url
        assert client([ONE]) == ["fine"]


def test_the_tokens_asked_for_are_bounded() -> None:
    with serving(lambda body: "fine") as served:
        endpoint(served.url)([ONE])
        endpoint(served.url, max_tokens=7)([ONE])
    assert [body["max_tokens"] for _, _, body in served.requests] == [512, 7]
    assert all("max_completion_tokens" not in body for _, _, body in served.requests)


def test_a_server_that_knows_the_bound_by_its_other_name() -> None:
    def answer(body: dict[str, Any]) -> Any:
        if "max_tokens" in body:
            return 400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        return f"at most {body['max_completion_tokens']}"

    with serving(answer) as served:
        client = endpoint(served.url, max_tokens=9)
        assert client([ONE]) == client([ONE]) == ["at most 9"]
    assert len(served.requests) == 3, "it is found out once"


@pytest.mark.parametrize("status", [401, 404, 503])
def test_a_server_that_fails_alike_is_not_asked_for_every_row(status: int) -> None:
    with serving(lambda body: (status, "sorry")) as served:
        client = endpoint(served.url, num_threads=1)
        replies = client([ONE] * 40)
        tries = NUM_TRIES if status == 503 else 1
        assert len(served.requests) == NUM_ALIKE * tries
        assert all(f"status {status} (sorry)" in error_of(reply) for reply in replies)
        assert f"not asked, after {NUM_ALIKE} requests in a row" in error_of(replies[-1])
        served.requests.clear()
        client([ONE] * 40)
        assert len(served.requests) == 1, "a later batch asks once whether it is back"


def test_a_server_that_is_back_is_asked_again() -> None:
    bad = True
    with serving(lambda body: (404, "starting") if bad else "fine") as served:
        client = endpoint(served.url)
        client([ONE] * 20)
        bad = False
        assert client([ONE] * 20) == ["fine"] * 20


def test_rows_that_fail_by_themselves_stop_no_others() -> None:
    with serving(lambda body: (400, "too long") if "long" in body["messages"][0]["content"] else "fine") as served:
        replies = endpoint(served.url, num_threads=1)([[{"role": "user", "content": "long"}]] * 20 + [ONE])
    assert replies[-1] == "fine"
    assert len(served.requests) == 21


def test_every_request_that_is_sent_again_is_told() -> None:
    heard: list[Asked] = []
    counter = itertools.count()
    with serving(lambda body: (429, "later") if next(counter) < 3 else "fine") as served:
        assert endpoint(served.url, tell=heard.append)([ONE] * 5) == ["fine"] * 5
    lines = [asked.line for asked in heard if asked.line]
    assert len(lines) == 3
    assert all(line.startswith(f"{served.url}/chat/completions: status 429 (later); asked again in ") for line in lines)
    assert heard[-1] == Asked(5, 5, 3)


def test_a_batch_that_is_ended_does_not_wait_for_its_tries() -> None:
    """The first wait would be an hour."""

    class Enough(BaseException):
        pass

    def tell(asked: Asked) -> None:
        raise Enough

    with serving(lambda body: (503, "busy")) as served, pytest.raises(Enough):
        endpoint(served.url, first_wait_s=3600, tell=tell)([ONE] * 3)
