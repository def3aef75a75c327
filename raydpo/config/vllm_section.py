"""How vLLM is started: the section `vllm` of generators and of judges with a language model of their own.

Comes in: vLLM's own words for what it calls engine arguments. Goes out: validated values, and over how many devices an engine
goes. Decision: a few keys whose default is ours and has a reason; what else vLLM has stays as vLLM has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from raydpo.config.section import Section


class VllmSection(Section):
    tensor_parallel_size: int | None = Field(default=None, ge=1)
    """Devices that share every matrix. Default: `gpus_per_worker` over `pipeline_parallel_size`; 1 on CPUs, where more of
    them are processes that have the worker's CPUs between them."""
    pipeline_parallel_size: int = Field(default=1, ge=1)
    """Devices that have the layers between them, one after the other. For models whose heads do not divide."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of the worker's GPU memory for weights, keys and values (of a `gpus_per_worker` below 1, of that part). What is
    left is for what else the process holds: a second copy of a tensor while weights are loaded."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: as the trainers compute, so that a policy is sampled as it is trained."""
    quantization: str | None = None
    """A method of vLLM (fp8, ...). Of judges alone: a quantised policy would not be the one that is trained."""
    enable_prefix_caching: bool = True
    """Read equal beginnings of prompts once. The cache is emptied at new weights, and whenever nothing is in work."""
    enable_sleep_mode: bool = False
    """With `rounds.placement: colocated` on Ray and whole GPUs: generators sleep in their processes while other roles use the
    GPUs, instead of being stopped. Not run on a GPU yet, so off. Judges do not sleep."""
    max_num_seqs: int | None = Field(default=None, ge=1)
    """Answers in the making at a time, of as many requests as it takes. Default: vLLM's own number for the device."""

    def parallel(self, gpus: float) -> tuple[int, int]:
        """(tensor, pipeline) parallel size of an engine on `gpus` GPUs; 0: on CPUs."""
        layers = self.pipeline_parallel_size
        return self.tensor_parallel_size or max(1, int(gpus) // layers), layers

    def misfits(self, key: str, gpus: float) -> Iterator[str]:
        """What does not go with `gpus` GPUs of a worker of section `key`, as sentences."""
        tensor, layers = self.parallel(gpus)
        if gpus and tensor * layers != max(1, gpus):
            lost = "GPUs would stand idle" if tensor * layers < gpus else "there are fewer GPUs than it needs"
            yield (
                f"{key}.vllm: tensor_parallel_size {tensor} times pipeline_parallel_size {layers} is {tensor * layers}, and "
                f"{key}.gpus_per_worker is {gpus:g}: {lost}. Set gpus_per_worker to their product."
            )
