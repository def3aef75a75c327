"""Real small tokenizers, trained on the spot, and a way to prepare rows in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydpo.config import Config
from raydpo.data import DataReport, prepare

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CORPUS = [
    "Human: what is the colour of the sky? Assistant: the sky is blue, most of the time.",
    "<|im_start|>user\nadd two and two<|im_end|>\n<|im_start|>assistant\nfour<|im_end|>\n",
    "instruction: write a poem about the sea. answer: the sea is wide and blue and green.",
    "start end think system tool user assistant endoftext im_start im_end " * 3,
    'äöü ßéè 日本語 текст emoji 😀 numbers 0123456789 code {"a": [1, 2]} <b>bold</b>\n\n',
]


def save_tokenizer(
    folder: Path,
    *,
    bos: str | None,
    eos: str,
    template: str | None,
    specials: list[str],
    writes_bos: bool = True,
) -> Path:
    """A byte-level BPE tokenizer with the given control tokens, as transformers saves one. writes_bos: in front of a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[*dict.fromkeys([token for token in (bos, eos) if token] + specials)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    if bos is not None and writes_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chat_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ChatML; it writes BOS in front of a text, its template none, but EOS and a line break after it."""
    folder = tmp_path_factory.mktemp("chat_tokenizer")
    return save_tokenizer(folder, bos="<s>", eos="<|im_end|>", template=CHATML, specials=["<|im_start|>", "<pad>"])


@pytest.fixture(scope="session")
def plain_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No template and no BOS."""
    folder = tmp_path_factory.mktemp("plain_tokenizer")
    return save_tokenizer(folder, bos=None, eos="<|endoftext|>", template=None, specials=[])


def config_of(objective: str = "dpo", **data: Any) -> Config:
    """A config whose data section is `data`."""
    return Config.model_validate(
        {"run": {"dir": "run"}, "model": {"path": "model"}, "data": data, "objective": {"name": objective}}
    )


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """Rows as JSON lines; bytes are written as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


class Prepared:
    """A finished preparation: the report, and the examples as lists of ids."""

    def __init__(self, report: DataReport, folder: Path) -> None:
        self.report, self.folder = report, folder

    def examples(self, split: str = "train") -> list[tuple[list[int], list[list[int]], str]]:
        """(prompt ids, answer ids, source) of each example."""
        from raydpo.artifacts.examples import ExampleTable

        table = ExampleTable.open(self.folder, split)
        return [
            (
                [int(one) for one in table.prompt_ids(i)],
                [[int(one) for one in ids] for ids in table.answer_ids(i)],
                table.source(i),
            )
            for i in range(len(table))
        ]

    def quarantine(self) -> list[dict[str, Any]]:
        """Entries of quarantine.jsonl."""
        text = (self.folder.parent / "quarantine.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


Run = Callable[..., Prepared]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """prepare() of rows written as JSON lines: run(rows, tokenizer, objective=..., **data section)."""

    def go(rows: list[Any], tokenizer: Path, *, objective: str = "dpo", **data: Any) -> Prepared:
        path = write_jsonl(tmp_path / "rows.jsonl", rows)
        folder = tmp_path / "run" / "data"
        config = config_of(objective, **{"train": [str(path)], "max_bad_fraction": 1.0, **data})
        return Prepared(prepare(config, str(tokenizer), folder), folder)

    return go
