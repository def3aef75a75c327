"""Greedy decoding against the plainest loop there is: no cache, no padding, one prompt at a time."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from raydpo.errors import DataError, UserError
from raydpo.generate.greedy import greedy
from raydpo.quickstart.bpe import train_bpe
from raydpo.quickstart.fresh_model import create_model

PROMPTS = [[0, 65, 66], [0], [0, 70, 71, 72, 73, 74, 75], [0, 5, 250], [0, 99, 98, 97, 96], [0, 65, 66]]
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with large weights: its next tokens vary and depend on the positions."""
    path = tmp_path_factory.mktemp("model")
    create_model(
        path,
        train_bpe(["a b c"], 259),
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=24,
        max_positions=32,
        seed=4,
        tie_embeddings=False,
    )
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(25)
    model.save_pretrained(path)
    return path


def plain_greedy(folder: Path, prompt: list[int]) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = list(prompt)
    for _ in range(NEW_TOKENS):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def with_generation(folder: Path, copy: Path, **values: object) -> Path:
    """A copy of the model with other values in its generation config."""
    shutil.copytree(folder, copy)
    path = copy / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return copy


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[int]]:
    answers = [plain_greedy(folder, prompt) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in answers}) == 5, "prompts must lead to different answers"
    assert all(len(set(answer)) > 3 for answer in answers), "answers must not be one token repeated"
    return answers


@pytest.fixture(scope="module")
def never(expected: list[list[int]]) -> int:
    """A token id that no answer holds: as end of sequence it ends nothing."""
    return next(token for token in range(259) if not any(token in answer for answer in expected))


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_padded_batches_give_what_each_prompt_gives_alone(
    folder: Path, tmp_path: Path, expected: list[list[int]], never: int, batch_size: int
) -> None:
    model = with_generation(folder, tmp_path / "model", eos_token_id=never)
    assert greedy(model, PROMPTS, NEW_TOKENS, batch_size=batch_size) == expected


def test_an_answer_ends_before_the_end_token(folder: Path, tmp_path: Path, expected: list[list[int]]) -> None:
    ends = [expected[0][4], expected[2][0]]
    answers = greedy(with_generation(folder, tmp_path / "model", eos_token_id=ends), PROMPTS, NEW_TOKENS)
    for answer, whole in zip(answers, expected, strict=True):
        found = [position for position, token in enumerate(whole) if token in ends]
        assert answer == whole[: found[0] if found else NEW_TOKENS]
    assert answers[2] == []
    assert 0 < len(answers[0]) <= 4


def test_sampling_settings_of_the_folder_do_not_count(
    folder: Path, tmp_path: Path, expected: list[list[int]], never: int
) -> None:
    sampling = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 9.0, "max_length": 3}
    model = with_generation(folder, tmp_path / "model", eos_token_id=never, **sampling)
    assert greedy(model, PROMPTS, NEW_TOKENS) == expected


def test_no_prompts_give_no_answers(tmp_path: Path) -> None:
    assert greedy(tmp_path / "absent", [], 3) == []


def test_every_unusable_prompt_is_named(folder: Path) -> None:
    prompts = [[0, 1], [], [0, 259], [0, -1], [0] * 29]
    with pytest.raises(DataError) as raised:
        greedy(folder, prompts, 4)
    assert [problem.split(" h")[0] for problem in raised.value.problems] == [f"Prompt {i}" for i in (1, 2, 3, 4)]
    assert "no tokens" in raised.value.problems[0]
    assert "0 to 258" in raised.value.problems[1]
    assert "29 tokens" in raised.value.problems[3]
    assert "32 positions" in raised.value.problems[3]


@pytest.mark.parametrize(("max_new_tokens", "batch_size"), [(0, 1), (1, 0)])
def test_counts_below_one_are_refused(folder: Path, max_new_tokens: int, batch_size: int) -> None:
    with pytest.raises(UserError, match="at least 1"):
        greedy(folder, PROMPTS, max_new_tokens, batch_size=batch_size)
