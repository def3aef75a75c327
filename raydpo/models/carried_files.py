"""What an exported folder takes over from the model that it was trained from: its config, tokenizer and processors.

Comes in: the source folder, and a folder that transformers has just written. Goes out: that folder with the source's files.
Decision: who reads the export may be older or newer than what wrote it, so it gets the source's own keys and files, as they
were. What transformers wrote stays beside them: new names of the same settings, and what training decides (the dtype). Keys
of the source with which transformers would read another model are left out again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template*"),
    *("vocab.*", "merges.txt", "*.model", "*.tiktoken", "tekken.json", "additional_chat_templates/*"),
)
OTHERS = ("generation_config.json", "*processor_config.json", "*feature_extractor_config.json")
"""Patterns of files that are copied."""
TEMPLATE = "chat_template.jinja"

_DTYPE = ("dtype", "torch_dtype")
_DECIDED = ("architectures", "tie_word_embeddings")
"""Of these what transformers wrote counts, because it wrote the weights, too."""


def carry_config(source: Path, folder: Path) -> None:
    """Give the config.json in `folder` the keys of the one in `source`; nothing where either has none."""
    path = folder / "config.json"
    if not path.is_file() or not (source / "config.json").is_file():
        return
    written, theirs = (json.loads((place / "config.json").read_text()) for place in (folder, source))
    dtype = written.get("dtype") or written.get("torch_dtype")
    read = _as_read(path)
    added = {key: dtype if key in _DTYPE else value for key, value in theirs.items() if key not in written}
    for found in (_overlaid(written, theirs, dtype), {**written, **added}, written):
        path.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
        again = _as_read(path)
        if all(
            again.get(key) == value for key, value in read.items() if key not in ("transformers_version", "use_cache")
        ):
            return


def carry_files(source: Path, folder: Path, chat_template: str | None = None) -> None:
    """Copy tokenizer, processors and generation config of `source` into `folder`. chat_template: replaces the tokenizer's."""
    for path in _matching(source, TOKENIZER + OTHERS):
        place = folder / path.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, place)
    if not any(_matching(source, TOKENIZER)):
        return
    if not (source / "tokenizer.json").is_file():
        _write_fast_tokenizer(source, folder)
    if chat_template is not None:
        _replace_template(folder, chat_template)


def add_ends(folder: Path, ids: Sequence[int]) -> None:
    """Add to eos_token_id of the generation_config.json in `folder` those of `ids` that it lacks; nothing without the file.

    Where it names no end, those that config.json names stay.
    """
    path = folder / "generation_config.json"
    if not ids or not path.is_file():
        return
    written = json.loads(path.read_text(encoding="utf-8"))
    config = folder / "config.json"
    described = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    places = (written, described, described.get("text_config") or {})
    given: Any = next((found for place in places if (found := place.get("eos_token_id")) is not None), [])
    known = given if isinstance(given, list) else [given]
    if added := [one for one in ids if one not in known]:
        text = json.dumps({**written, "eos_token_id": [*known, *added]}, indent=2, sort_keys=True)
        path.write_text(f"{text}\n", encoding="utf-8")


def _as_read(path: Path) -> dict[str, Any]:
    from transformers import AutoConfig

    found: dict[str, Any] = AutoConfig.from_pretrained(str(path.parent), trust_remote_code=False).to_dict()
    return found


def _overlaid(written: dict[str, Any], theirs: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """`written` with the values of `theirs`, at any depth, but for what training and the weights decide."""
    found = dict(written)
    for key, value in theirs.items():
        if key in _DTYPE:
            found[key] = dtype
        elif isinstance(value, dict) and isinstance(written.get(key), dict):
            found[key] = _overlaid(written[key], value, dtype)
        elif key not in _DECIDED or key not in written:
            found[key] = value
    return found


def _matching(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        yield from (path for path in sorted(folder.glob(pattern)) if path.is_file())


def _write_fast_tokenizer(source: Path, folder: Path) -> None:
    """tokenizer.json beside the files that it is made from, which stay what they are."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    except (OSError, ValueError):
        return
    if getattr(tokenizer, "backend_tokenizer", None) is not None:
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))


def _replace_template(folder: Path, chat_template: str) -> None:
    """In the file that new readers look at, and wherever the source had one."""
    (folder / TEMPLATE).write_text(chat_template, encoding="utf-8")
    (folder / "chat_template.json").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    described = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "chat_template" in described:
        text = json.dumps({**described, "chat_template": chat_template}, indent=2, ensure_ascii=False)
        path.write_text(f"{text}\n", encoding="utf-8")
