"""Two small random models of one architecture, whose next tokens vary. Heads of 32 numbers: vLLM on a CPU has none of 16."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from raydpo.quickstart.bpe import train_bpe
from raydpo.quickstart.fresh_model import create_model

VOCABULARY = 272
POSITIONS = 48
PROMPTS = ((0, 65, 66), (0,), (0, 70, 71, 72, 73, 74, 75), (0, 5, 250), (0, 99, 98, 97, 96), (0, 65, 66))


def random_model(path: Path, seed: int, scale: float = 8.0, hidden_size: int = 64) -> Path:
    """A model whose logits are spread out, so that samples are neither uniform nor always the same."""
    create_model(
        path,
        train_bpe(["the cat and the hat and the bat that sat"], VOCABULARY),
        hidden_size=hidden_size,
        num_layers=2,
        num_heads=2,
        intermediate_size=64,
        max_positions=POSITIONS,
        seed=seed,
    )
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(scale)
    model.save_pretrained(path)
    return path


def change_generation(folder: Path, **values: object) -> Path:
    """Other values in the generation config of a folder."""
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def stop_text(ids: tuple[int, ...], tokenizer: PreTrainedTokenizerBase) -> str:
    """A printable text that the answer `ids` holds, but not in its first two tokens."""
    for place in range(2, len(ids) - 1):
        text = tokenizer.decode(ids[place : place + 1])
        if text.isascii() and text.isprintable() and text not in tokenizer.decode(ids[:place]):
            return str(text)
    raise AssertionError(f"no stop text in {ids}")


@pytest.fixture(scope="package")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("models") / "old", seed=4)


@pytest.fixture(scope="package")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("models") / "new", seed=9)
