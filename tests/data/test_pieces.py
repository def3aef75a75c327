"""The proof of rendering: a row of which the template leaves something out is not used, and says what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydpo.data.bad_rows import BadRow
from raydpo.data.messages import Example, Message
from raydpo.data.pieces import dropped
from raydpo.data.read import file_rows
from raydpo.data.template import Rendered, render
from raydpo.data.tokenizer import TextTokenizer
from tests.data.conftest import CHATML, Run, config_of, save_tokenizer, write_jsonl
from tests.data.test_formats import said, user
from tools import template_families

pytest.importorskip("trl", reason="the templates of families are read from TRL's wheel")

ASK = [user("Two plus two?")]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, TextTokenizer] = {}

    def of(name: str) -> TextTokenizer:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = TextTokenizer(str(template_families.save(template_families.source(name), folder)))
        return made[name]

    return of


def chatml(tmp_path: Path, template: str = CHATML) -> TextTokenizer:
    return TextTokenizer(
        str(save_tokenizer(tmp_path / "t", bos=None, eos="<|im_end|>", template=template, specials=["<|im_start|>"]))
    )


def pair(prompt: list[Message], chosen: Message | list[Message], rejected: Message | str, tools: Any = None) -> Example:
    turns = chosen if isinstance(chosen, list) else [chosen]
    return Example(prompt, [turns, [said(rejected) if isinstance(rejected, str) else rejected]], tools=tools)


def reason(example: Example, tokenizer: TextTokenizer) -> str:
    with pytest.raises(BadRow) as caught:
        render(example, tokenizer, "plain")
    return f"{caught.value.reason}: {caught.value.detail}"


@pytest.mark.parametrize("name", ["deepseek_r1_distill", "deepseekv3"])
def test_inline_reasoning_that_a_template_swallows(family: Any, name: str) -> None:
    answers = [
        said(f"<think>\n{thought}\n</think>\n\n{answer}") for thought, answer in (("good", "Four"), ("bad", "Five"))
    ]
    assert "template_dropped" in reason(pair(ASK, answers[0], answers[1]), family(name))
    assert "'good'" in reason(pair(ASK, answers[0], answers[1]), family(name))


@pytest.mark.parametrize("name", ["llama3", "qwen2_5", "gemma3", "phi3", "cohere"])
def test_reasoning_of_a_field_that_no_one_writes(family: Any, name: str) -> None:
    thinking = {**said("Four"), "reasoning_content": "count"}
    assert "template_dropped" in reason(pair(ASK, thinking, "Five"), family(name))


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("name", ["qwen3", "gptoss", "nemotron_3_nano", "glm4moe"])
def test_reasoning_reaches_the_answer_under_any_name(family: Any, name: str, key: str) -> None:
    rendered = render(pair(ASK, {**said("Four"), key: "count"}, "Five"), family(name), "plain")
    assert "count" in rendered.answers[0]
    assert "count" not in rendered.prompt + rendered.answers[1]


def test_reasoning_of_earlier_turns_is_counted(family: Any) -> None:
    earlier = [user("One?"), {**said("Uno"), "reasoning_content": "a long way"}, *ASK]
    rendered = render(pair(earlier, said("Four"), "Five"), family("qwen3"), "plain")
    assert rendered.reasoning_dropped == 1
    assert "a long way" not in rendered.prompt


def test_a_tool_call_that_renders_to_nothing(family: Any) -> None:
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "weather", "arguments": {"at": "Paris"}}}],
    }
    found = reason(pair([user("Paris?")], call, "No."), family("gemma3"))
    assert "template_dropped" in found
    assert "tool call" in found
    assert "weather" in found


def test_tools_that_a_template_does_not_show(family: Any) -> None:
    assert "the tool 'weather'" in reason(pair([user("Paris?")], said("Sun"), "No.", TOOLS), family("llama3"))


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3_1", "glm4moe", "qwen3_6"])
def test_arguments_as_text_are_arguments(family: Any, name: str) -> None:
    def call(arguments: Any) -> Message:
        calls = [{"type": "function", "id": "c00000001", "function": {"name": "weather", "arguments": arguments}}]
        return {"role": "assistant", "content": "", "tool_calls": calls}

    texts = [
        render(pair([user("Paris?")], call(given), "No.", TOOLS), family(name), "plain").answers[0]
        for given in ({"city": "Paris"}, json.dumps({"city": "Paris"}))
    ]
    assert texts[0] == texts[1]
    assert '\\"' not in texts[0]


def test_a_columnar_file_gives_the_text_of_lines(family: Any, tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                user("q"),
                {"role": "assistant", "content": "", "tool_calls": [{"name": "weather", "arguments": one}]},
            ]
        }
        for one in ({"city": "Paris"}, {"tz": "UTC", "deep": {"a": [1]}})
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")

    def texts(file: str) -> list[str]:
        turns = [line.row["messages"] for line in file_rows(tmp_path / file) if line.row is not None]
        return [render(Example(t[:1], [t[1:]]), family("qwen2_5"), "plain").answers[0] for t in turns]

    assert texts("rows.parquet") == texts("rows.jsonl")
    assert "null" not in "".join(texts("rows.parquet"))


def test_a_piece_does_not_pass_for_another(tmp_path: Path) -> None:
    """A turn whose text stands elsewhere too is not taken for written."""
    skips = CHATML.replace("m in messages %}", "m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}")
    prompt = [user("yes"), said("yes"), user("yes")]
    assert "turn 2" in reason(pair(prompt, said("no"), "yes"), chatml(tmp_path, skips))
    assert not dropped(prompt, "[yes][yes][yes]", lambda turns: "".join(f"[{turn['content']}]" for turn in turns))


def test_outer_white_space_and_the_spelling_of_json_are_the_templates(tmp_path: Path) -> None:
    stripping = CHATML.replace("m['content']", "m['content'].strip()")
    rendered = render(pair([user("  q \n")], said(" a\n"), "b"), chatml(tmp_path, stripping), "plain")
    assert rendered.answers[0] == "a<|im_end|>\n"
    escaping = CHATML.replace("m['content']", "(m['content'] | tojson)")
    rendered = render(pair([user('say "hi"\nü')], said("é"), "b"), chatml(tmp_path / "2", escaping), "plain")
    assert rendered.answers[0] == '"é"<|im_end|>\n'


@pytest.mark.parametrize("name", [name for name in template_families.names() if name.startswith("nemotron_3")])
def test_the_prompt_ends_where_plain_answers_and_reasoning_part(family: Any, name: str) -> None:
    plain = render(pair(ASK, said("Four"), "Five"), family(name), "plain")
    thinking = render(pair(ASK, {**said("Four"), "reasoning_content": "count"}, "Five"), family(name), "plain")
    assert plain.prompt == thinking.prompt
    assert plain.prompt.endswith("<think>")
    assert plain.answers[0].startswith("</think>")


@pytest.mark.parametrize("name", template_families.names())
def test_where_a_prompt_ends_depends_on_the_prompt_alone(family: Any, name: str) -> None:
    """Whatever the answer begins with: the template's own words, a probe's, or a tag."""
    tokenizer = family(name)
    expected = render(pair(ASK, said("Four"), "Another one"), tokenizer, "plain").prompt
    assert ASK[0]["content"] in expected
    for text in ("Probe of a plain answer.", "R", "<b>x</b>", "assistant"):
        found: Rendered = render(pair(ASK, said(text), "Another one"), tokenizer, "plain")
        assert found.prompt == expected


def test_settings_of_the_run_and_of_the_row(family: Any, run: Run, tmp_path: Path) -> None:
    folder = template_families.save(template_families.source("qwen3"), tmp_path / "t")
    rows = [{"prompt": ASK, "chosen": [said("Four")], "rejected": [said("Five")]} for _ in range(2)]
    rows[1]["chat_template_kwargs"] = {"enable_thinking": True}  # type: ignore[assignment]
    tokenizer = TextTokenizer(str(folder))
    example = Example(ASK, [[said("Four")], [said("Five")]])
    thinking = render(example, tokenizer, "plain").prompt
    off = Example(ASK, example.answers, template_settings={"enable_thinking": False})
    without = render(off, tokenizer, "plain").prompt
    assert without != thinking
    assert without.endswith("<think>")
    found = run(rows, folder, chat_template_kwargs={"enable_thinking": False}).examples()
    assert [tokenizer.decode(prompt) for prompt, *_ in found] == [without, thinking]


def test_a_setting_that_the_program_makes_is_refused() -> None:
    with pytest.raises(Exception, match="add_generation_prompt, which the program sets itself"):
        config_of("dpo", train="x", chat_template_kwargs={"add_generation_prompt": True})
