"""Answers of several turns: the loss covers what the assistant says, in text and in token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydpo.artifacts.examples import ExampleTable
from raydpo.data.bad_rows import BadRow
from raydpo.data.formats import FORMATS
from raydpo.data.messages import Example
from raydpo.data.template import render
from raydpo.data.tokenizer import TextTokenizer
from tests.data.conftest import Prepared, Run, save_tokenizer
from tests.data.test_formats import said, user
from tools import template_families

pytest.importorskip("trl", reason="the templates of families are read from TRL's wheel")

CALL = [{"type": "function", "id": "call00001", "function": {"name": "weather", "arguments": {"city": "Paris"}}}]
CALLING = {"role": "assistant", "content": "", "tool_calls": CALL}
TOOL = {"role": "tool", "content": "sunny", "name": "weather", "tool_call_id": "call00001"}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}}}]


def table_of(prepared: Prepared) -> ExampleTable:
    """The one pair that was prepared."""
    assert prepared.report.pairs_used == 1, prepared.report.quarantined
    return ExampleTable.open(prepared.folder, "train")


@pytest.mark.parametrize("name", ["qwen2_5", "llama3_1", "glm4moe", "gptoss", "nemotron_3_nano", "qwen3_6", "lfm2_2_5"])
def test_the_loss_covers_the_assistants_turns(run: Run, tmp_path: Path, name: str) -> None:
    folder = template_families.save(template_families.source(name), tmp_path / "t")
    tokenizer = TextTokenizer(str(folder))
    row = {
        "prompt": [user("How is it?")],
        "chosen": [CALLING, TOOL, said("Fine weather.")],
        "rejected": [said("No idea.")],
        "tools": TOOLS,
    }
    examples = table_of(run([row], folder))
    ids, (mask, other) = examples.answer_ids(0)[0], examples.answer_masks(0)
    assert other is None
    assert mask is not None
    taught, rest = (tokenizer.decode(ids[np.asarray(mask) == side]) for side in (True, False))
    assert "Paris" in taught
    assert "Fine weather." in taught
    assert "sunny" not in taught
    assert "sunny" in rest
    assert mask[-1]
    whole = render(Example(row["prompt"], [row["chosen"]], tools=TOOLS), tokenizer, "plain")  # type: ignore[arg-type]
    first, last = whole.spans[0]  # type: ignore[misc]
    text = whole.answers[0]
    assert "Fine weather." in text[slice(*last)]
    assert "sunny" in text[first[1] : last[0]]


def test_control_tokens_in_the_text_move_no_span(tmp_path: Path) -> None:
    tokenizer = TextTokenizer(str(template_families.save(template_families.source("qwen2_5"), tmp_path / "t")))
    turns = [said("a <|im_end|> b"), {"role": "tool", "content": "<|im_start|>x"}, said("c <|im_end|>")]
    found = render(Example([user("q <|im_end|>")], [turns]), tokenizer, "plain")
    first, last = found.spans[0]  # type: ignore[misc]
    assert found.answers[0][slice(*first)].startswith("a <|im_end|> b")
    assert found.answers[0][slice(*last)].startswith("c <|im_end|>")
    assert "<|im_start|>x" in found.answers[0][first[1] : last[0]]


def test_pairs_part_where_the_assistant_does() -> None:
    asked = [user("q"), said("a"), user("r")]
    row = {"chosen": [*asked, said("b"), user("s"), said("c")], "rejected": [*asked, said("x"), user("t"), said("y")]}
    example = FORMATS["conversational"].convert(row, 2)
    assert example.prompt == asked
    assert example.answers == [row["chosen"][3:], row["rejected"][3:]]


@pytest.mark.parametrize("longer", [[user("t"), said("c")], [user("s"), said("b"), user("u"), said("d")]])
def test_pairs_that_part_at_a_user_are_two_prompts(longer: list[Any]) -> None:
    asked = [user("q"), said("a")]
    row = {"chosen": [*asked, user("s"), said("b")], "rejected": [*asked, *longer]}
    with pytest.raises(BadRow) as caught:
        FORMATS["conversational"].convert(row, 2)
    assert caught.value.reason == "differing_prompts"


def test_a_prompt_that_the_assistant_ends_is_continued(run: Run, tmp_path: Path) -> None:
    folder = template_families.save(template_families.source("llama3"), tmp_path / "t")
    tokenizer = TextTokenizer(str(folder))
    row = {"prompt": [user("Count."), said("One, two")], "chosen": [said(", three")], "rejected": [said(", four")]}
    examples = table_of(run([row], folder))
    assert tokenizer.decode(examples.prompt_ids(0)).endswith("<|end_header_id|>\n\nOne, two")
    assert tokenizer.decode(examples.answer_ids(0)[0]) == ", three<|eot_id|>"


def test_one_turn_has_no_mask(run: Run, tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m['content'] + '</s>' }}{% endfor %}"
    folder = save_tokenizer(tmp_path / "t", bos=None, eos="</s>", template=template, specials=[])
    examples = table_of(run([{"prompt": [user("q")], "chosen": [said("a")], "rejected": [said("b")]}], folder))
    assert examples.answer_masks(0) == [None, None]
