"""Every file that the glossary names exists, and its words are in order."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = re.findall(r"^\| ([a-zA-Z][^|]*?) \| ([^|]+?) \| ([^|]+?) \|$", (ROOT / "docs/glossary.md").read_text(), re.M)[
    1:
]


def test_every_named_file_exists():
    named = [name for _, _, files in ROWS for name in re.findall(r"`([^`]+)`", files)]
    assert len(named) >= len(ROWS) > 40
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_words_are_in_order_and_there_once():
    words = [word for word, _, _ in ROWS]
    assert words == sorted(words, key=str.lower)
    assert len(set(words)) == len(words)


def test_words_of_the_field_are_there():
    words = " ".join(word for word, _, _ in ROWS)
    for word in ("prefetch", "weight sync", "rollout", "registry", "callback", "dataloader", "gradient checkpointing"):
        assert word in words
