"""Ten thousand generated rows of every layout, alias and container: each is used with all that it says, or is left out with
a reason.

Decision: what was used is judged by the decoded ids of the stored examples, not by anything that the reader says of itself.
The rows are drawn anew each time; a failure prints the seed, and RAYDPO_TEST_SEED brings them back.
"""

from __future__ import annotations

import json
import os
import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from raydpo.data import prepare
from raydpo.data.bad_rows import REASONS
from raydpo.data.tokenizer import TextTokenizer
from tests.data.conftest import CHATML, Prepared, Run, config_of, save_tokenizer
from tests.data.drawn_rows import (
    CELLS,
    CONTAINERS,
    TOOL_TEMPLATE,
    TOOL_WRITERS,
    WRITERS,
    Row,
    Writer,
    sides,
    token_writers,
    turns,
)
from tests.data.test_columns import reader_of
from tests.data.test_formats import said

SEED = os.environ.get("RAYDPO_TEST_SEED") or str(random.SystemRandom().randrange(2**31))
NUM_ROWS = 10_000
WORDS = [
    *("a", "sea", "blue", "Straße", "日本語", "текст", "😀", "e\u0301", "\u00a0", "\u200d", "\t", "\n", "\n\n", "  "),
    *("<|im_start|>", "<|im_end|>", "<s>", "<|endoftext|>", '{"a": [1, 2]}', "[]", "<think>", "</think>", "\\n", "%}"),
]
_EMPTY_PROMPTS = (WRITERS["prompt by prompt"], WRITERS["whole conversations"], WRITERS["turns next to a prompt"])


def drawn_text(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.03:
        return rng.choice(["", " ", "\n", "\u00a0"])
    text = " ".join(rng.choices(WORDS, k=400 if kind > 0.995 else rng.randrange(1, 12)))
    return f"<think>\n{text}\n</think>\n\nso {rng.randrange(10**6)}" if rng.random() < 0.1 else text


@pytest.fixture(scope="module")
def tool_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ChatML that writes tools, calls and reasoning."""
    folder = tmp_path_factory.mktemp("tool_tokenizer")
    return save_tokenizer(folder, bos="<s>", eos="<|im_end|>", template=TOOL_TEMPLATE, specials=["<|im_start|>"])


def is_plain(writer: Writer) -> bool:
    """Whether rows of this kind are texts, which need no template."""
    example, _ = reader_of([row := writer("", "q", "a", "b")]).read("f:1", row)
    return isinstance(example.prompt, str)


def drawn(rng: random.Random, name: str, writer: Writer, *, with_system: bool) -> tuple[Row, list[list[str]]]:
    """A row, and the texts of its prompt with each answer, in order."""
    system = drawn_text(rng) if with_system and rng.random() < 0.4 else ""
    prompt, better, worse = (drawn_text(rng) for _ in range(3))
    if not prompt.strip() and writer not in _EMPTY_PROMPTS:
        prompt = "ask"  # an empty column of another name stops the file, with a word
    elif prompt.strip() and all(one.lstrip().startswith(prompt.strip()) for one in (better, worse)):
        prompt = f"ask {prompt}"  # answers that say the prompt again are a layout of their own
    return writer(system, prompt, better, worse), sides(name, system, prompt, better, worse)


def lost(texts: list[str], written: str) -> str | None:
    """The first of `texts` that does not stand in `written` behind those before it, as it is or inside a JSON string."""
    place, written = 0, unicodedata.normalize("NFC", written)
    for text in texts:
        wanted = unicodedata.normalize("NFC", text.strip())
        forms = (wanted, json.dumps(wanted, ensure_ascii=False)[1:-1])
        ends = [found + len(form) for form in forms if (found := written.find(form, place)) >= 0]
        if not ends:
            return text
        place = min(ends)
    return None


def kinds_of_rows(tokenizer: Path, *, templated: bool) -> dict[str, Writer]:
    """Writers of rows that `tokenizer` can read."""
    tokens = token_writers(TextTokenizer(str(tokenizer)))
    if templated:
        return {**WRITERS, **TOOL_WRITERS, **tokens}
    return {**{name: writer for name, writer in WRITERS.items() if is_plain(writer)}, **tokens}


def endings(rng: random.Random, names: list[str]) -> list[str]:
    """An ending for the file of each kind of row, every one about as often; cells hold no token ids."""
    found = [ending for _ in names for ending in rng.sample([*CONTAINERS], len(CONTAINERS))][: len(names)]
    return [
        "parquet" if "ids" in name and ending in CELLS else ending for name, ending in zip(names, found, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("templated", [True, False], ids=["template", "plain"])
def test_every_row_is_used_whole_or_left_out_with_a_reason(
    tool_tokenizer: Path, plain_tokenizer: Path, tmp_path: Path, templated: bool
) -> None:
    from transformers import AutoTokenizer

    rng = random.Random(f"{SEED} {templated}")
    print(f"again by RAYDPO_TEST_SEED={SEED}")
    tokenizer = tool_tokenizer if templated else plain_tokenizer
    writers = kinds_of_rows(tokenizer, templated=templated)
    assert len(writers) > 40
    rows_per_file = NUM_ROWS // 2 // len(writers) + 1
    paths: list[Path] = []
    meant: dict[str, Any] = {}
    for number, ((name, writer), ending) in enumerate(zip(writers.items(), endings(rng, [*writers]), strict=True)):
        rows = [drawn(rng, name, writer, with_system=templated) for _ in range(rows_per_file)]
        paths.append(tmp_path / f"{number:02}.{ending}")
        CONTAINERS[ending](paths[-1], [row for row, _ in rows])
        meant |= {f"{paths[-1]}:{line}": (f"{name} in {ending}", *row) for line, row in enumerate(rows, 1)}
    config = config_of(train=[str(path) for path in paths], max_bad_fraction=1.0, max_length=1024)
    folder = tmp_path / "run" / "data"
    done = Prepared(prepare(config, str(tokenizer), folder), folder)
    decode = AutoTokenizer.from_pretrained(tokenizer).decode
    used = done.examples()
    kinds = set()
    for prompt, answers, source in used:
        name, row, said_by = meant.pop(source)
        kinds.add(name.partition(" in ")[0])
        for texts, answer in zip(said_by, answers, strict=True):
            gone = lost(texts, decode([*prompt, *answer], clean_up_tokenization_spaces=False))
            assert gone is None, f"seed {SEED}, {name}: {gone!r} of {row} is not in what is trained on"
    for entry in done.quarantine():
        assert entry["reason"] in REASONS
        del meant[f"{entry['file']}:{entry['line']}"]
    assert not meant, f"seed {SEED}: neither used nor left out: {list(meant.values())[:3]}"
    assert kinds >= {*TOOL_WRITERS, "token ids"} if templated else "token ids" in kinds
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


@pytest.mark.parametrize("ending", [ending for ending in CONTAINERS if ending != "jsonl"])
def test_every_kind_of_row_gives_the_same_ids_from_every_container(
    tool_tokenizer: Path, tmp_path: Path, ending: str
) -> None:
    """In cells the text next to token ids is read, and alpaca's list of outputs could be an answer: it is left out."""
    writers = kinds_of_rows(tool_tokenizer, templated=True)
    found = []
    for kind in ("jsonl", ending):
        paths = {}
        for number, (name, writer) in enumerate(writers.items()):
            paths[name] = tmp_path / f"{number:02}.{kind}"
            CONTAINERS[kind](paths[name], [writer("", "Ask a.", f"good {n} é", "bad") for n in range(3)])
        config = config_of(train=list(map(str, paths.values())), max_bad_fraction=1.0)
        done = Prepared(prepare(config, str(tool_tokenizer), tmp_path / kind / "data"), tmp_path / kind / "data")
        rows = {Path(source).name.partition(".")[0] + source[-2:]: rest for *rest, source in done.examples()}
        found.append({**rows, **{f"{Path(e['file']).name[:2]}:{e['line']}": e["reason"] for e in done.quarantine()}})
    names = [*writers]
    differing = {names[int(key[:2])] for key, value in found[0].items() if found[1].get(key) != value}
    assert differing == ({"alpaca", *token_writers(TextTokenizer(str(tool_tokenizer)))} if ending in CELLS else set())
    if ending in CELLS:
        assert found[1][f"{names.index('alpaca'):02}:1"] == "too_few_answers"
