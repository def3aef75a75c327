"""The page of families is that of its results, nobody is missing, and a few of them are tried here."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.families.__main__ import PAGE, read, versions
from benchmarks.families.page import page
from benchmarks.families.recipe import FAMILIES, write_random_model
from benchmarks.families.trial import first_sentence, try_family
from raydpo.models.pretrained import load_model
from raydpo.models.text_part import freeze_what_text_does_not_reach, text_body, text_head


def test_every_family_is_in_the_results_and_they_are_many() -> None:
    assert read().keys() == set(FAMILIES), "run make families"
    assert len(FAMILIES) >= 40


def test_the_page_is_that_of_the_results() -> None:
    assert PAGE.read_text() == page(read(), versions()), "run python -m benchmarks.families --page-only"


def test_what_is_refused_or_fails_says_why() -> None:
    for family, answer in read().items():
        assert answer["model"] == "yes", family
        for column in ("step 0", "resume", "export", "LoRA"):
            said = answer.get(column, "-")
            assert said.startswith(("yes", "refused: ", "fails: ", "-")), f"{family}, {column}: {said}"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mamba2", "qwen3_vl"])
def test_a_family_is_tried_from_start_to_end(family, tmp_path) -> None:
    found = try_family(family, tmp_path)
    assert {name: found[name] for name in ("model", "step 0", "resume", "export")} == {
        **{"model": "yes", "step 0": "yes", "resume": "yes, to the bit", "export": "yes"}
    }
    assert found["layout"].startswith("shared prompts" if family == "qwen3_vl" else "padded: in Mamba2ForCausalLM")
    start, end = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "whole/model"))
    assert start.keys() == end.keys()
    same = {name for name in start if torch.equal(start[name], end[name])}
    assert all(("visual" in name) == (name in same) for name in start if not name.endswith(".bias") or "visual" in name)


@pytest.mark.parametrize("family", ["llama4", "gemma3", "qwen2_vl", "llama"])
def test_only_what_text_reaches_is_trained(family, tmp_path) -> None:
    write_random_model(family, tmp_path)
    model = load_model(tmp_path, "float32", "sdpa")
    said = freeze_what_text_does_not_reach(model)
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    assert bool(frozen) == bool(said) == (family != "llama")
    assert all(weight.requires_grad for part in (text_body(model), text_head(model)) for weight in part.parameters())
    count = sum(weight.numel() for name, weight in model.named_parameters() if name in frozen)
    assert not said or f"the {count:,} weights of " in said
    assert not said or ("vision" in said or "visual" in said)


def test_a_long_message_becomes_one_short_line() -> None:
    assert first_sentence("One\n two. Three") == "One two"
    assert len(first_sentence("x" * 500)) == 200
