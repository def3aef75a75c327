"""Every private name of a library, and every text of its messages, that the package leans on.

What goes out: `PRIVATE`, one row each, with what breaks when the library moves; `Row.problem` says whether it has.
Decision: a list with a test, because such names change without notice and mostly where nothing fails at once. A name is
looked up in the installed library; a text in its installed file, compiled ones too; what only exists on an object is
made. Rows say where a name is used by module name alone; the test finds the files.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """needle: what the package's source spells. library: as in pyproject.toml. used_by: name of a module; for readers."""

    library: str
    needle: str
    used_by: str
    breaks: str

    def problem(self) -> str:
        """Why the installed library no longer fits, or nothing."""
        raise NotImplementedError


@dataclass(frozen=True)
class Attribute(Row):
    """name: dotted, resolved by import. parameters: that it takes by name."""

    name: str
    parameters: tuple[str, ...] = ()

    def problem(self) -> str:
        try:
            found = resolve(self.name)
        except (ImportError, AttributeError) as error:
            return f"{self.name}: {error}"
        there = inspect.signature(found).parameters if self.parameters else {}
        lacking = [each for each in self.parameters if each not in there]
        return f"{self.name} takes no {', '.join(lacking)}" if lacking else ""


@dataclass(frozen=True)
class Text(Row):
    """text: spelled in `file`, from the folder of installed packages; Python or compiled."""

    file: str
    text: str = ""

    def problem(self) -> str:
        package, _, rest = self.file.partition("/")
        spec = find_spec(package)
        path = Path((spec and spec.origin) or package).parent / rest
        if not path.is_file():
            return f"{self.file} is no longer there"
        text = self.text or self.needle
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as found:
            return "" if found.find(text.encode()) >= 0 else f"{self.file} does not hold {text!r}"


@dataclass(frozen=True)
class Made(Row):
    """make: builds what the library builds; returns whether the name or text is there."""

    make: Callable[[], bool]

    def problem(self) -> str:
        return "" if self.make() else f"{self.needle} is not there any more"


def resolve(name: str) -> Any:
    """What a dotted name stands for: the longest module in it, then attributes. Raises ImportError or AttributeError."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError as error:
            if not f"{name}.".startswith(f"{error.name}."):
                raise
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise ImportError(f"no module {name}")


def _allocation_message() -> bool:
    import torch

    try:
        torch.empty(1 << 60, dtype=torch.uint8)
    except RuntimeError as error:
        return "can't allocate memory" in str(error)
    return False


def _backward_nodes() -> bool:
    import torch

    a = torch.ones(2, 2, requires_grad=True)
    nodes = [a @ a, torch.addmm(a, a, a), torch.bmm(a[None], a[None]), torch.baddbmm(a[None], a[None], a[None])]
    names = [node.grad_fn.name() for node in nodes if node.grad_fn is not None]
    return names == ["MmBackward0", "AddmmBackward0", "BmmBackward0", "BaddbmmBackward0"]


def _adapted() -> Any:
    import torch
    from peft import LoraConfig, get_peft_model

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config: dict[str, Any] = {}
            self.inner = torch.nn.Linear(2, 3)

    return get_peft_model(Model(), LoraConfig(r=1, target_modules=["inner"]))


def _adapter_names() -> bool:
    return "base_model.model.inner.base_layer.weight" in dict(_adapted().named_parameters())


def _adapter_factors() -> bool:
    layer = _adapted().base_model.model.inner
    (name,) = layer.active_adapters
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    return (up @ down).shape == layer.get_base_layer().weight.shape and isinstance(layer.scaling[name], float)


def _fingerprint() -> bool:
    from datasets import Dataset

    return isinstance(Dataset.from_dict({"a": [1]})._fingerprint, str)


_RAYLET, _GCS = "ray/core/src/ray/raylet/raylet", "ray/core/src/ray/gcs/gcs_server"
_PUSH = "weights of a LoRA run that are pushed to generators would be wrong or missing"
_MERGING = "an adapter whose file lacks tensors would be loaded as if it were whole"
_KILLED = "a worker that was killed would be reported in Ray's words, without what it means"
_EARLY = "torch's own time-out would end a hanging run before the driver says which rank hangs"
_CAUSES = "a death would be taken for one of another kind, and a run restarted, or ended, for the wrong reason"
_VLLM_LOADS = "vLLM would go on sampling from the weights of the round before"
_STATE = "a checkpoint would lack a part of the training state, or put it in the wrong place"
_STREAMED = "no reference could be streamed layer by layer; whole ones could"
_MODELLING = "transformers/modeling_utils.py"
_LAYERS = "activations could not be measured, nor recomputed layer by layer"
_FUSED_MOE = "vllm/model_executor/layers/fused_moe/unquantized_fused_moe_method.py"

PRIVATE: tuple[Row, ...] = (
    Attribute(
        "ray",
        "AuthenticationTokenLoader",
        "connection",
        "a second session of a process would show the first one's token and be refused",
        "ray._raylet.AuthenticationTokenLoader.reset_cache",
    ),
    Attribute(
        "ray",
        "_worker_logs_enabled",
        "connection",
        "Ray's own lines about dead workers would come between ours",
        "ray._private.worker._worker_logs_enabled",
    ),
    Attribute(
        "ray",
        "ENABLE_RAY_CLUSTER",
        "ray_session",
        "a local session would listen on all interfaces",
        "ray._private.ray_constants.ENABLE_RAY_CLUSTER",
    ),
    Text(
        "ray",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",
        "ray_session",
        "the processes of a local session would look for the machine's outer address",
        "ray/_private/ray_constants.py",
    ),
    Attribute(
        "ray",
        "_global_node",
        "ray_session",
        "the folder of a local session would stay after its end",
        "ray._private.worker._global_node",
    ),
    Text(
        "ray",
        "timed out during startup",
        "connection",
        "a local Ray on a busy machine would not be started again but end the command",
        "ray/_private/node.py",
    ),
    Text(
        "ray",
        "RAY_timeout_ms_task_wait_for_death_info",
        "connection",
        "the cause of an actor's death would be missing on a busy machine",
        "ray/_raylet.so",
        "timeout_ms_task_wait_for_death_info",
    ),
    Text(
        "ray",
        "RAY_worker_niceness",
        "connection",
        "workers would run at the lowest priority",
        _RAYLET,
        "worker_niceness",
    ),
    # The number is put behind the text at run time; 2 is "end of file", how a process that was killed leaves its socket.
    Text("ray", "connection error code 2", "ray_deaths", _KILLED, _RAYLET, "connection error code "),
    Text("ray", "running low on memory", "ray_deaths", _KILLED, _RAYLET),
    Text("ray", "memory monitor", "ray_deaths", _KILLED, _RAYLET),
    Text("ray", "node was terminated", "ray_deaths", "a lost node would be reported in Ray's words", _GCS),
    Text("ray", "its node has died", "ray_deaths", _CAUSES, _GCS),
    Text("ray", "its owner has died", "ray_deaths", _CAUSES, _GCS),
    Text("ray", "Owner's node has crashed", "ray_deaths", _CAUSES, _GCS),
    Text("ray", "its worker process has died", "ray_deaths", _CAUSES, _GCS),
    Text("ray", "killed by `ray.kill`", "ray_deaths", _CAUSES, _GCS),
    Text("ray", "node was preempted:", "ray_deaths", _CAUSES, _GCS),
    Text("ray", "node was terminated expectedly", "ray_deaths", _CAUSES, _GCS),
    Text("ray", "forcibly preempted", "ray_deaths", _CAUSES, _GCS),
    Text("ray", "The object's owner has exited", "ray_deaths", _CAUSES, "ray/exceptions.py"),
    Attribute(
        "ray",
        "get_draining_nodes",
        "ray_backend",
        "a node that is being drained would be noticed when it is gone",
        "ray._private.state.GlobalState.get_draining_nodes",
    ),
    Attribute(
        "ray",
        "preempted",
        "ray_deaths",
        "a preempted node would look like a crash",
        "ray.exceptions.RayActorError.preempted",
    ),
    Attribute(
        "deepspeed",
        "FWD_MODULE_STACK",
        "deepspeed_engine",
        "every run of a process under ZeRO-3 would keep its model in memory",
        "deepspeed.runtime.zero.parameter_offload.FWD_MODULE_STACK",
    ),
    Attribute(
        "torch",
        "_local_scalar_dense",
        "skeleton",
        "a model that asks whether a mask is all ones could not be traced for a plan",
        "torch.ops.aten._local_scalar_dense",
    ),
    Attribute(
        "torch",
        "_compiled_call_impl",
        "rounding",
        "compiled layers would be compiled anew when the noise of rounding is measured",
        "torch.nn.Module._compiled_call_impl",
    ),
    Attribute(
        "torch",
        "_profiler_enabled",
        "ranges",
        "a profile would have no ranges of steps, waiting and the optimizer",
        "torch.autograd._profiler_enabled",
    ),
    Attribute("torch", "_world", "group_timeout", _EARLY, "torch.distributed.distributed_c10d._world"),
    Attribute(
        "torch", "_set_pg_timeout", "group_timeout", _EARLY, "torch.distributed.distributed_c10d._set_pg_timeout"
    ),
    Attribute("torch", "_python_dispatch", "memory", _LAYERS, "torch.utils._python_dispatch.TorchDispatchMode"),
    Attribute(
        "torch",
        "_subclasses",
        "skeleton",
        "a plan cannot trace activations without weights",
        "torch._subclasses.fake_tensor.FakeTensorMode",
    ),
    Attribute("torch", "_pytree", "memory", _LAYERS, "torch.utils._pytree.tree_iter"),
    Attribute("torch", "_cdata", "memory", _LAYERS, "torch.UntypedStorage._cdata"),
    Attribute(
        "torch",
        "_schema",
        "recipes",
        "a weight that transformers changes in place would be read as it is in the files",
        "torch.ops.aten.clone.default._schema",
    ),
    Attribute(
        "torch",
        "_dynamo",
        "vllm_engine",
        "the first score of vLLM on a CPU would call a C++ compiler, for seconds",
        "torch._dynamo.config.disable",
    ),
    Attribute(
        "torch",
        "varlen_attn",
        "varlen",
        "attention on a GPU would fall back to one call a segment, with a warning",
        "torch.nn.attention.varlen.varlen_attn",
        ("query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k", "scale", "window_size", "enable_gqa"),
    ),
    Made(
        "torch",
        "can't allocate memory",
        "step",
        "a micro-batch that does not fit into main memory would end the run, instead of being split",
        _allocation_message,
    ),
    Made("torch", "Baddbmm", "breakdown", "profiles would count matrix products as other", _backward_nodes),
    *(
        Text("torch", needle, "verdict", "collateral failures would be listed before their cause", file, text)
        for needle, file, text in (
            ("closed", "torch/lib/libtorch_cpu.so", "Connection closed by peer"),  # of gloo
            ("timed out (waiting|after)", "torch/lib/libtorch_cpu.so", "timed out after"),
            ("DistBackendError", "torch/lib/libtorch_python.so", "DistBackendError"),
            ("DistNetworkError", "torch/lib/libtorch_python.so", "DistNetworkError"),
            ("DistStoreError", "torch/lib/libtorch_python.so", "DistStoreError"),
        )
    ),
    Attribute(
        "deepspeed",
        "__compatible_ops__",
        "engine",
        "the first training would compile a shared-memory kernel, or fail without a compiler",
        "deepspeed.ops.__compatible_ops__",
    ),
    Text(
        "deepspeed",
        "deepspeed_shm_comm",
        "engine",
        "the first training would compile a shared-memory kernel, or fail without a compiler",
        "deepspeed/ops/op_builder/cpu/comm.py",
    ),
    Attribute(
        "deepspeed",
        "_loaded_ops",
        "native_ops",
        "DeepSpeed's CPU Adam would be compiled again in every rank, under a lock that stays when one is killed",
        "deepspeed.ops.op_builder.builder.OpBuilder._loaded_ops",
    ),
    Attribute(
        "deepspeed",
        "update_lp_params",
        "held_state",
        _STATE,
        "deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer.update_lp_params",
    ),
    *(
        Attribute(
            "deepspeed",
            name,
            "held_state",
            _STATE,
            f"deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3.{name}",
        )
        for name in (
            "_reassign_or_swap_out_partitioned_parameters",
            "checkpoint_event_prologue",
            "checkpoint_event_epilogue",
            "get_param_id",
        )
    ),
    *(
        Text("deepspeed", needle, "held_state", _STATE, f"deepspeed/{file}", text)
        for needle, file, text in (
            ("_hp_mapping", "utils/mixed_precision_linkage.py", "lp_param._hp_mapping = "),
            ("lp_fragment_address.start", "utils/tensor_fragment.py", "lp_fragment_address: fragment_address"),
            ("hp_fragment_address", "utils/tensor_fragment.py", "hp_fragment_address: fragment_address"),
            ("param_group_index", "utils/tensor_fragment.py", "param_group_index: int"),
            (
                "single_partition_of_fp32_groups",
                "runtime/zero/stage_1_and_2.py",
                "self.single_partition_of_fp32_groups = []",
            ),
            (
                "grad_position",
                "runtime/zero/stage3.py",
                "self.grad_position[param_id] = [int(i), int(current_offset), int(num_",
            ),
            ("fp32_partitioned_groups_flat", "runtime/zero/stage3.py", "self.fp32_partitioned_groups_flat"),
            ("ds_shape", "runtime/zero/partition_parameters.py", "param.ds_shape = param.shape"),
            (
                "ds_zero_partition_rank",
                "runtime/zero/partition_parameters.py",
                "param.ds_zero_partition_rank = dist.get_rank(group=param.ds_process_group)",
            ),
            (
                "ds_zero_partition_world_size",
                "runtime/zero/partition_parameters.py",
                "param.ds_zero_partition_world_size = dist.get_world_size(group=param.ds_process_group)",
            ),
            ("ds_tensor.ds_numel", "runtime/zero/partition_parameters.py", "param.ds_tensor.ds_numel = partition_size"),
            ("ds_numel", "runtime/zero/partition_parameters.py", "param.ds_numel = param.numel()"),
        )
    ),
    Attribute(
        "deepspeed",
        "_convert_to_deepspeed_param",
        "sharding",
        "a rank could not read its own part of a weight alone under ZeRO-3",
        "deepspeed.runtime.zero.partition_parameters.Init._convert_to_deepspeed_param",
    ),
    Attribute(
        "deepspeed",
        "LinearFunctionForZeroStage3",
        "breakdown",
        "profiles under ZeRO-3 would count linear layers as other",
        "deepspeed.runtime.zero.linear.LinearFunctionForZeroStage3",
    ),
    Text(
        "deepspeed",
        "managed_gradient_accumulation",
        "engine",
        "DeepSpeed would decide itself when a global batch is whole",
        "deepspeed/runtime/config.py",
    ),
    Attribute(
        "transformers",
        "_attn_implementation",
        "layout",
        "a model could not be put back to its own attention after the probe",
        "transformers.PreTrainedConfig._attn_implementation",
    ),
    Attribute(
        "transformers",
        "set_attn_implementation",
        "layout",
        "no model could be switched to shared prompts",
        "transformers.PreTrainedModel.set_attn_implementation",
    ),
    Text(
        "transformers",
        "AttentionInterface",
        "attention",
        "transformers would build a mask over the packed stream; the probe would find it, and rows be padded",
        "transformers/masking_utils.py",
        "not in ALL_MASK_ATTENTION_FUNCTIONS._global_mapping",
    ),
    Text(
        "transformers",
        '"attention" not in str(error)',
        "load",
        "a model without sdpa would be refused, instead of being loaded with eager attention",
        "transformers/modeling_utils.py",
        "does not support an attention implementation through torch.nn.functional.scaled_dot_product_attention",
    ),
    Text(
        "transformers",
        'found["missing_keys"]',
        "load",
        "a model with weights drawn at random could not be told from a whole one",
        "transformers/modeling_utils.py",
        "missing_keys",
    ),
    Text(
        "transformers",
        "_name_or_path",
        "digest",
        "a model folder that was moved would count as another model, and its caches be made again",
        "transformers/configuration_utils.py",
    ),
    Attribute(
        "transformers",
        "GradientCheckpointingLayer",
        "memory",
        _LAYERS,
        "transformers.modeling_layers.GradientCheckpointingLayer",
    ),
    Attribute(
        "transformers",
        "disable_input_require_grads",
        "memory",
        _LAYERS,
        "transformers.PreTrainedModel.disable_input_require_grads",
    ),
    Attribute(
        "transformers",
        "revert_weight_conversion",
        "names",
        "new weights could not be given to vLLM under the names of the files",
        "transformers.core_model_loading.revert_weight_conversion",
        ("model", "state_dict"),
    ),
    Attribute(
        "transformers",
        "_keep_in_fp32_modules_strict",
        "pretrained",
        "a merged adapter would be cast where transformers keeps float32",
        "transformers.PreTrainedModel._keep_in_fp32_modules_strict",
    ),
    *(
        Attribute("transformers", name.rpartition(".")[2], "layer_weights", _STREAMED, name, parameters)
        for name, parameters in (
            (
                "transformers.core_model_loading.convert_and_load_state_dict_in_model",
                ("model", "state_dict", "load_config"),
            ),
            (
                "transformers.core_model_loading.rename_source_key",
                ("source_key", "weight_renamings", "weight_converters", "base_model_prefix", "meta_state_dict"),
            ),
            ("transformers.modeling_utils.LoadStateDictConfig", ("dtype", "dtype_plan", "weight_mapping")),
            ("transformers.conversion_mapping.get_model_conversion_mapping", ("model",)),
            ("transformers.PreTrainedModel.named_non_persistent_buffers", ()),
            ("transformers.PreTrainedModel.initialize_weights", ()),
            ("transformers.PreTrainedModel.tie_weights", ("missing_keys", "recompute_mapping")),
        )
    ),
    *(
        Text("transformers", name, "layer_weights", _STREAMED, _MODELLING)
        for name in ("_is_hf_initialized", "all_tied_weights_keys")
    ),
    *(
        Text("transformers", name, "spread_model", "a reward model could not go over several GPUs", _MODELLING)
        for name in ("_no_split_modules", "_skip_keys_device_placement")
    ),
    Attribute(
        "peft",
        "get_weight_norm",
        "magnitudes",
        "DoRA could not begin where ranks read their own part",
        "peft.tuners.lora.dora.DoraLinearLayer.get_weight_norm",
        ("weight", "lora_weight", "scaling"),
    ),
    Text("peft", "missing adapter keys", "merging", _MERGING, "peft/peft_model.py", "Found missing adapter keys"),
    Made("peft", "base_model.model.", "push", _PUSH, _adapter_names),
    Made("peft", "lora_A", "push", _PUSH, _adapter_factors),
    Attribute("peft", "get_delta_weight", "push", _PUSH, "peft.tuners.lora.layer.ParamWrapper.get_delta_weight"),
    Text("peft", "parameter_name", "push", _PUSH, "peft/tuners/lora/layer.py", "self.parameter_name = "),
    Text("peft", "fan_in_fan_out", "push", _PUSH, "peft/tuners/lora/layer.py", "self.fan_in_fan_out = "),
    Made(
        "datasets",
        "_fingerprint",
        "sources",
        "the digest of a hub data set could not be told, so nothing from the hub could be read",
        _fingerprint,
    ),
    Attribute(
        "vllm",
        "initialize_layerwise_reload",
        "vllm_transfer",
        _VLLM_LOADS,
        "vllm.model_executor.model_loader.reload.initialize_layerwise_reload",
    ),
    Attribute(
        "vllm",
        "finalize_layerwise_reload",
        "vllm_transfer",
        _VLLM_LOADS,
        "vllm.model_executor.model_loader.reload.finalize_layerwise_reload",
    ),
    Attribute(
        "vllm",
        "receive_weights",
        "vllm_transfer",
        _VLLM_LOADS,
        "vllm.distributed.weight_transfer.base.WeightTransferEngine.receive_weights",
    ),
    Text(
        "vllm",
        "weight_transfer_config",
        "vllm_engine",
        _VLLM_LOADS,
        "vllm/v1/worker/gpu_worker.py",
        "self.weight_transfer_engine = WeightTransferEngineFactory.create_engine(",
    ),
    Text("vllm", "worker_extension_cls", "vllm_engine", _VLLM_LOADS, "vllm/v1/worker/worker_base.py"),
    Text("vllm", "unquantized_backend", "vllm_transfer", _VLLM_LOADS, _FUSED_MOE, "self.unquantized_backend"),
    Text(
        "bitsandbytes",
        "support_avx512bf16_for_cpu",
        "packed",
        "packed layers would compute in bfloat16 in evaluation mode, on CPUs that can",
        "bitsandbytes/nn/modules.py",
    ),
    Text("vllm", "moe_kernel", "vllm_transfer", _VLLM_LOADS, _FUSED_MOE, "self.moe_kernel"),
    Attribute(
        "vllm",
        "ParallelLMHead",
        "vllm_transfer",
        _VLLM_LOADS,
        "vllm.model_executor.layers.vocab_parallel_embedding.ParallelLMHead",
    ),
    Attribute(
        "vllm",
        "process_weights_after_loading",
        "vllm_transfer",
        _VLLM_LOADS,
        "vllm.model_executor.layers.vocab_parallel_embedding.UnquantizedEmbeddingMethod.process_weights_after_loading",
    ),
    *(
        Text("vllm", f"VLLM_{name}", "vllm_engine", "vLLM would start processes, ports or reports of its own", file)
        for name, file in (
            ("ENABLE_V1_MULTIPROCESSING", "vllm/envs.py"),
            ("ALLOW_LONG_MAX_MODEL_LEN", "vllm/envs.py"),
            ("CPU_OMP_THREADS_BIND", "vllm/envs.py"),
            ("CPU_KVCACHE_SPACE", "vllm/envs.py"),
            ("HOST_IP", "vllm/envs.py"),
            ("NO_USAGE_STATS", "vllm/envs.py"),
        )
    ),
)

STALE: dict[str, str] = {}
"""Texts that are looked for and that the installed library does not write any more."""
