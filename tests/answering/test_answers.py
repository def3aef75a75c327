"""`raydpo generate` and `raydpo chat` on a tiny model: answers are those of the engine, and models hear themselves alone."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from raydpo.answering.chatting import converse
from raydpo.answering.open_model import OpenModel, open_model
from raydpo.cli import main
from raydpo.generate.greedy import greedy
from raydpo.quickstart.bpe import train_bpe
from raydpo.quickstart.fresh_model import create_model

TURNS = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root, made = tmp_path_factory.mktemp("models"), []
    for seed in (1, 2):
        tokenizer = train_bpe(["one two three four five"] * 2, 300)
        tokenizer.chat_template = TURNS
        create_model(
            root / str(seed),
            tokenizer,
            hidden_size=32,
            num_layers=1,
            num_heads=2,
            intermediate_size=32,
            max_positions=128,
            seed=seed,
        )
        made.append(root / str(seed))
    return made


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"one two {n}"}) + "\n" for n in range(3)))
    return path


def lines_of(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_greedy_answers_are_transformers_own(
    folders: list[Path], prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(folders[0]), str(prompts), "--max-new-tokens", "6"]) == 0
    found = lines_of(capsys.readouterr().out)
    assert [line["prompt"] for line in found] == [f"one two {n}" for n in range(3)]
    with open_model(str(folders[0])) as model:
        ids = [model.tokenizer.encode([f"one two {n}"])[0] for n in range(3)]
        ids = [[model.tokenizer.bos_id, *each] if model.tokenizer.ends.bos == "always" else each for each in ids]
        asked = [[*model.ids_of([{"role": "user", "content": "x"}], 6)], *ids]
        texts = [model.tokenizer.decode(each) for each in greedy(folders[0], asked[1:], 6)]
    assert [line["answers"][0]["text"] for line in found] == texts
    assert all(line["answers"][0]["tokens"] <= 6 for line in found)


def test_answers_of_a_seed_stay_when_prompts_are_added(
    folders: list[Path], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", str(folders[0]), "--num-answers", "2", "--temperature", "1", "--max-new-tokens", "5"]
    out = tmp_path / "answers.jsonl"
    assert main([*words, str(prompts), "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompts"] == 3
    again = tmp_path / "again.jsonl"
    assert main([*words, str(prompts), "-o", str(again)]) == 0
    assert out.read_text() == again.read_text()
    assert main([*words, str(prompts), "--seed", "1", "-o", str(again)]) == 0
    assert out.read_text() != again.read_text()
    assert all(len(line["answers"]) == 2 for line in lines_of(out.read_text()))


def test_a_run_stands_for_what_it_published(
    folders: list[Path], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/model").symlink_to(folders[1])
    said = []
    for name in (tmp_path / "run", folders[1]):
        assert main(["generate", str(name), str(prompts), "--max-new-tokens", "4"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_what_cannot_be_is_an_error(folders: list[Path], prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(folders[0])
    assert main(["generate", model, str(prompts), "--max-new-tokens", "128"]) == 2
    assert "leaves no room for a prompt in the 128 positions" in capsys.readouterr().err
    assert main(["generate", model, str(prompts), "--num-answers", "2"]) == 2
    assert "the same answer 2 times" in capsys.readouterr().err
    assert main(["generate", "no/such/model", str(prompts)]) == 2
    assert "no/such/model" in capsys.readouterr().err


def test_each_model_hears_the_person_and_itself(folders: list[Path]) -> None:
    lines = ["one", "two", "/new", "three", "/what", "/quit", "four"]
    with open_model(str(folders[0])) as first, open_model(str(folders[1])) as second:
        answers = [_by_hand(model) for model in (first, second)]
        assert answers[0] != answers[1]
        out = io.StringIO()
        sampling = [model.sampling(1, 1.0, 4) for model in (first, second)]
        assert converse([first, second], lines, out, sampling, width=10_000) == 3
    turns = [
        f"{model.name}:\n{text}"
        for pair in zip(*answers, strict=True)
        for model, text in zip((first, second), pair, strict=True)
    ]
    help_line = "/new begins anew, /quit ends (so do Ctrl-C and the end of input)"
    assert out.getvalue() == "\n".join([*turns[:4], "a new conversation", *turns[4:], help_line, ""])


def _by_hand(model: OpenModel) -> list[str]:
    """Indented answers of `model` to "one", then "two" after its own first answer, then "three" alone."""
    found: list[str] = []
    turns: list[dict[str, str]] = []
    for seed, said in enumerate(("one", "two", "three")):
        turns = [] if said == "three" else turns
        turns = [*turns, {"role": "user", "content": said}]
        text = model.answers([model.ids_of(turns, 4)], model.sampling(1, 1.0, 4), seed)[0][0].text.strip()
        turns = [*turns, {"role": "assistant", "content": text}]
        found.append("\n".join(f"  {' '.join(line.split())}" if line.strip() else line for line in text.splitlines()))
    return found
