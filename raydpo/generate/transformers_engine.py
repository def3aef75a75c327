"""The transformers engine: the policy lives in the actor's own process, and `generate` of transformers samples from it.

Comes in: token ids. Goes out: answers exactly as they were sampled, and log-probs.
Decision: the random state is set at every request and the request is cut into batches by lengths alone, so a request has
one answer, whoever is asked and however often. Every answer is a row of its own from the first token on; the price is that
a prompt is read once for each of its answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raydpo.batches import batches_by_length, collate_rows
from raydpo.generate.decoding import StopTexts, decode, settings_for, text_of
from raydpo.generate.engine import EngineSpec, Scores, probe_nats
from raydpo.generate.limits import Ids, Limits
from raydpo.generate.weights import Expected, weights_in
from raydpo.models.logprobs import AnswerLogProbs, check_head
from raydpo.models.pretrained import load_model, load_tokenizer
from raydpo.schema.pulse import beat
from raydpo.schema.samples import Sample, Sampling


class TransformersEngine:
    """See `raydpo.generate.engine.Engine`. Threads and denormals are set for the whole process.

    num_steps: forwards of sampling so far, one for each token of the longest answer of a batch.
    """

    def __init__(self, spec: EngineSpec) -> None:
        torch.set_num_threads(spec.threads)
        torch.set_flush_denormal(True)
        self._spec = spec
        self._device = torch.device("cuda" if spec.use_gpu else "cpu")
        self._model = load_model(Path(spec.model), spec.dtype, "auto").to(self._device).requires_grad_(False)
        self._limits = Limits.of(self._model.config, spec.max_length)
        self._scoring = AnswerLogProbs(self._model)
        self._head_is_checked = False
        self.num_steps = 0
        self._tensors = self._model.state_dict()
        self._expected = Expected.of(self._model)

    @cached_property
    def _tokenizer(self) -> Any:
        """Writes answers as text. A model that only scores needs none."""
        return load_tokenizer(Path(self._spec.model))

    def generate(self, prompts: Sequence[Ids], sampling: Sampling, seed: int) -> list[list[Sample]]:
        self._limits.check_prompts(prompts, sampling.max_new_tokens)
        settings = settings_for(self._model, sampling, self._spec.end_ids)
        stop = StopTexts(sampling.stop, self._tokenizer) if sampling.stop else None
        num_sampled = 1 if sampling.greedy else sampling.num_answers
        rows = [prompt for prompt in prompts for _ in range(num_sampled)]
        samples: list[Sample | None] = [None] * len(rows)
        lengths = [len(prompt) + sampling.max_new_tokens for prompt in rows]
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if self._spec.use_gpu else []):
            torch.manual_seed(seed)
            for batch in batches_by_length(lengths, self._spec.tokens_per_batch):
                decoded = decode(self._model, [rows[place] for place in batch], settings, stop)
                self.num_steps += max(len(ids) for ids, _ in decoded)
                texts = text_of([ids for ids, _ in decoded], self._tokenizer)
                for place, (ids, ending), text in zip(batch, decoded, texts, strict=True):
                    samples[place] = Sample(tuple(ids), text, ending)
        copies = sampling.num_answers // num_sampled
        done = [sample for sample in samples if sample is not None]
        return [done[start : start + num_sampled] * copies for start in range(0, len(rows), num_sampled)]

    @torch.inference_mode()
    def score(self, sequences: Sequence[tuple[Ids, Ids]]) -> Scores:
        self._limits.check_sequences(sequences)
        if not self._head_is_checked:
            check_head(self._scoring)
            self._head_is_checked = True
        rows = [(np.asarray(prompt), np.asarray(answer, dtype=np.int64)) for prompt, answer in sequences]
        found: list[list[tuple[Any, ...]]] = [[(), (), ()] for _ in rows]
        for batch in batches_by_length(
            [len(prompt) + len(answer) for prompt, answer in rows], self._spec.tokens_per_batch
        ):
            columns = self._score_batch([rows[place] for place in batch])
            beat()
            ends = np.cumsum([len(rows[place][1]) for place in batch])
            for place, end in zip(batch, ends.tolist(), strict=True):
                start = end - len(rows[place][1])
                found[place] = [tuple(column[start:end].tolist()) for column in columns]
        nats, top_ids, top_nats = ([row[column] for row in found] for column in range(3))
        return nats, top_ids, top_nats

    def _score_batch(self, rows: list[tuple[np.ndarray, np.ndarray]]) -> list[torch.Tensor]:
        """nats, top_ids, top_nats of all answer tokens: [N] each."""
        nats, top_nats, top_ids = self._scoring(collate_rows(rows).to(self._device), "likeliest").cpu()
        return [nats, top_ids.long(), top_nats]

    def load_folder(self, path: str) -> None:
        self._expected.restart()
        self.load_weights(weights_in(path, self._spec.dtype))
        self.finish_loading()

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Any]) -> None:
        for name, weight in self._expected.check(weights).items():
            self._tensors[name].copy_(weight)

    def finish_loading(self, is_partial: bool = False) -> None:
        self._expected.finish(is_partial)

    def health(self) -> dict[str, Any]:
        return {
            "engine": "transformers",
            "device": str(self._device),
            "dtype": self._spec.dtype,
            "threads": torch.get_num_threads(),
            "num_positions": self._limits.num_positions,
            "probe_nats": probe_nats(self),
        }
