"""vLLM's weight transfer over a file of this node: an engine of ours behind vLLM's own interface, and its lifecycle.

Comes in: weights under the names of the model folder. Goes out: the same in vLLM's model, in place, and an empty prefix cache.
Decision: init, start, update and finish are those by which vLLM's NCCL and IPC engines are driven, so that another wire needs
no other caller. Imported in every process that holds a part of the model: that registers the engine there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo

from raydpo.errors import WorkerError
from raydpo.generate.mapped_weights import MappedWeights, handed_over, mapped
from raydpo.schema.shared_weights import SharedWeights, TensorPlace

BACKEND = "raydpo_shared_file"
"""Name of the engine in vLLM's `weight_transfer_config`."""


class Client(Protocol):
    """What of vLLM is driven here; `LLM` has it."""

    def init_weight_transfer_engine(self, request: Any) -> None: ...
    def start_weight_update(self) -> None: ...
    def update_weights(self, request: Any) -> None: ...
    def finish_weight_update(self) -> None: ...
    def reset_prefix_cache(self) -> bool: ...


class WithTransfer:
    """vLLM's worker class gets this as a base, and with the module the engine. It adds nothing."""


@dataclass
class FileInit(WeightTransferInitInfo):  # type: ignore[misc]  # vLLM may not be installed
    """There is nothing to agree on before the first update."""


@dataclass
class FileUpdate(WeightTransferUpdateInfo):  # type: ignore[misc]
    """weights: (name, tensor) in this process; or shared: fields of `SharedWeights`, for one that maps the file itself."""

    weights: Iterable[tuple[str, Any]] | None = None
    shared: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if (self.weights is None) == (self.shared is None):
            raise ValueError("an update has either weights or shared")


class FileTransfer(WeightTransferEngine[FileInit, FileUpdate]):  # type: ignore[misc]
    """Loads weights layer by layer into one process's part of the model.

    On a CPU vLLM computes with packed copies. It packs what comes under its own name, and a head that is tied to the embedding
    does not: it would stay the head of the old policy, so it is packed again. Experts it packs when it makes their kernel,
    once: new ones would be read as if they were packed, so they get a new kernel.
    """

    init_info_cls = FileInit
    update_info_cls = FileUpdate

    def init_transfer_engine(self, init_info: FileInit) -> None:
        pass

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        for layer in self.model.modules():
            if getattr(getattr(layer, "unquantized_backend", None), "name", "") == "CPU":
                layer.moe_kernel = None
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As in vLLM, but where there is no accelerator it is not waited for: the base's call is an error then."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: FileUpdate) -> None:
        weights = update_info.weights
        if update_info.shared is not None:
            found = mapped(_shared(update_info.shared))
            if found is None:
                raise RuntimeError(f"{update_info.shared['path']} is not there any more")
            weights = _drain(found)
        self.model.load_weights(weights)

    def finish_weight_update(self) -> None:
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, UnquantizedEmbeddingMethod
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        for layer in self.model.modules():
            if isinstance(layer, ParallelLMHead) and isinstance(layer.quant_method, UnquantizedEmbeddingMethod):
                layer.quant_method.process_weights_after_loading(layer)

    def shutdown(self) -> None:
        pass


def transfer(client: Client, weights: dict[str, Any], source: MappedWeights | None, *, is_here: bool) -> None:
    """Load `weights` (name in the folder -> CPU tensor), which are used up, and empty the prefix cache.

    source: the file that they were mapped from, if any. is_here: vLLM holds the whole model in this process; otherwise its
    children map a file. Raises WorkerError where vLLM keeps its prefix cache.
    """
    client.start_weight_update()
    if is_here:
        client.update_weights({"update_info": {"weights": _drain(weights)}})
    else:
        with handed_over(weights, source) as shared:
            client.update_weights({"update_info": {"shared": asdict(shared)}})
    client.finish_weight_update()
    empty_prefix_cache(client)


def empty_prefix_cache(client: Client) -> None:
    """Forget keys and values of earlier prompts. Raises WorkerError where vLLM refuses, as it does while requests use them."""
    if not client.reset_prefix_cache():
        raise WorkerError(
            "vLLM kept the prefix cache of the old policy after new weights were loaded, because requests are still using it. "
            "Answers to prompts with the same beginning would have mixed two policies, so the engine is not used any more. "
            "Load weights only while no request is in work."
        )


def _shared(fields: dict[str, Any]) -> SharedWeights:
    places = tuple(
        TensorPlace(each["name"], each["dtype"], tuple(each["shape"]), each["offset_bytes"])
        for each in fields["tensors"]
    )
    return SharedWeights(**{**fields, "tensors": places})


def _drain(weights: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in list(weights):
        yield name, weights.pop(name)


WeightTransferEngineFactory.register_engine(BACKEND, FileTransfer)
