"""Whether models and data sets of the hub can be had: offline or not, with a token or without. Never which token."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from raydpo.doctor.finding import Finding

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_YES = ("1", "ON", "YES", "TRUE")


def check() -> Iterator[Finding]:
    """One finding: reachable by choice, and as whom."""
    offline = [name for name in OFFLINE if os.environ.get(name, "").upper() in _YES]
    reach = (
        f"offline ({', '.join(offline)}): only what is in the cache is found"
        if offline
        else "asked for what is not on disk"
    )
    yield Finding("hub", "ok", f"{reach}; token: {'yes' if has_token() else 'no, so gated models are refused'}")


def has_token() -> bool:
    """Whether the hub's library would find a token."""
    if any(os.environ.get(name) for name in TOKENS):
        return True
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    path = Path(os.environ.get("HF_TOKEN_PATH", home / "token")).expanduser()
    try:
        return path.stat().st_size > 0
    except OSError:
        return False
