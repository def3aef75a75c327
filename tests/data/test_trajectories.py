"""Answers of several turns: the loss covers what the assistant says, in text and in token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydpo.artifacts.examples import ExampleTable
from raydpo.data.bad_rows import BadRow
from raydpo.data.chat_template import Template
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


FAMILIES = ["qwen2_5", "llama3_1", "glm4moe", "gptoss", "nemotron_3_nano", "qwen3", "qwen3_6", "lfm2_2_5"]


@pytest.mark.parametrize("name", FAMILIES)
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


def family(name: str, tmp_path: Path) -> TextTokenizer:
    return TextTokenizer(str(template_families.save(template_families.source(name), tmp_path / "t")))


ONE_CALL: list[Any] = [CALLING, TOOL, said("Fine weather.")]
TWO_CALLS: list[Any] = [CALLING, TOOL, {**CALLING, "content": "And then?"}, TOOL, said("Fine weather.")]
SAID_TWICE: list[Any] = [said("Fine. "), user("Fine."), said("Fine."), user("sunny?"), said("Fine weather.")]


@pytest.mark.parametrize("turns", [ONE_CALL, TWO_CALLS, SAID_TWICE], ids=["one call", "two calls", "users"])
def test_a_turn_that_is_written_differently_when_others_follow_is_trained_as_in_the_whole(
    tmp_path: Path, turns: list[Any]
) -> None:
    """Qwen3 writes an empty block for reasoning in the last turn alone."""
    tokenizer = family("qwen3", tmp_path)
    template = Template(tokenizer, TOOLS)
    asked = [user("Fine. How is it?")]
    assert not template.write([*asked, *turns]).startswith(template.write([*asked, *turns[:1]]).rstrip())
    found = render(Example(asked, [turns], tools=TOOLS), tokenizer, "plain")
    assert found.prompt + found.answers[0] == template.write([*asked, *turns])
    spans = found.spans[0]
    assert spans is not None
    spoken = [turn for turn in turns if turn["role"] == "assistant"]
    assert len(spans) == len(spoken)
    last = 0
    for (start, stop), turn in zip(spans, spoken, strict=True):
        text = found.answers[0][start:stop]
        assert text.rstrip().endswith("<|im_end|>")
        assert text.count("<|im_end|>") == 1
        assert "<|im_start|>" not in text
        assert turn["content"].strip() in text
        assert ("Paris" in text) == bool(turn.get("tool_calls"))
        assert found.answers[0][last:start].endswith("<|im_start|>assistant\n") or not start
        last = stop


def test_reasoning_that_a_later_turn_would_drop_leaves_the_row_out(tmp_path: Path) -> None:
    turns = [{**said("b"), "reasoning_content": "Because."}, user("and?"), said("c")]
    with pytest.raises(BadRow, match="reasoning of turn 1") as caught:
        render(Example([user("q")], [turns]), family("qwen3", tmp_path), "plain")
    assert caught.value.reason == "template_dropped"


def test_a_turn_whose_end_cannot_be_told_leaves_the_row_out(tmp_path: Path) -> None:
    """A template that writes other marks of an end behind turns that others follow."""
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ('</s>' if loop.last else '<n>') }}{% endfor %}"
    )
    folder = save_tokenizer(tmp_path / "t", bos=None, eos="</s>", template=template, specials=[])
    row = Example([user("q")], [[said("a"), user("r"), said("b")]])
    with pytest.raises(BadRow) as caught:
        render(row, TextTokenizer(str(folder)), "plain")
    assert caught.value.reason == "prefix_mismatch"


LEFT_OUT = {
    **dict.fromkeys(("gptoss", "phi3", "phi3_5"), "turn 2 .* differently when others follow"),
    **dict.fromkeys(("qwen3_5_nothink", "qwen3_5_think", "qwen3_6"), "writes the prompt differently"),
}
"""Families that end the last turn otherwise than the earlier ones, or whose prompt is another when users speak behind it."""
WRITES_USERS = [pytest.param(name, id=name) for name in template_families.names() if name not in LEFT_OUT]


@pytest.mark.parametrize("name", WRITES_USERS)
def test_users_between_the_assistants_turns_are_not_covered(tmp_path: Path, name: str) -> None:
    turns = [said("first answer"), user("second question"), said("third answer")]
    found = render(Example([user("zeroth question")], [turns]), family(name, tmp_path), "plain")
    assert found.spans[0] is not None
    covered = [found.answers[0][slice(*span)] for span in found.spans[0]]
    assert ["first answer" in covered[0], "third answer" in covered[1]] == [True, True]
    assert "question" not in "".join(covered)


@pytest.mark.parametrize("name", LEFT_OUT)
def test_where_turns_cannot_be_told_apart_the_row_is_left_out(tmp_path: Path, name: str) -> None:
    turns = [said("first answer"), user("second question"), said("third answer")]
    with pytest.raises(BadRow, match=LEFT_OUT[name]) as caught:
        render(Example([user("zeroth question")], [turns]), family(name, tmp_path), "plain")
    assert caught.value.reason == "prefix_mismatch"


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
