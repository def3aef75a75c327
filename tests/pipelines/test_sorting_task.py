"""The sorting task: its mistake is the one it says it is, its files share no prompt, its check is exact."""

import json
from pathlib import Path

import pytest

from raydpo.quickstart import sorting_task as task


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> task.TaskFiles:
    return task.write_task(tmp_path_factory.mktemp("task") / "new", seed=5)


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def words(prompt: str) -> list[str]:
    return prompt.removeprefix("Sort ").removesuffix(":").split(" ")


def is_mixed(prompt: str) -> bool:
    return sorted(words(prompt)) != sorted(words(prompt), key=int)


def text_order(prompt: str) -> str:
    return " " + " ".join(sorted(words(prompt)))


def test_sizes_and_no_prompt_twice(files: task.TaskFiles) -> None:
    tables = [rows(path) for path in (files.demonstrations, files.pairs, files.held_out)]
    assert [len(table) for table in tables] == [task.NUM_DEMONSTRATIONS, task.NUM_PAIRS, task.NUM_HELD_OUT]
    prompts = [row["prompt"] for table in tables for row in table]
    assert len(set(prompts)) == len(prompts)
    assert {len(words(prompt)) for prompt in prompts} == {task.NUMBERS_PER_LIST}
    assert sum(map(is_mixed, prompts)) / len(prompts) == pytest.approx(task.MIXED_FRACTION, abs=0.02)


def test_demonstrations_repeat_one_mistake(files: task.TaskFiles) -> None:
    demonstrations = rows(files.demonstrations)
    mixed = [row for row in demonstrations if is_mixed(row["prompt"])]
    wrong = [row for row in mixed if not task.is_correct(row["prompt"], row["completion"])]
    assert len(wrong) / len(mixed) == pytest.approx(task.TEXT_ORDER_FRACTION, abs=0.02)
    assert all(row["completion"] == text_order(row["prompt"]) for row in wrong)
    plain = [row for row in demonstrations if not is_mixed(row["prompt"])]
    slips = [row for row in plain if not task.is_correct(row["prompt"], row["completion"])]
    assert len(slips) / len(plain) == pytest.approx(task.SLIP_FRACTION, abs=0.02)
    assert all(sorted(row["completion"].split()) == sorted(words(row["prompt"])) for row in slips)


@pytest.mark.parametrize("name", ["pairs", "held_out"])
def test_pairs_set_the_right_answer_against_the_mistake(files: task.TaskFiles, name: str) -> None:
    for row in rows(getattr(files, name)):
        assert task.is_correct(row["prompt"], row["chosen"])
        assert not task.is_correct(row["prompt"], row["rejected"])
        assert len(row["rejected"].split()) == task.NUMBERS_PER_LIST
        if is_mixed(row["prompt"]):
            assert row["rejected"] == text_order(row["prompt"])


def test_what_is_held_out_scores_as_it_should(files: task.TaskFiles) -> None:
    held_out = rows(files.held_out)
    assert list(files.prompts) == [row["prompt"] for row in held_out]
    assert task.exact_match(files.prompts, files.expected) == 1.0
    assert task.exact_match(files.prompts, [row["rejected"] for row in held_out]) == 0.0
    by_habit = task.exact_match(files.prompts, [text_order(prompt) for prompt in files.prompts])
    assert by_habit == pytest.approx(1 - task.MIXED_FRACTION, abs=0.1)
    demonstrations = rows(files.demonstrations)
    assert list(files.texts) == [row["prompt"] + row["completion"] for row in demonstrations]


def test_a_seed_is_a_task(files: task.TaskFiles, tmp_path: Path) -> None:
    same = task.write_task(tmp_path / "same", seed=5)
    other = task.write_task(tmp_path / "other", seed=6)
    for name in ("demonstrations", "pairs", "held_out"):
        assert getattr(same, name).read_bytes() == getattr(files, name).read_bytes()
        assert getattr(other, name).read_bytes() != getattr(files, name).read_bytes()


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (" 2 9 10 30", True),
        ("2 9 10 30\n", True),
        (" 10 2 30 9", False),
        (" 2 9 10", False),
        (" 2 9 10 30 30", False),
        (" 2  9 10 30", False),
        (" 02 9 10 30", False),
        (" 2, 9, 10, 30", False),
        ("", False),
    ],
)
def test_the_check_is_exact(answer: str, right: bool) -> None:
    assert task.is_correct("Sort 30 9 2 10:", answer) is right


def test_exact_match_counts_and_refuses() -> None:
    prompts = ["Sort 30 9 2 10:", "Sort 11 12 14 13:"]
    assert task.exact_match(prompts, [" 2 9 10 30", " 11 12 14 13"]) == 0.5
    with pytest.raises(ValueError, match="shorter"):
        task.exact_match(prompts, [" 2 9 10 30"])
    with pytest.raises(ValueError, match="no prompts"):
        task.exact_match([], [])
