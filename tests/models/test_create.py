"""A fresh model folder and its tokenizer: any text survives, transformers opens it, seeds decide the weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from raydpo.errors import UserError
from raydpo.quickstart.bpe import train_bpe
from raydpo.quickstart.fresh_model import create_model

TEXTS = [f"Sort {a} {b} {a + b}: {b} {a} {a + b}" for a in range(10, 20) for b in range(1, 10)]
STRANGE = ["", " ", "a  b\n\tc", "Grüße, 世界 \U0001f600", "\x00\x7f", "naïve 12 07:", " 12 12"]


def small_model(folder: Path, tokenizer: PreTrainedTokenizerFast, **changes: object) -> int:
    shape = {
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "intermediate_size": 24,
        "max_positions": 32,
        "seed": 0,
    }
    return create_model(folder, tokenizer, **(shape | changes))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_bpe(TEXTS, 300)


@pytest.mark.parametrize("text", STRANGE + TEXTS[:3])
def test_every_text_comes_back_unchanged(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.bos_token_id not in ids[1:]
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_merges_are_learned_from_the_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) <= 300
    assert len(tokenizer.encode(" 12", add_special_tokens=False)) == 1
    assert len(tokenizer.encode("xyzzy", add_special_tokens=False)) == 5


def test_the_same_texts_give_the_same_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    again = train_bpe(iter(TEXTS), 300)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert len(train_bpe(TEXTS, 260)) == 260


def test_a_saved_tokenizer_is_the_same_one(tmp_path: Path) -> None:
    made = train_bpe(TEXTS, 300, tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert [read(text).input_ids for text in STRANGE + TEXTS] == [made(text).input_ids for text in STRANGE + TEXTS]
    assert (read.bos_token, read.eos_token, read.pad_token) == ("<s>", "</s>", "<pad>")
    assert len({read.bos_token_id, read.eos_token_id, read.pad_token_id}) == 3


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(UserError, match=r"vocab_size is 258; .* at least 259"):
        train_bpe(TEXTS, 258)


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_opens_the_folder(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, tied: bool) -> None:
    num_parameters = small_model(tmp_path, tokenizer, tie_embeddings=tied)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    block = 4 * 16 * 16 + 3 * 16 * 24 + 2 * 16
    assert num_parameters == (1 if tied else 2) * len(tokenizer) * 16 + 2 * block + 16
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.tie_word_embeddings is tied
    assert model.config.max_position_embeddings == 32
    control = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    for settings in (model.config, model.generation_config):
        assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == control
    assert AutoTokenizer.from_pretrained(tmp_path)(TEXTS[0]).input_ids == tokenizer(TEXTS[0]).input_ids
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == tokenizer.eos_token_id
    assert not list(tmp_path.glob("*.bin"))


def test_the_seed_alone_decides_the_weights(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    before = torch.random.get_rng_state()
    small_model(tmp_path / "a", tokenizer, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(7)
    small_model(tmp_path / "b", tokenizer, seed=1)
    small_model(tmp_path / "c", tokenizer, seed=2)
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(a[name], c[name])


@pytest.mark.parametrize(("hidden_size", "num_heads"), [(15, 2), (16, 3), (6, 2)])
def test_heads_that_do_not_fit_are_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, hidden_size: int, num_heads: int
) -> None:
    with pytest.raises(UserError, match=f"multiple of {2 * num_heads}"):
        small_model(tmp_path, tokenizer, hidden_size=hidden_size, num_heads=num_heads)
    assert not list(tmp_path.iterdir())
