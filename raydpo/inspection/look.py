"""`inspect`: preference data read as a run would read them, and what was found.

Comes in: files, folders or hub data sets, and a tokenizer. Goes out: `Inspection`. Decision: the preparation of a run reads the
rows, with no limit of length and none of bad lines, so that what is counted here is what training would meet. Without a model
lengths are in bytes of UTF-8, which is said.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raydpo.config import Config
from raydpo.data import DataReport, prepare
from raydpo.inspection.advice import Advice, advice_on
from raydpo.inspection.pair_facts import Facts, Proportion, facts_of, left_out
from raydpo.inspection.pair_figures import PairFigures
from raydpo.schema.events import Event, Note, Observer, ignore

NO_LIMIT = 1_000_000
"""Tokens that no row of text has."""
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + (m['content'] or '') + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Inspection:
    """What was found. unit: of lengths, "tokens" or "bytes". notes: what the preparation said, in order."""

    facts: Facts
    report: DataReport
    advice: Sequence[Advice]
    notes: Sequence[str]
    unit: str

    def to_json(self) -> dict[str, Any]:
        """Plain values; shares with their intervals."""
        facts = {name: _plain(value) for name, value in vars(self.facts).items()}
        return {
            "unit": self.unit,
            "facts": facts,
            "left_out": dict(left_out(self.report)),
            "report": self.report.to_json(),
            "advice": [asdict(each) for each in self.advice],
            "notes": list(self.notes),
        }


def inspect(
    train: Sequence[str], held_out: Sequence[str] = (), model: str | None = None, observer: Observer = ignore
) -> Inspection:
    """Read all rows and count. model: folder or hub id whose tokenizer and chat template are used.

    Raises DataError for data that cannot be read at all.
    """
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = model or str(_bytes_tokenizer(Path(scratch) / "bytes"))
        return _inspected(train, held_out, tokenizer, Path(scratch), "tokens" if model else "bytes", observer)


def _inspected(
    train: Sequence[str], held_out: Sequence[str], tokenizer: str, scratch: Path, unit: str, observer: Observer
) -> Inspection:
    figures, notes = PairFigures(), list[str]()

    def hear(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)
        observer(event)

    config = Config.model_validate(
        {
            "run": {"dir": str(scratch / "run")},
            "model": {"path": tokenizer},
            "data": {"train": list(train), "eval": list(held_out), "max_length": NO_LIMIT, "max_bad_fraction": 1.0},
        }
    )
    report = prepare(config, tokenizer, scratch / "data", write=False, observer=hear, viewer=figures)
    facts = facts_of(figures.columns("train"), figures.columns("eval"))
    return Inspection(facts, report, advice_on(facts, report, in_tokens=unit == "tokens"), notes, unit)


def _bytes_tokenizer(folder: Path) -> Path:
    """A tokenizer whose tokens are bytes, with a chat template of a common kind."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {
        piece: number for number, piece in enumerate(["<s>", "</s>", "<|im_start|>", "<|im_end|>", *alphabet])
    }
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(str(folder))
    return folder


def _plain(value: Any) -> Any:
    if isinstance(value, Proportion):
        return {"count": value.count, "total": value.total, "share": value.value, "interval": list(value.interval)}
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    return value
