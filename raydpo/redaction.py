"""Secrets of the environment, taken out of text that people read or that is kept.

Comes in: messages, log lines and settings. Goes out: the same with `<redacted NAME>` where the value of a variable stood.
Decision: what is secret is told by the names of variables alone, and only values of 8 characters and more count, so that
`false` stays a word. Called where text is made, in the process whose environment it may hold; rows (prompts, answers,
samples) never pass through here. Price: a path in a variable named like a secret is taken out of messages, too.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote

SHORTEST_SECRET = 8
"""Characters."""
_NAMES = re.compile("TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
_USERINFO = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/\s@'\"<>]+@")
_kept: dict[str, str] = {}


def keep_secret(name: str, value: str) -> None:
    """Take `value` out of text as well, though its variable `name` is not named like a secret."""
    if len(value) >= SHORTEST_SECRET:
        _kept[name] = value


def redacted(text: str) -> str:
    """`text` without secrets, as they are or escaped as repr, JSON and URLs do, and without user and password of a URL."""
    found = [item for item in os.environ.items() if len(item[1]) >= SHORTEST_SECRET and _NAMES.search(item[0])]
    pattern, names = _pattern_of((*found, *_kept.items()))
    if pattern is not None:
        text = pattern.sub(lambda match: f"<redacted {names[match[0]]}>", text)
    return _USERINFO.sub(r"\1<redacted userinfo>@", text)


def redacted_values(value: Any) -> Any:
    """A JSON value with every text in it `redacted`, keys of objects as they are."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {key: redacted_values(inner) for key, inner in value.items()}
    return [redacted_values(inner) for inner in value] if isinstance(value, list | tuple) else value


def redacting_logger(name: str) -> logging.Logger:
    """The logger `name`, whose lines are `redacted`."""
    logger = logging.getLogger(name)
    if not any(isinstance(each, _Redacting) for each in logger.filters):
        logger.addFilter(_Redacting())
    return logger


class _Redacting(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redacted(record.getMessage()), None
        return True


@lru_cache(maxsize=8)
def _pattern_of(secrets: tuple[tuple[str, str], ...]) -> tuple[re.Pattern[str] | None, dict[str, str]]:
    """What matches any of them, the longest first; and text -> name."""
    names: dict[str, str] = {}
    for name, value in secrets:
        for one in (value, *value.splitlines()):  # a key of several lines may be printed line by line
            for form in (one, repr(one)[1:-1], json.dumps(one)[1:-1], quote(one, safe="")):
                if len(form.strip()) >= SHORTEST_SECRET:
                    names.setdefault(form.strip(), name)
    longest_first = sorted(names, key=len, reverse=True)
    return (re.compile("|".join(map(re.escape, longest_first))) if names else None), names
