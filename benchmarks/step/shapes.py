"""What is measured on: models by shape, pairs by length.

In: a name and a seed. Out: pairs of token ids, and a model folder that both sides load.
Decision: weights and, but for HH, token ids are random: speed, memory and FLOPs do not depend on them. HH's pairs are
real ones (`hh_pairs.npz`: 64 pairs of helpful-base, in GPT-NeoX's tokens, ids modulo 32,000), so that their lengths
and common beginnings are. A model with fewer ids gets these modulo its own number.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

VOCAB = 32_000
HH_FILE = Path(__file__).with_name("hh_pairs.npz")
VARIATION = 0.6
"""Standard deviation over mean of the log-normal lengths."""
LENGTHS = {"ultrafeedback": (180, 350, 300), "long_prompt": (3000, 300, 300)}
"""Mean tokens of prompt, chosen and rejected answer."""
SHAPES = ("hh", *LENGTHS)

MODELS: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": 512,
    },
    "56m": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1376},
    "0.5b": {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 3072},
    "3b": {"hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "intermediate_size": 8192},
    "8b": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336},
}
"""Llama shapes by name, of VOCAB ids unless they say otherwise, embeddings and head of their own; a fourth of the heads
for keys and values, 4 at least. tiny: to try the program."""


@dataclass(frozen=True)
class Pair:
    """Token ids, int32: a prompt, the chosen and the rejected answer."""

    prompt: np.ndarray
    answers: tuple[np.ndarray, np.ndarray]


def pairs_of(shape: str, num_pairs: int, model: str = "56m", seed: int = 0) -> list[Pair]:
    """Pairs of a shape in ids of a model: the first `num_pairs` of HH's 64, or drawn."""
    pairs = _hh(num_pairs) if shape == "hh" else _drawn(LENGTHS[shape], num_pairs, seed)
    vocab = MODELS[model].get("vocab_size", VOCAB)
    return [Pair(_within(pair.prompt, vocab), _both(pair.answers, vocab)) for pair in pairs]


def _hh(num_pairs: int) -> list[Pair]:
    stored = np.load(HH_FILE, allow_pickle=False)
    parts = np.split(stored["ids"].astype(np.int32), np.cumsum(stored["lengths"].reshape(-1))[:-1])
    pairs = [Pair(parts[i], (parts[i + 1], parts[i + 2])) for i in range(0, len(parts), 3)]
    if num_pairs > len(pairs):
        raise SystemExit(f"{num_pairs} pairs of hh were asked for, {HH_FILE.name} holds {len(pairs)}")
    return pairs[:num_pairs]


def _within(ids: np.ndarray, vocab: int) -> np.ndarray:
    return np.where(ids < vocab, ids, 3 + ids % (vocab - 3))  # 0 to 2 are control tokens


def _both(answers: tuple[np.ndarray, np.ndarray], vocab: int) -> tuple[np.ndarray, np.ndarray]:
    return _within(answers[0], vocab), _within(answers[1], vocab)


def _drawn(means: tuple[int, int, int], num_pairs: int, seed: int) -> list[Pair]:
    draw = np.random.default_rng(seed)
    sigma = np.sqrt(np.log1p(VARIATION**2))
    lengths = draw.lognormal(np.log(means) - sigma**2 / 2, sigma, (num_pairs, 3)).round().astype(int).clip(2)
    ids = [[draw.integers(3, VOCAB, length, dtype=np.int32) for length in row] for row in lengths]
    return [Pair(prompt, (chosen, rejected)) for prompt, chosen, rejected in ids]


def make_model(name: str, folder: Path, dtype: str, num_layers: int | None = None) -> int:
    """Write a Llama with random weights and a tokenizer to `folder`; returns its number of parameters.

    num_layers: instead of the shape's own number.
    """
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    model = LlamaForCausalLM(_config(name, num_layers)).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return int(model.num_parameters())


def num_layers_of(name: str) -> int:
    return MODELS[name]["num_hidden_layers"]


def _config(name: str, num_layers: int | None) -> Any:
    from transformers import LlamaConfig

    shape = MODELS[name] | ({} if num_layers is None else {"num_hidden_layers": num_layers})
    heads = shape["num_attention_heads"]
    return LlamaConfig(
        **{"vocab_size": VOCAB, **shape},
        num_key_value_heads=max(4, heads // 4),
        max_position_embeddings=32_768,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def _tokenizer() -> Any:
    """A tokenizer that knows the control tokens; both sides get ids, but TRL wants one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
