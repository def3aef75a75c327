"""Beginnings and ends of rows: as templates of real families, tokenizers and generation_config.json say.

Templates are read from the installed trl; vocabularies are small and have the family's control tokens.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from raydpo.data.ends_said import ends_said
from raydpo.data.row_ends import decided
from raydpo.data.tokenizer import TextTokenizer
from raydpo.errors import DataError
from tests.data.conftest import CHATML, Run, save_tokenizer

EXAONE = (
    "{% for m in messages %}{{ '[|' + m['role'] + '|]' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ '[|endofturn|]' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}"
)
CHANNELS = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>", "<|endoftext|>"]
# template, bos, whether the tokenizer writes it in front of a text, eos, other control tokens
FAMILIES: dict[str, tuple[str, str | None, bool, str, list[str]]] = {
    "gemma": ("gemma", "<bos>", True, "<eos>", ["<start_of_turn>", "<end_of_turn>", "<pad>"]),
    "gptoss": ("gptoss", "<|startoftext|>", False, "<|return|>", CHANNELS),
    "phi3": ("phi3", "<s>", False, "<|endoftext|>", ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]),
    "exaone": (EXAONE, "[BOS]", False, "[|endofturn|]", ["[|system|]", "[|user|]", "[|assistant|]"]),
    "llama3": (
        "llama3",
        "<|begin_of_text|>",
        True,
        "<|end_of_text|>",
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"],
    ),
    "qwen2_5": ("qwen2_5", None, False, "<|im_end|>", ["<|im_start|>", "<|endoftext|>"]),
    "qwen3": ("qwen3", None, False, "<|im_end|>", ["<|im_start|>", "<|endoftext|>"]),
}
PAIR = {"prompt": "the sky is", "chosen": " blue", "rejected": " green"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}


def chat(chosen: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": "what is the sky?"}],
        "chosen": [{"role": "assistant", **(chosen or {"content": "blue"})}],
        "rejected": [{"role": "assistant", "content": "green"}],
    }


def family(name: str, folder: Path, ends: Any = None) -> Path:
    """The tokenizer of a family; ends: texts of eos_token_id in its generation_config.json, one text for a number."""
    template, bos, writes_bos, eos, specials = FAMILIES[name]
    if "{" not in template:
        template = (files("trl") / "chat_templates" / f"{template}.jinja").read_text(encoding="utf-8")
    save_tokenizer(folder, bos=bos, eos=eos, template=template, specials=specials, writes_bos=writes_bos)
    if ends is not None:
        tokenizer = TextTokenizer(str(folder))
        ids = tokenizer.id_of(ends) if isinstance(ends, str) else [tokenizer.id_of(end) for end in ends]
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    return folder


def texts(folder: Path, found: Any) -> list[str]:
    """Prompt and answers of the only example, as text."""
    ((prompt, answers, _),) = found
    tokenizer = TextTokenizer(str(folder))
    return [tokenizer.decode(ids) for ids in (prompt, *answers)]


# family, ends of generation_config.json, what stands before the prompt's first turn, how the chosen answer ends
ENDS = [
    ("gemma", ["<eos>", "<end_of_turn>"], "<bos><start_of_turn>user", "blue<end_of_turn>"),
    ("gemma", "<end_of_turn>", "<bos><start_of_turn>user", "blue<end_of_turn>"),
    ("gemma", "<eos>", "<bos><start_of_turn>user", "blue<end_of_turn>\n<eos>"),
    ("gemma", None, "<bos><start_of_turn>user", "blue<end_of_turn>"),
    ("gptoss", ["<|return|>", "<|endoftext|>", "<|call|>"], "<|start|>system", "blue<|return|>"),
    ("phi3", ["<|endoftext|>", "<|assistant|>", "<|end|>"], "<|user|>", "blue<|end|>"),
    ("phi3", None, "<|user|>", "blue<|end|>\n<|endoftext|>"),
    ("exaone", "[|endofturn|]", "[|user|]", "blue[|endofturn|]"),
    ("exaone", None, "[|user|]", "blue[|endofturn|]"),
    ("llama3", ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"], "<|begin_of_text|><|start", "blue<|eot_id|>"),
    ("llama3", None, "<|begin_of_text|><|start", "blue<|eot_id|>"),
    ("qwen2_5", ["<|im_end|>", "<|endoftext|>"], "<|im_start|>system", "blue<|im_end|>"),
    ("qwen3", None, "<|im_start|>user", "blue<|im_end|>"),
]


@pytest.mark.parametrize(("name", "ends", "begins", "ending"), ENDS)
def test_a_conversation_begins_and_ends_as_template_and_model_say(
    name: str, ends: Any, begins: str, ending: str, tmp_path: Path, run: Run
) -> None:
    folder = family(name, tmp_path / "model", ends)
    prompt, chosen, rejected = texts(folder, run([chat()], folder).examples())
    assert prompt.startswith(begins)
    assert chosen.endswith(ending)
    assert rejected == chosen.replace("blue", "green")


@pytest.mark.parametrize("ends", [["<|return|>", "<|call|>"], None])
def test_a_tool_call_ends_with_one_mark(ends: Any, tmp_path: Path, run: Run) -> None:
    folder = family("gptoss", tmp_path / "model", ends)
    row = chat({"content": "", "tool_calls": [CALL]})
    _, chosen, rejected = texts(folder, run([row], folder).examples())
    assert chosen.endswith('{"a": 1}<|call|>')
    assert rejected.endswith("green<|return|>")


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_text_begins_as_the_tokenizer_writes_it(name: str, tmp_path: Path, run: Run) -> None:
    folder = family(name, tmp_path / "model")
    _, bos, writes_bos, eos, _ = FAMILIES[name]
    prompt, chosen, _ = texts(folder, run([PAIR], folder).examples())
    assert prompt == (bos or "") * writes_bos + "the sky is"
    assert chosen == f" blue{eos}"


def test_gpt2_like_text_gets_no_bos_though_eos_is_named_so(tmp_path: Path, run: Run) -> None:
    folder = save_tokenizer(
        tmp_path / "t", bos="<|endoftext|>", eos="<|endoftext|>", template=None, specials=[], writes_bos=False
    )
    assert texts(folder, run([PAIR], folder).examples()) == ["the sky is", " blue<|endoftext|>", " green<|endoftext|>"]


def test_an_empty_prompt_begins_with_the_bos_that_is_named_and_is_counted(tmp_path: Path, run: Run) -> None:
    folder = save_tokenizer(tmp_path / "t", bos="<s>", eos="</s>", template=None, specials=[], writes_bos=False)
    empty = {**PAIR, "prompt": ""}
    prepared = run([empty], folder)
    assert texts(folder, prepared.examples())[0] == "<s>"
    assert prepared.report.empty_prompts == 1
    assert run([empty, PAIR], folder, bos="never").report.quarantined == {"empty_prompt": 1}
    assert run([empty], family("llama3", tmp_path / "l")).report.empty_prompts == 0, "written by the tokenizer itself"


def test_a_prefix_of_several_tokens_is_the_tokenizers_own(tmp_path: Path, run: Run) -> None:
    from tokenizers import Tokenizer, processors

    folder = save_tokenizer(tmp_path / "t", bos=None, eos="</s>", template=None, specials=["[gMASK]", "<sop>"])
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pieces = [(text, backend.token_to_id(text)) for text in ("[gMASK]", "<sop>")]
    backend.post_processor = processors.TemplateProcessing(single="[gMASK] <sop> $A", special_tokens=pieces)
    backend.save(str(folder / "tokenizer.json"))
    assert texts(folder, run([PAIR], folder).examples())[0] == "[gMASK]<sop>the sky is"
    long = {**PAIR, "prompt": "one two three four five six seven the sky is"}
    cut = run([long], folder, max_length=9, overlong="truncate_prompt").examples()
    assert texts(folder, cut)[0].startswith("[gMASK]<sop>")


def test_settings_win_over_the_files(tmp_path: Path, run: Run) -> None:
    folder = family("gemma", tmp_path / "model", ["<eos>", "<end_of_turn>"])
    prompt, chosen, _ = texts(folder, run([chat()], folder, bos="never", eos="<eos>").examples())
    assert prompt.startswith("<start_of_turn>user")
    assert chosen == "blue<end_of_turn>\n<eos>"
    _, chosen, _ = texts(folder, run([PAIR], folder, eos="<end_of_turn>").examples())
    assert chosen == " blue<end_of_turn>"
    folder = family("phi3", tmp_path / "phi3")
    assert texts(folder, run([PAIR], folder, bos="always").examples())[0] == "<s>the sky is"
    assert texts(folder, run([chat()], folder, bos="always").examples())[0].startswith("<s><|user|>")


def test_settings_that_the_tokenizer_cannot_follow_are_refused_together(tmp_path: Path, run: Run) -> None:
    folder = family("qwen3", tmp_path / "model")
    with pytest.raises(DataError) as raised:
        run([PAIR], folder, bos="always", eos="<|the_end|>")
    first, second = raised.value.problems
    assert "names no BOS token" in first
    assert "'<|the_end|>' is no single token" in second
    assert "'<|im_end|>'" in second


def test_a_broken_generation_config_is_named(tmp_path: Path, run: Run) -> None:
    folder = family("qwen3", tmp_path / "model")
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(DataError, match=r"generation_config\.json cannot be read"):
        run([PAIR], folder)


def test_ends_of_another_generation_config_are_other_data(tmp_path: Path, run: Run) -> None:
    folder = family("gemma", tmp_path / "model", ["<eos>", "<end_of_turn>"])
    assert not run([chat()], folder).report.reused
    assert run([chat()], folder).report.reused
    family("gemma", folder, "<eos>")
    prepared = run([chat()], folder)
    assert not prepared.report.reused
    assert texts(folder, prepared.examples())[1].endswith("\n<eos>")


def test_one_line_says_what_was_decided_and_by_what(tmp_path: Path, run: Run) -> None:
    folder = family("gemma", tmp_path / "gemma", ["<eos>", "<end_of_turn>"])
    assert run([chat()], folder).report.ends == (
        "conversations: answers end with <end_of_turn> (generation_config.json); BOS <bos>: the chat template writes it. "
        "plain text: answers end with <eos> (generation_config.json); BOS <bos>: the tokenizer writes it"
    )
    folder = family("gptoss", tmp_path / "gptoss", ["<|return|>", "<|call|>"])
    text = ends_said(TextTokenizer(str(folder))).text
    assert "answers end with <|return|> (generation_config.json), tool calls with <|call|> (generation_config" in text
    assert "no BOS: the chat template writes none" in text
    plain = save_tokenizer(tmp_path / "plain", bos=None, eos="</s>", template=None, specials=[])
    text = ends_said(TextTokenizer(str(plain))).text
    assert text == "answers end with </s> (the tokenizer's EOS); no BOS: the tokenizer names none"


def test_an_end_that_the_model_does_not_know_is_named(tmp_path: Path) -> None:
    known = TextTokenizer(str(family("llama3", tmp_path / "known", ["<|end_of_text|>", "<|eot_id|>"])))
    assert ends_said(known).added == ""
    unknown = TextTokenizer(str(family("llama3", tmp_path / "unknown")))
    assert "end with <|eot_id|>, and no file of the model names it" in ends_said(unknown).added
    known.ends = decided(known, "auto", "<|eom_id|>")
    said = ends_said(known)
    assert said.ids == (known.id_of("<|eom_id|>"),)
    assert "<|eom_id|>, and generation_config.json names <|end_of_text|>, <|eot_id|> alone" in said.added


def test_ends_are_looked_for_in_the_models_folders_in_order(tmp_path: Path) -> None:
    adapter, base = tmp_path / "adapter", family("gemma", tmp_path / "base", ["<eos>", "<end_of_turn>"])
    adapter.mkdir()
    tokenizer = TextTokenizer(str(family("gemma", tmp_path / "tokenizer", "<eos>")))
    found = decided(tokenizer, "auto", "auto", [adapter, base])
    assert found.model.ids == (tokenizer.id_of("<eos>"), tokenizer.id_of("<end_of_turn>"))
    (adapter / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": 3}}))
    assert decided(tokenizer, "auto", "auto", [adapter, base]).model.source == "config.json"


def test_a_mask_is_cut_with_its_answer(tmp_path: Path) -> None:
    from raydpo.data.encode import Encoded, encode
    from raydpo.data.template import Rendered

    folder = family("phi3", tmp_path / "model", ["<|endoftext|>", "<|end|>"])
    tokenizer = TextTokenizer(str(folder))
    answer = "yes<|end|>\n<|user|>\nmore<|end|>\n<|assistant|>\nno<|end|>\n<|endoftext|>"
    place = answer.index("no<")
    text = Rendered("<|assistant|>\n", [answer], templated=True, spans=[[(0, 3), (place, place + 2)]])
    (found,) = encode(tokenizer, [text], max_length=99, overlong="error")
    assert isinstance(found, Encoded)
    ((ids,), (mask,)) = found.answer_ids, found.masks
    assert mask is not None
    assert len(mask) == len(ids)
    assert tokenizer.decode(ids).endswith("no<|end|>")
    assert tokenizer.decode([one for one, marked in zip(ids, mask, strict=True) if marked]) == "yesno<|end|>"


WHITE_SPACE = "{% if not add_generation_prompt %}\n \n{% endif %}"


def test_white_space_alone_behind_an_end_is_dropped(tmp_path: Path, run: Run) -> None:
    folder = save_tokenizer(
        tmp_path / "t", bos=None, eos="<|im_end|>", template=CHATML + WHITE_SPACE, specials=["<|im_start|>"]
    )
    _, chosen, _ = texts(folder, run([chat({"content": "blue \n"})], folder).examples())
    assert chosen == "blue \n<|im_end|>"
