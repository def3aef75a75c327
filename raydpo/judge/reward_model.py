"""A reward model: a sequence classifier of transformers with one output.

Comes in: rows of a prompt with its responses. Goes out: the raw output for each response (no sigmoid).
Decision: all rows of a call are sorted by length and cut into batches by padded tokens; padding is on the right, behind
the mask, and can touch no score. Price: texts are read as the model's own tokenizer and chat template write them, so a
response that spells out a control token is read as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from raydpo.batches import batches_by_length
from raydpo.config.round_sections import JudgeSection
from raydpo.errors import ConfigError
from raydpo.judge.judge_inputs import Given, find_models
from raydpo.judge.reward_config import ALLOWED, HEADS, UNREADABLE, check_reward_model, head_rows, no_classifier
from raydpo.judge.spread_model import spread
from raydpo.judge.verdict import Row, Verdict, scores_of_one, verdict_of
from raydpo.models.adapter_files import is_adapter
from raydpo.models.config_file import num_positions
from raydpo.models.layout import longest_exact
from raydpo.models.merging import merge_adapter
from raydpo.models.pretrained import DTYPES, load_tokenizer, switch_dropout_off
from raydpo.models.quoted_text import quoted
from raydpo.models.resolve import adapter_base
from raydpo.schema.pulse import beat
from raydpo.schema.samples import Conversation

_NO_LIMIT_TOKENS = 10**9


def make(section: JudgeSection, given: Given) -> RewardModel:
    """The judge of a section of kind reward_model."""
    found = (find_models(section) if given.models is None else given.models)[section.model or ""]
    return RewardModel(found.here(), section.tokens_per_batch, num_gpus=given.num_gpus)


class RewardModel:
    """Judge of one model; float32 on the CPU, bfloat16 on a GPU. num_gpus: that its layers are spread over; 0: the CPU.

    tokens_per_batch: of one forward, padding included; a longer response gets a forward of its own. A response with more
    tokens than the model has positions fails its row. Raises ConfigError for a folder without such a model.
    """

    def __init__(self, folder: Path, tokens_per_batch: int, *, num_gpus: int = 0) -> None:
        self.device = "cuda" if num_gpus else "cpu"
        self.tokens_per_batch = tokens_per_batch
        model = _load(folder, "bfloat16" if num_gpus else "float32")
        self.model = spread(model, num_gpus) if num_gpus > 1 else model.to(self.device)
        self.tokenizer = load_tokenizer(folder)
        self.longest_tokens = _longest(self.model, self.tokenizer)

    def __call__(self, prompt: str, responses: list[str]) -> list[float]:
        return scores_of_one(self.many, prompt, responses)

    def many(self, rows: Sequence[Row]) -> list[Verdict]:
        """One Verdict a row."""
        encoded = [self._encode_row(prompt, responses) for prompt, responses in rows]
        flat = [ids for row in encoded if not isinstance(row, Verdict) for ids in row]
        scores = iter(self.score(flat))
        return [
            row if isinstance(row, Verdict) else verdict_of([next(scores) for _ in row], len(row)) for row in encoded
        ]

    @torch.no_grad()
    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Output of the model for each list of token ids, in order."""
        scores = [0.0] * len(sequences)
        for batch in batches_by_length([len(ids) for ids in sequences], self.tokens_per_batch):
            outputs = self._forward([sequences[index] for index in batch])
            beat()
            for index, output in zip(batch, outputs, strict=True):
                scores[index] = output
        return scores

    def _forward(self, batch: list[Sequence[int]]) -> list[float]:
        width = max(map(len, batch))
        config = self.model.config.get_text_config()
        is_known = config.pad_token_id is not None
        pad_id = config.pad_token_id if is_known else _unused_id(batch)
        ids = torch.full((len(batch), width), pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(batch):
            ids[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
        # Decoders find the last token of a row by this id; with an id of no row they find the one they find without.
        config.pad_token_id = pad_id
        try:
            logits = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device)).logits
        finally:
            config.pad_token_id = pad_id if is_known else None
        return [float(score) for score in logits[:, 0].float().cpu()]

    def _encode_row(self, prompt: str, responses: Sequence[str]) -> list[list[int]] | Verdict:
        encoded = []
        for number, response in enumerate(responses):
            try:
                ids = self.encode(prompt, response)
            except Exception as error:  # noqa: BLE001 - templates are programs and raise what they like
                return Verdict.failed(f"response {number} could not be tokenised: {type(error).__name__}: {error}")
            if not ids:
                return Verdict.failed(f"response {number} and its prompt have no tokens")
            if self.longest_tokens is not None and len(ids) > self.longest_tokens:
                return Verdict.failed(
                    f"response {number} has {len(ids)} tokens with its prompt; the reward model reads at most "
                    f"{self.longest_tokens}"
                )
            encoded.append(ids)
        return encoded

    def encode(self, prompt: str, response: str) -> list[int]:
        """Token ids: by the chat template if there is one, the messages of a conversation as they came and a text as one
        message of the user; else both texts joined, with the tokens that the tokenizer adds by itself. Control tokens that the
        response spells are read as text: it cannot end its turn and begin another."""
        response = quoted(self.tokenizer, response)
        if not self.tokenizer.chat_template:
            return list(self.tokenizer(prompt + response)["input_ids"])
        asked = list(prompt.turns) if isinstance(prompt, Conversation) else [{"role": "user", "content": prompt}]
        tools = prompt.tools if isinstance(prompt, Conversation) else None
        turns = [*asked, {"role": "assistant", "content": response}]
        text = self.tokenizer.apply_chat_template(turns, tools=tools, tokenize=False)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _load(folder: Path, dtype: str) -> Any:
    """The classifier in `folder`; of an adapter, merged into its base in float32."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    check_reward_model(folder)
    if not is_adapter(folder):
        return switch_dropout_off(_read(folder, dtype)).eval()
    brought = {"num_labels": 1} if head_rows(folder) else {}
    base = _read(adapter_base(folder).folder, "float32", **brought)
    return switch_dropout_off(merge_adapter(base, folder).to(DTYPES[dtype])).eval()


def _read(folder: Path, dtype: str, **settings: Any) -> Any:
    """settings: for a base whose head comes with an adapter; the base may lack one then."""
    from transformers import AutoModelForSequenceClassification

    try:
        model, found = AutoModelForSequenceClassification.from_pretrained(
            str(folder),
            dtype=DTYPES[dtype],
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **settings,
        )
    except UNREADABLE as error:
        raise no_classifier(folder, error) from error
    missing = sorted(name for name in found["missing_keys"] if not (settings and name.endswith(HEADS)))
    if missing:
        raise ConfigError(
            f"judge.model: {folder} lacks the weights {', '.join(missing[:4])}; they would have been random, and so would "
            f"every score. {ALLOWED}"
        )
    return model


def _longest(model: Any, tokenizer: Any) -> int | None:
    """Tokens that a score may rest on: positions, what the tokenizer says, and where rotary positions are rescaled."""
    limits = [num_positions(model.config), longest_exact(model)]
    limits.append(tokenizer.model_max_length if tokenizer.model_max_length < _NO_LIMIT_TOKENS else None)
    return min((limit for limit in limits if limit is not None), default=None)


def _unused_id(batch: Sequence[Sequence[int]]) -> int:
    """The smallest id that no row holds; in the vocabulary, unless a batch uses every token of it."""
    used = {token for sequence in batch for token in sequence}
    return next(token for token in range(len(used) + 1) if token not in used)
