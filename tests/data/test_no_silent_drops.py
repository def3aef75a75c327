"""Ten thousand generated rows of every layout and alias: each is used with all that it says, or is left out with a reason.

Decision: what was used is judged by the decoded ids of the stored examples, not by anything that the reader says of itself.
The rows are drawn anew each time; a failure prints the seed, and RAYDPO_TEST_SEED brings them back.
"""

from __future__ import annotations

import os
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydpo.data import prepare
from raydpo.data.aliases import PAIRS, PROMPTS
from raydpo.data.bad_rows import REASONS
from tests.data.conftest import CHATML, Prepared, Run, config_of, save_tokenizer, write_jsonl
from tests.data.test_columns import reader_of
from tests.data.test_formats import said, user

SEED = os.environ.get("RAYDPO_TEST_SEED") or str(random.SystemRandom().randrange(2**31))
NUM_ROWS = 10_000
WORDS = [
    *("a", "sea", "blue", "Straße", "日本語", "текст", "😀", "e\u0301", "\u00a0", "\u200d", "\t", "\n", "\n\n", "  "),
    *("<|im_start|>", "<|im_end|>", "<s>", "<|endoftext|>", '{"a": [1, 2]}', "[]", "<think>", "</think>", "\\n", "%}"),
]
Row = dict[str, Any]
Writer = Callable[[str, str, str, str], Row]
"""System text, prompt, better and worse answer -> the row that says so."""


def turns(system: str, prompt: str) -> list[dict[str, Any]]:
    return [*([{"role": "system", "content": system}] if system else []), user(prompt)]


def pair_of(chosen: str, rejected: str) -> Writer:
    return lambda s, p, a, b: {"system": s, "prompt": p, chosen: a, rejected: b}


def named(prompt: str) -> Writer:
    return lambda s, p, a, b: {"system": s, prompt: p, "chosen": a, "rejected": b}


def voted(first: str, second: str, vote: str) -> Writer:
    return lambda s, p, a, b: {"system": s, "prompt": p, first: b, second: a, vote: "b"}


def parts(text: str) -> list[dict[str, str]]:
    middle = len(text) // 2
    return [{"type": "text", "text": text[:middle]}, {"type": "text", "text": text[middle:]}]


WRITERS: dict[str, Writer] = {
    "whole conversations": lambda s, p, a, b: {"chosen": [*turns(s, p), said(a)], "rejected": [*turns(s, p), said(b)]},
    "turns next to a prompt": lambda s, p, a, b: {
        "prompt": turns(s, p),
        "chosen": [said(a)],
        "rejected": [said(b)],
    },
    "nested parts": lambda s, p, a, b: {
        "prompt": [*turns(s, "")[:-1], {"role": "user", "content": parts(p)}],
        "chosen": [{"role": "assistant", "content": parts(a)}],
        "rejected": [{"role": "assistant", "content": parts(b)}],
    },
    "ultrafeedback": lambda s, p, a, b: {
        "system": s,
        "prompt": p,
        "chosen": [user(p), said(a)],
        "rejected": [user(p), said(b)],
    },
    "sharegpt": lambda s, p, a, b: {
        "system": s,
        "conversations": [{"from": "human", "value": p}],
        "chosen": {"from": "gpt", "value": a},
        "rejected": {"from": "gpt", "value": b},
    },
    "alpaca": lambda s, p, a, b: {"system": s, "instruction": p, "input": "", "output": [a, b]},
    "hh": lambda s, p, a, b: {
        "chosen": f"\n\nHuman: {p}\n\nAssistant: {a}",
        "rejected": f"\n\nHuman: {p}\n\nAssistant: {b}",
        "system": s,
    },
    "scored": lambda s, p, a, b: {"system": s, "prompt": p, "answers": [b, a], "scores": [1, 2]},
    "OpenAI": lambda s, p, a, b: {
        "input": {"messages": turns(s, p), "tools": []},
        "preferred_output": [said(a)],
        "non_preferred_output": [said(b)],
    },
    "HelpSteer3": lambda s, p, a, b: {
        "context": turns(s, p),
        "response1": b,
        "response2": a,
        "overall_preference": 2,
    },
    "votes in columns": lambda s, p, a, b: {
        "system": s,
        "prompt": p,
        "response_a": a,
        "response_b": b,
        "winner_model_a": 1,
        "winner_model_b": 0,
    },
    "PKU-SafeRLHF": lambda s, p, a, b: {
        "system": s,
        "prompt": p,
        "response_0": b,
        "response_1": a,
        "better_response_id": 1,
    },
    "SHP": lambda s, p, a, b: {"system": s, "history": p, "human_ref_A": a, "human_ref_B": b, "labels": 1},
    "Nectar": lambda s, p, a, b: {
        "system": s,
        "prompt": p,
        "answers": [{"answer": b, "rank": 2}, {"answer": a, "rank": 1}],
    },
    **{f"prompt by {name}": named(name) for name in ("prompt", *PROMPTS)},
    **{
        f"{alias.title}: {alias.needs}": pair_of(*alias.needs)
        for alias in PAIRS
        if len(alias.needs) == 2 and alias.convert is None
    },
    **{f"{alias.title}: {alias.needs}": voted(*alias.needs) for alias in PAIRS if alias.title == "arena votes"},
}


_EMPTY_PROMPTS = (WRITERS["prompt by prompt"], WRITERS["whole conversations"], WRITERS["turns next to a prompt"])


def drawn_text(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.03:
        return rng.choice(["", " ", "\n", "\u00a0"])
    text = " ".join(rng.choices(WORDS, k=400 if kind > 0.995 else rng.randrange(1, 12)))
    return f"<think>\n{text}\n</think>\n\nso {rng.randrange(10**6)}" if rng.random() < 0.1 else text


def is_plain(writer: Writer) -> bool:
    """Whether rows of this kind are texts, which need no template."""
    example, _ = reader_of([row := writer("", "q", "a", "b")]).read("f:1", row)
    return isinstance(example.prompt, str)


def drawn(rng: random.Random, writer: Writer, *, with_system: bool) -> tuple[Row, list[list[str]]]:
    """A row, and the texts of its prompt with each answer, in order."""
    system = drawn_text(rng) if with_system and rng.random() < 0.4 else ""
    prompt, better, worse = (drawn_text(rng) for _ in range(3))
    if not prompt.strip() and writer not in _EMPTY_PROMPTS:
        prompt = "ask"  # an empty column of another name stops the file, with a word
    elif prompt.strip() and all(one.lstrip().startswith(prompt.strip()) for one in (better, worse)):
        prompt = f"ask {prompt}"  # answers that say the prompt again are a layout of their own
    return writer(system, prompt, better, worse), [[system, prompt, better], [system, prompt, worse]]


def lost(texts: list[str], written: str) -> str | None:
    """The first of `texts` that does not stand in `written` behind those before it."""
    place, written = 0, unicodedata.normalize("NFC", written)
    for text in texts:
        wanted = unicodedata.normalize("NFC", text.strip())
        found = written.find(wanted, place)
        if found < 0:
            return text
        place = found + len(wanted)
    return None


@pytest.mark.parametrize("templated", [True, False], ids=["template", "plain"])
def test_every_row_is_used_whole_or_left_out_with_a_reason(
    chat_tokenizer: Path, plain_tokenizer: Path, tmp_path: Path, templated: bool
) -> None:
    from transformers import AutoTokenizer

    rng = random.Random(f"{SEED} {templated}")
    print(f"again by RAYDPO_TEST_SEED={SEED}")
    tokenizer = chat_tokenizer if templated else plain_tokenizer
    writers = {name: writer for name, writer in WRITERS.items() if templated or is_plain(writer)}
    assert len(writers) > 40
    rows_per_file = NUM_ROWS // 2 // len(writers) + 1
    paths: list[Path] = []
    meant: dict[str, Any] = {}
    for number, (name, writer) in enumerate(writers.items()):
        rows = [drawn(rng, writer, with_system=templated) for _ in range(rows_per_file)]
        paths.append(write_jsonl(tmp_path / f"{number:02}.jsonl", [row for row, _ in rows]))
        meant |= {f"{paths[-1]}:{line}": (name, *row) for line, row in enumerate(rows, 1)}
    config = config_of(train=[str(path) for path in paths], max_bad_fraction=1.0, max_length=1024)
    folder = tmp_path / "run" / "data"
    done = Prepared(prepare(config, str(tokenizer), folder), folder)
    decode = AutoTokenizer.from_pretrained(tokenizer).decode
    used = done.examples()
    for prompt, answers, source in used:
        name, row, sides = meant.pop(source)
        for texts, answer in zip(sides, answers, strict=True):
            gone = lost(texts, decode([*prompt, *answer], clean_up_tokenization_spaces=False))
            assert gone is None, f"seed {SEED}, {name}: {gone!r} of {row} is not in what is trained on"
    for entry in done.quarantine():
        assert entry["reason"] in REASONS
        del meant[f"{entry['file']}:{entry['line']}"]
    assert not meant, f"seed {SEED}: neither used nor left out: {list(meant.values())[:3]}"
    report = done.report
    assert report.lines_read == rows_per_file * len(writers) == len(used) + sum(report.quarantined.values())
    print(len(used), report.quarantined)


def test_rows_of_which_a_template_drops_the_system_turn_are_left_out(run: Run, tmp_path: Path) -> None:
    deaf = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
    assert deaf != CHATML
    tokenizer = save_tokenizer(tmp_path / "t", bos=None, eos="<|im_end|>", template=deaf, specials=["<|im_start|>"])
    rows = [
        {"prompt": turns("Be terse." if number % 2 else "", "q"), "chosen": [said("a")], "rejected": [said("b")]}
        for number in range(20)
    ]
    done = run(rows, tokenizer)
    assert done.report.quarantined == {"template_dropped": 10}
    assert {entry["line"] % 2 for entry in done.quarantine()} == {0}
    assert len(done.examples()) == 10
