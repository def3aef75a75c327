"""Ids that a model has no row for: named with row and token where they occur, a note where they do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydpo.data import prepare, read_prompts
from raydpo.data.embedding_rows import Embedding, smallest
from raydpo.data.tokenizer import TextTokenizer
from raydpo.errors import DataError
from raydpo.schema.events import Event, Note
from tests.data.conftest import config_of, write_jsonl

PLAIN = {"prompt": "the sky", "chosen": " is blue", "rejected": " is green"}


@pytest.fixture
def grown(plain_tokenizer: Path, tmp_path: Path) -> tuple[Path, int]:
    """A tokenizer with two tokens more than the embedding has rows, and these rows."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(plain_tokenizer)
    num_rows = len(tokenizer)
    assert tokenizer.add_tokens(["@first@", "@second@"]) == 2
    tokenizer.save_pretrained(tmp_path / "grown")
    return tmp_path / "grown", num_rows


def notes(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note) and "embedding" in event.text]


@pytest.mark.parametrize("write", [True, False], ids=["run", "check"])
@pytest.mark.parametrize("side", ["prompt", "chosen", "rejected"])
def test_row_and_token_are_named(grown: tuple[Path, int], tmp_path: Path, side: str, write: bool) -> None:
    folder, num_rows = grown
    path = write_jsonl(tmp_path / "rows.jsonl", [PLAIN, {**PLAIN, side: PLAIN[side] + "@second@"}, PLAIN])
    embedding, config = Embedding("model.path", num_rows), config_of(train=[str(path)])
    with pytest.raises(DataError) as caught:
        prepare(config, str(folder), tmp_path / "run/data", write=write, embedding=embedding)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}:2: token '@second@' (id {num_rows + 1}) is beyond the embedding of model.path")
    assert f"ids 0 to {num_rows - 1}" in problem
    assert "rows of the data with such tokens: 1." in problem
    assert not (tmp_path / "run/data/prepared.json").exists()


def test_tokens_that_do_not_occur_are_a_note(grown: tuple[Path, int], tmp_path: Path) -> None:
    folder, num_rows = grown
    path = write_jsonl(tmp_path / "rows.jsonl", [PLAIN])
    events: list[Event] = []
    for rows, said in ((num_rows, 1), (num_rows + 2, 1), (None, 1)):
        embedding = None if rows is None else Embedding("model.path", rows)
        report = prepare(
            config_of(train=[str(path)]), str(folder), tmp_path / "data", observer=events.append, embedding=embedding
        )
        assert report.train_pairs == 1
        assert len(notes(events)) == said
    assert f"ids up to {num_rows + 1}" in notes(events)[0]


def test_data_that_were_prepared_for_a_larger_embedding_are_read_again(grown: tuple[Path, int], tmp_path: Path) -> None:
    folder, num_rows = grown
    path = write_jsonl(tmp_path / "rows.jsonl", [{**PLAIN, "chosen": " @first@"}])
    config = config_of(train=[str(path)])
    assert not prepare(config, str(folder), tmp_path / "data", embedding=Embedding("m", num_rows + 2)).reused
    assert prepare(config, str(folder), tmp_path / "data", embedding=Embedding("m", num_rows + 2)).reused
    with pytest.raises(DataError, match="@first@"):
        prepare(config, str(folder), tmp_path / "data", embedding=Embedding("m", num_rows))


def test_prompts_of_rounds_are_looked_at_too(grown: tuple[Path, int], tmp_path: Path) -> None:
    folder, num_rows = grown
    path = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "the sky"}, {"prompt": "the @first@"}])
    options = {"max_length": 50, "control_tokens": "plain", "max_bad_fraction": 0.0}
    tokenizer = TextTokenizer(str(folder))
    with pytest.raises(DataError, match=r"prompts\.jsonl:2: token '@first@'"):
        read_prompts("rounds.prompts", [str(path)], tokenizer, **options, embedding=Embedding("m", num_rows))
    assert len(read_prompts("rounds.prompts", [str(path)], tokenizer, **options)[0]) == 2


def test_the_smallest_of_several_models_decides() -> None:
    assert smallest([("a", 5), ("b", 3), ("c", None)]) == Embedding("b", 3)
    assert smallest([("c", None)]) is None
