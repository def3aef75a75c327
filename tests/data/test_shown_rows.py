"""`raydpo check --show N`: rows as tokens, what has loss, and what differs from apply_chat_template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raydpo.cli import main
from raydpo.data import prepare
from raydpo.data.shown_rows import RowViewer, ShownRow
from raydpo.data.tokenizer import TextTokenizer
from raydpo.row_screen import row_lines
from tests.data.conftest import config_of, save_tokenizer, write_jsonl
from tests.data.test_ends import PAIR, chat, family

PHI3 = ["<|end|>", "<|endoftext|>"]


def shown(rows: list[Any], folder: Path, place: Path, num_rows: int = 9, **data: Any) -> list[ShownRow]:
    viewer = RowViewer(num_rows)
    path = write_jsonl(place / "rows.jsonl", rows)
    config = config_of(train=[str(path)], max_bad_fraction=1.0, **data)
    prepare(config, str(folder), place / "data", write=False, viewer=viewer)
    assert not (place / "data").exists()
    return viewer.rows


def compared(rows: list[Any], folder: Path, place: Path, **data: Any) -> list[str]:
    """What is said of the chosen answer of each row."""
    return [row.parts[1].compared for row in shown(rows, folder, place, **data)]


def test_the_first_used_rows_of_each_split(tmp_path: Path) -> None:
    folder = family("qwen3", tmp_path / "model")
    rows = [{"prompt": "no answer"}, *({**PAIR, "prompt": f"{number}: the sky is"} for number in range(40))]
    found = shown(rows, folder, tmp_path, num_rows=2, eval_fraction=0.3)
    assert sorted(row.split for row in found) == ["eval", "eval", "train", "train"]
    assert all(row.place[-2:] != ":1" for row in found), "a row that is left out is not shown"
    tokenizer = TextTokenizer(str(folder))
    for row in found:
        assert [part.name for part in row.parts] == ["prompt", "chosen", "rejected"]
        for part in row.parts:
            assert "".join(part.tokens) == tokenizer.decode(part.ids)
            assert set(part.has_loss) == {part.name != "prompt"}
    assert shown(rows, folder, tmp_path, num_rows=0) == []


def test_a_conversation_is_compared_with_the_whole_one(tmp_path: Path) -> None:
    phi3, llama3 = family("phi3", tmp_path / "phi3", PHI3), family("llama3", tmp_path / "llama3")
    assert compared([chat()], phi3, tmp_path) == [
        "differs from apply_chat_template: '\\n<|endoftext|>' behind the end '<|end|>' is cut"
    ]
    (said,) = compared([chat()], llama3, tmp_path, bos="never")
    assert said.startswith(
        "differs from apply_chat_template: it begins with 0 BOS here and with 1 there (data.bos is never)"
    )
    assert "(prompt and answer are tokenised apart where a token would join them)" in said
    (said,) = compared([chat({"content": "a <|end|> b"})], phi3, tmp_path)
    assert "is '<|' here and '<|end|>' there (control tokens in the text are read as plain text)" in said
    (said,) = compared([chat()], family("gptoss", tmp_path / "gptoss"), tmp_path)
    assert said == "equal to apply_chat_template on 26 July 2024, the day that templates are told here"


def test_an_end_that_is_appended_is_said(tmp_path: Path) -> None:
    folder = family("gemma", tmp_path / "gemma", "<eos>")
    assert compared([chat()], folder, tmp_path) == [
        "differs from apply_chat_template: '<eos>' is put behind it, since the template writes no end"
    ]


def test_plain_text_is_compared_with_the_tokenizers_own_call(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path / "t", bos="<s>", eos="</s>", template=None, specials=[], writes_bos=False)
    first, second = compared([PAIR, {**PAIR, "prompt": ""}], folder, tmp_path)
    end = "'</s>' is put behind it, since the tokenizer writes no end"
    assert first == f"differs from the tokenizer's own call: {end}"
    assert "it begins with 1 BOS here and with 0 there (an empty prompt needs one)" in second
    (said,) = compared(
        [{**PAIR, "prompt": "the sky is " * 9}], folder, tmp_path, max_length=9, overlong="truncate_prompt"
    )
    assert "the prompt is cut to data.max_length" in said


def test_a_mask_is_shown_as_runs_with_and_without_loss() -> None:
    part = {"name": "chosen", "ids": [5, 6, 7, 8], "tokens": ["a", " b\n", "\t", "\x1b[2J"], "compared": "equal"}
    row = {"split": "train", "place": "f:1", "parts": [{**part, "has_loss": [True, True, False, True]}]}
    lines = [line.plain for line in row_lines(row, 100)]
    assert lines == [
        "train  f:1",
        "  chosen    4 tokens, 3 with loss",
        "    loss    a⟨5⟩ ␣b\\n⟨6⟩",
        "    no loss \\t⟨7⟩",
        "    loss    \\x1b[2J⟨8⟩",
        "            equal",
        "",
    ]


def test_no_line_is_wider_than_asked() -> None:
    part = {"name": "chosen", "ids": list(range(200)), "tokens": ["日本"] * 200, "has_loss": [True] * 200}
    row = {"split": "train", "place": "f:1", "parts": [{**part, "compared": "differs from this " * 20}]}
    lines = list(row_lines(row, 60))
    assert max(line.cell_len for line in lines) <= 60
    assert sum(line.plain.count("日本") for line in lines) == 200


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    folder = family("phi3", tmp_path / "model", PHI3)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 500}))
    rows = write_jsonl(tmp_path / "rows.jsonl", [chat(), chat({"content": "is wide"})])
    path = tmp_path / "run.yaml"
    path.write_text(f"run: {{dir: {tmp_path / 'run'}}}\nmodel: {{path: {folder}}}\ndata: {{train: [{rows}]}}\n")
    return path


def test_check_prints_rows_and_writes_nothing(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(config_file), "--show", "1"]) == 0
    out = capsys.readouterr().out
    assert "conversations: answers end with <|end|> (generation_config.json)" in out
    assert out.count("rows.jsonl:1") == 1
    assert "rows.jsonl:2" not in out
    assert "behind the end '<|end|>' is cut" in " ".join(out.split())
    assert not (config_file.parent / "run").exists()
    assert main(["check", str(config_file), "--json", "--show", "2"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["place"].rpartition(":")[2] for row in summary["rows"]] == ["1", "2"]
    assert summary["rows"][0]["parts"][1]["tokens"][-1] == "<|end|>"
    assert main(["check", str(config_file), "--json"]) == 0
    assert "rows" not in json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_number_that_is_none_is_refused(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["check", str(config_file), "--show", "-1"])
    assert "allowed: a whole number of rows, 0 to 10,000" in capsys.readouterr().err
