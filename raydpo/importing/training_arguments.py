"""Options of transformers' TrainingArguments, which TRL, LLaMA-Factory and ms-swift take over: one table, and what they decide
together.

Comes in: a draft. Goes out: batch, schedule, lengths of the run, precision, DeepSpeed settings and evaluations of ours in it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raydpo.importing.draft import Draft
from raydpo.importing.fates import Only, Row, To, flag, idle, number, off, together, whole_steps

DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "learning_rate": 5e-5,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "num_train_epochs": 3.0,
    "max_steps": -1,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "optim": "adamw_torch_fused",
    "seed": 42,
    "gradient_checkpointing": False,
    "output_dir": "trainer_output",
}
"""Those that decide numbers (of transformers 5.24)."""

_ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused", "adamw")
TABLE: dict[str, Row] = {
    "learning_rate": To("train.learning_rate", number),
    "weight_decay": To("train.weight_decay", number),
    "adam_beta1": To("train.adam_beta1", number),
    "adam_beta2": To("train.adam_beta2", number),
    "adam_epsilon": Only((1e-8,), "AdamW's epsilon is 1e-8 here"),
    "max_grad_norm": To("train.max_grad_norm", number),
    "optim": Only(_ADAMW, "the optimizer here is AdamW with states in 32 bits"),
    "seed": To("run.seed", int),
    "gradient_checkpointing": To("train.gradient_checkpointing", flag),
    "output_dir": To("run.dir", str),
    "torch_compile": To("train.compile", flag),
    "attn_implementation": Only(
        (None, "sdpa", "eager", "flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2"),
        "an attention that is not known to give the same values",
    ),
    **together(
        "per_device_train_batch_size gradient_accumulation_steps lr_scheduler_type lr_scheduler_kwargs warmup_steps "
        "warmup_ratio "
        "num_train_epochs max_steps bf16 fp16 deepspeed eval_strategy evaluation_strategy do_eval eval_steps "
        "save_steps "
        "save_strategy save_total_limit save_only_model logging_steps"
    ),
    **off(
        "it changes the loss or the data of a step",
        "label_smoothing_factor neftune_noise_alpha group_by_length optim_target_modules optim_args use_galore "
        "average_tokens_across_devices_loss",
    ),
    **off("the last, partial batch is trained here", "dataloader_drop_last"),
    **idle(
        "logging and names",
        "report_to run_name logging_dir logging_first_step logging_strategy log_level log_level_replica disable_tqdm "
        "project "
        "trackio_space_id include_num_input_tokens_seen logging_nan_inf_filter log_on_each_node plot_loss",
    ),
    **idle(
        "saving and resuming",
        "overwrite_output_dir save_safetensors push_to_hub hub_model_id hub_strategy hub_token hub_private_repo "
        "resume_from_checkpoint load_best_model_at_end metric_for_best_model greater_is_better save_on_each_node "
        "ignore_data_skip restore_callback_states_from_checkpoint create_checkpoint_symlink",
    ),
    **idle(
        "speed and memory",
        "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
        "gradient_checkpointing_kwargs ddp_timeout ddp_find_unused_parameters ddp_bucket_cap_mb ddp_backend local_rank "
        "use_liger_kernel liger_kernel_config fsdp fsdp_config fsdp_transformer_layer_cls_to_wrap "
        "torch_empty_cache_steps tf32 "
        "torch_compile_backend torch_compile_mode auto_find_batch_size preprocessing_num_workers dataset_num_proc "
        "remove_unused_columns accelerator_config skip_memory_metrics low_cpu_mem_usage full_determinism",
    ),
    **idle(
        "evaluation",
        "per_device_eval_batch_size eval_accumulation_steps eval_on_start prediction_loss_only do_train do_predict "
        "eval_delay "
        "batch_eval_metrics label_names include_for_metrics",
    ),
}
_SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
}
_WARMED = (
    "warm-up and decay reach their ends one step apart: transformers begins at 0 and ends above it, raydpo begins "
    "above 0 and "
    "would reach 0 one step after the last"
)
_PLACE_OF_FLOOR = 0.1
_MANY_EPOCHS = 1000
"""Passes enough for any number of steps, where steps decide."""


def batch(draft: Draft, processes: int | None, micro: str, accumulation: str, shared: int = 1) -> None:
    """global_batch_pairs = micro-batch x accumulation x processes. shared: processes that see the same examples."""
    each, steps = draft.get(micro, 1), draft.get(accumulation, 1)
    if not all(isinstance(value, int) and value > 0 for value in (each, steps)):
        draft.put("train.global_batch_pairs", 1, micro, accumulation)
        if not draft.is_yours("train.global_batch_pairs") and all(
            name not in draft.fates for name in (micro, accumulation)
        ):
            draft.lose(micro, "no whole number", "train.global_batch_pairs")
        return
    count = processes if processes is not None else draft.given.num_processes
    if count is None:
        count = 1
        draft.differences.append(
            f"how many processes train is not in the file: 1 is assumed, and the batch is {each * steps}; "
            "--processes N says it"
        )
    total = each * steps * max(1, count // shared)
    draft.put("train.global_batch_pairs", total, micro, accumulation)
    line = draft.lines.get("train.global_batch_pairs")
    if line is not None:
        draft.note("train.global_batch_pairs", total, f"{line.origin}, processes: {count}")


def length_of_run(draft: Draft, epochs: str = "num_train_epochs", steps: str = "max_steps") -> int | None:
    """Epochs and steps; gives the steps where they are known."""
    limit = draft.get(steps)
    if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
        draft.put("train.max_steps", limit, steps)
        draft.put("train.epochs", _MANY_EPOCHS, steps)
        if epochs in draft.options:
            draft.same(epochs, f"{steps} decides")
        return limit
    if steps in draft.options:
        draft.same(steps, "no limit")
    if epochs in draft.options:
        draft.follow_one(epochs, To("train.epochs", number))
    return None


def schedule(draft: Draft, num_steps: int | None, kind: str = "lr_scheduler_type") -> None:
    """Kind, floor and warm-up."""
    name = str(draft.get(kind, "linear"))
    settings = draft.get("lr_scheduler_kwargs") or {}
    settings = _mapping(settings)
    floor = settings.get("min_lr_rate")
    if name == "cosine_with_min_lr" and floor is None and isinstance(draft.get("learning_rate"), int | float):
        floor = settings.get("min_lr", 0) / draft.get("learning_rate")
    put_schedule(draft, name, floor, kind, "lr_scheduler_kwargs")
    steps, ratio = draft.get("warmup_steps", 0), draft.get("warmup_ratio", 0)
    if name == "constant":
        for option in ("warmup_steps", "warmup_ratio"):
            draft.same(option, "a constant rate has no warm-up in transformers")
        draft.note("train.warmup_fraction", 0.0, f"{kind}: constant has no warm-up in transformers")
        return
    warm_up(draft, num_steps, steps, ratio)


def put_schedule(draft: Draft, name: str, floor: float | None, *options: str) -> None:
    """The schedule `name` of transformers, which ends at the share `floor` of the peak."""
    if name in _SCHEDULES and not floor:
        draft.put("train.schedule", _SCHEDULES[name], *options)
    elif name in ("cosine", "cosine_with_min_lr") and floor and abs(floor - _PLACE_OF_FLOOR) < 1e-9:
        draft.put("train.schedule", "cosine_to_tenth", *options)
    elif draft.is_yours("train.schedule"):
        draft.put("train.schedule", "cosine", *options)
    else:
        for option in options:
            floored = f" with a floor of {floor:g} of the peak" if floor else ""
            draft.lose(option, f"the schedule {name}{floored} is none of {', '.join(_SCHEDULES)}", "train.schedule")


def warm_up(draft: Draft, num_steps: int | None, steps: Any, ratio: Any) -> None:
    """Warm-up as a share of the run: of a ratio itself, of steps where the run's length is known."""
    if not isinstance(steps, int | float) or not isinstance(ratio, int | float):
        draft.put("train.warmup_fraction", 0.0, "warmup_steps", "warmup_ratio")
    elif steps >= 1 and num_steps is None and not draft.is_yours("train.warmup_fraction"):
        why = "the run's number of steps is not in the file, and warm-up here is a share of them"
        draft.lose("warmup_steps", why, "train.warmup_fraction")
        draft.same("warmup_ratio", "warmup_steps decides")
    elif steps >= 1:
        share = min(1.0, steps / num_steps) if num_steps else 0.0
        draft.put("train.warmup_fraction", round(share, 9), "warmup_steps", differs=_WARMED)
        draft.same("warmup_ratio", "warmup_steps decides")
    else:
        by = "warmup_steps" if steps > 0 or "warmup_ratio" not in draft.options else "warmup_ratio"
        other = "warmup_ratio" if by == "warmup_steps" else "warmup_steps"
        draft.same(other, f"{by} decides")
        draft.put("train.warmup_fraction", steps or ratio, by, differs=_WARMED)


def evaluations(draft: Draft) -> bool:
    """When there are evaluations and checkpoints. Gives whether there are evaluations."""
    strategy = str(draft.get("eval_strategy", draft.get("evaluation_strategy", "no"))).lower()
    names = [name for name in ("eval_strategy", "evaluation_strategy", "do_eval") if name in draft.options]
    every = draft.get("eval_steps")
    is_on = strategy in ("steps", "epoch")
    if strategy == "steps" and _is_steps(every):
        draft.put("train.eval_every", int(every), *names, "eval_steps")
    else:
        for name in (*names, "eval_steps"):
            draft.idle(
                name, "evaluations" if is_on else "no evaluation during training: there is one before and one after"
            )
    _saving(draft)
    return is_on


def _saving(draft: Draft) -> None:
    every, strategy = draft.get("save_steps"), draft.get("save_strategy", "steps")
    if strategy == "steps" and _is_steps(every):
        draft.put("train.save_every", int(every), "save_steps")
    for name in ("save_steps", "save_strategy"):
        if name not in draft.fates:
            draft.idle(name, "checkpoints are written by time, and after the last step")
    kept, logged = draft.get("save_total_limit"), draft.get("logging_steps")
    if _is_steps(kept):
        draft.put("train.keep_checkpoints", kept, "save_total_limit")
    if _is_steps(logged):
        draft.put("train.log_every", int(logged), "logging_steps")
    if draft.get("save_only_model") is True:
        draft.put("train.save", "weights", "save_only_model")
    for name in ("save_total_limit", "logging_steps", "save_only_model"):
        if name not in draft.fates:
            draft.idle(name, "saving and logging")


def _is_steps(value: Any) -> bool:
    try:
        whole_steps(value)
    except ValueError:
        return False
    return True


def precision(draft: Draft, otherwise: str, *more: str) -> None:
    """bfloat16 or float32; fp16 is refused. otherwise: what the project computes in where nothing is said."""
    is_half = str(draft.get("fp16", False)).lower() in ("true", "auto")
    if is_half:
        draft.lose("fp16", "float16 needs a loss scale, and there is none here", "model.dtype")
    said = draft.get("bf16")
    dtype = otherwise if said is None else "bfloat16" if str(said).lower() in ("true", "auto", "full") else "float32"
    if not is_half:
        draft.same("fp16", "off")
    draft.put("model.dtype", dtype, *(name for name in ("bf16", *more) if name in draft.options))


def deepspeed(draft: Draft, option: str = "deepspeed") -> None:
    """A DeepSpeed JSON, by its path or as a mapping, or one of the names zero0 to zero3."""
    value = draft.get(option)
    if value is None:
        draft.same(option, "not set")
        return
    named = str(value).rpartition("/")[2] if isinstance(value, str) else ""
    settings = value if isinstance(value, dict) else _file_of(value, draft.given.where)
    zero = settings.get("zero_optimization", {}) if isinstance(settings, dict) else {}
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if stage is None:
        found = [
            digit for word in ("zero", "stage", "z") for digit in "0123" if f"{word}{digit}" in named.replace("_", "")
        ]
        stage = int(found[0]) if found else None
    if stage is None:
        draft.idle(option, "how memory is shared; train.zero_stage stays 2")
        return
    draft.put("train.zero_stage", stage, option)
    for theirs, ours in (("offload_optimizer", "offload_optimizer"), ("offload_param", "offload_parameters")):
        device = (zero.get(theirs) or {}).get("device") if isinstance(zero, dict) else None
        if device == "cpu" or (
            not zero and "offload" in named and "no_offload" not in named and ours == "offload_optimizer"
        ):
            draft.put(f"train.{ours}", True, option)


def _file_of(value: Any, where: str) -> dict[str, Any]:
    """The JSON file, as named from the folder of their file or one above it; empty where there is none."""
    base = Path(where.rpartition(":")[0]).resolve()
    for folder in list(base.parents)[:6]:
        try:
            found = json.loads((folder / str(value)).read_text())
        except (OSError, ValueError):
            continue
        return found if isinstance(found, dict) else {}
    return {}


def _mapping(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}
