"""open-instruct: arguments and YAML of dpo.py and dpo_tune_cache.py.

Comes in: a draft with options. Goes out: the same with lines of ours.
"""

from __future__ import annotations

from typing import Any

from raydpo.importing import adapters, training_arguments
from raydpo.importing.data_names import entry, mixed
from raydpo.importing.draft import Draft
from raydpo.importing.fates import Only, Row, To, flag, idle, number, off, together
from raydpo.importing.losses import with_term
from raydpo.importing.named_templates import named_template

TITLE = "open-instruct"
DEFAULTS: dict[str, Any] = {
    "num_epochs": 1,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "learning_rate": 2e-5,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.1,
    "weight_decay": 0.0,
    "max_grad_norm": 0.0,
    "max_seq_length": 4096,
    "seed": 42,
    "beta": 5.0,
    "loss_type": "dpo_norm",
    "gamma_beta_ratio": 0.3,
    "label_smoothing": 0.0,
    "mixer_list_splits": "train",
    "output_dir": "output/",
}
_CUT = "longer rows: open-instruct cuts the answer's end, raydpo leaves the example out and counts it (data.overlong)"
TABLE: dict[str, Row] = {
    "model_name_or_path": To("model.path", str),
    "model_revision": To("model.revision", str),
    "learning_rate": To("train.learning_rate", number),
    "weight_decay": To("train.weight_decay", number),
    "max_grad_norm": To("train.max_grad_norm", number),
    "max_seq_length": To("data.max_length", int, _CUT),
    "seed": To("run.seed", int),
    "output_dir": To("run.dir", str),
    "gradient_checkpointing": To("train.gradient_checkpointing", flag),
    "zero_stage": To("train.zero_stage", int),
    "offload_optimizer": To("train.offload_optimizer", flag),
    "offload_param": To("train.offload_parameters", flag),
    "add_bos": To("data.bos", lambda value: "always" if flag(value) else "auto"),
    "optimizer_type": Only(("adamw",), "the optimizer here is AdamW"),
    "keep_last_n_checkpoints": To("train.keep_checkpoints", int),
    **together(
        "num_epochs num_train_epochs max_train_steps per_device_train_batch_size gradient_accumulation_steps "
        "lr_scheduler_type "
        "warmup_ratio beta loss_type gamma_beta_ratio label_smoothing load_balancing_loss load_balancing_weight "
        "use_lora use_qlora "
        "lora_rank lora_alpha lora_dropout dataset_name dataset_config_name dataset_mixer mixer_list "
        "dataset_mixer_list "
        "mixer_list_splits dataset_mixer_list_splits max_train_samples chat_template_name checkpointing_steps "
        "logging_steps "
        "tokenizer_name tokenizer_name_or_path tensor_parallel_degree context_parallel_degree"
    ),
    **off("it names another file of options, which is not read; import that file", "config"),
    **off("states in 8 bits or of another optimizer", "use_8bit_optimizer optimizer_kwargs"),
    **off("texts and labels by functions", "transform_fn target_columns additional_model_arguments"),
    **off("positions are scaled", "rope_scaling_factor"),
    **idle(
        "speed and memory",
        "use_slow_tokenizer preprocessing_num_workers packing concatenated_forward activation_memory_budget "
        "activation_checkpointing_mode activation_checkpointing_modules compile_model fused_optimizer use_flash_attn "
        "use_liger_kernel zero_hpz_partition_size fsdp_shard_degree fsdp_num_replicas attn_implementation "
        "loss_implementation "
        "low_cpu_mem_usage dpo_use_paged_optimizer sync_each_batch timeout profiling config_name cp_strategy "
        "trust_remote_code "
        "tokenizer_revision overwrite_cache reference_logprobs_cache_path cache_logprobs_only skip_cache cache_mode "
        "local_cache_dir "
        "cache_dataset_only dataset_mix_dir data_loader_seed log_grad_norm",
    ),
    **idle(
        "logging, saving and jobs",
        "exp_name run_name with_tracking report_to wandb_project wandb_entity wandb_group_name push_to_hub hf_entity "
        "hf_repo_id "
        "hf_repo_revision hf_repo_url save_to_hub hf_metadata_dataset try_launch_beaker_eval_jobs "
        "try_auto_save_to_beaker "
        "gs_bucket_path oe_eval_tasks oe_eval_max_length oe_eval_gpu_multiplier eval_workspace eval_priority "
        "send_slack_alerts "
        "do_not_randomize_output_dir resume_from_checkpoint ephemeral_save_interval clean_checkpoints_at_end",
    ),
}


def compose(draft: Draft, processes: int | None, trainer: str | None) -> None:
    """What several options decide together."""
    _objective(draft)
    _adapter(draft)
    shared = int(draft.get("tensor_parallel_degree", 1)) * int(draft.get("context_parallel_degree", 1))
    training_arguments.batch(draft, processes, "per_device_train_batch_size", "gradient_accumulation_steps", shared)
    for name in ("tensor_parallel_degree", "context_parallel_degree"):
        draft.idle(name, "processes that see the same examples; the batch counts them once")
    steps = training_arguments.length_of_run(
        draft, "num_train_epochs" if draft.has("num_train_epochs") else "num_epochs", "max_train_steps"
    )
    draft.same("num_epochs", "another option decides") if "num_epochs" not in draft.fates else None
    kind = str(draft.get("lr_scheduler_type"))
    training_arguments.put_schedule(draft, kind, None, "lr_scheduler_type")
    training_arguments.warm_up(draft, steps, 0, draft.get("warmup_ratio"))
    draft.note("model.dtype", "bfloat16", "open-instruct trains in bfloat16")
    _data(draft)
    for name in ("checkpointing_steps", "logging_steps"):
        value, key = draft.get(name), "save_every" if name == "checkpointing_steps" else "log_every"
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            draft.put(f"train.{key}", value, name)
        draft.idle(name, "saving and logging") if name not in draft.fates else None
    if draft.get("keep_last_n_checkpoints") in (-1, 0):
        draft.idle("keep_last_n_checkpoints", "how many checkpoints are kept")
    _tokenizer(draft)


def _objective(draft: Draft) -> None:
    kind, beta, smoothing = str(draft.get("loss_type")), draft.get("beta"), draft.get("label_smoothing")
    ours = {"dpo": "dpo", "dpo_norm": "dpo_norm", "simpo": "simpo", "wpo": "dpo"}
    read = ["loss_type", "beta", *(["gamma_beta_ratio"] if kind == "simpo" else ["label_smoothing"])]
    if kind not in ours or (smoothing and kind not in ("dpo",)):
        why = f"the loss {kind}{' with label_smoothing' if smoothing else ''}; there is {', '.join(ours)}"
        for name in read:
            draft.lose(name, why, "objective")
    else:
        found: dict[str, Any] = {"name": ours[kind], "beta": beta}
        if kind == "simpo":
            found["gamma_beta_ratio"] = draft.get("gamma_beta_ratio")
        if kind == "wpo":
            found["wpo"] = True
        if smoothing:
            found["label_smoothing"] = smoothing
        draft.put("objective", with_term(found, "sft", 0), *read)
    for name in ("gamma_beta_ratio", "label_smoothing"):
        if name not in draft.fates:
            draft.idle(name, f"{kind} does not read it")
    if draft.get("load_balancing_loss"):
        draft.add_default("load_balancing_weight", 0.001)
        draft.put(
            "train.router_aux_loss", draft.get("load_balancing_weight"), "load_balancing_loss", "load_balancing_weight"
        )
    elif "load_balancing_loss" in draft.options or draft.has("load_balancing_weight"):
        for name in ("load_balancing_loss", "load_balancing_weight"):
            draft.same(name, "off")


def _adapter(draft: Draft) -> None:
    rest = ("lora_rank", "lora_alpha", "lora_dropout")
    if not draft.get("use_lora"):
        for name in ("use_lora", "use_qlora", *rest):
            draft.same(name, "all weights are trained")
        return
    for name, value in zip(rest, (64, 16, 0.1), strict=True):
        draft.add_default(name, value)
    draft.same("use_lora", "train.lora")
    adapters.lora(draft, *rest, "")
    targets = ["q_proj", "o_proj", "v_proj", "k_proj", "gate_proj", "up_proj", "down_proj"]
    draft.note("train.lora.target_modules", targets, "open-instruct adapts these")
    if draft.get("use_qlora"):
        draft.put("train.lora.quantize_base", "nf4", "use_qlora")
    draft.same("use_qlora", "off") if "use_qlora" not in draft.fates else None


def _data(draft: Draft) -> None:
    mixers = [name for name in ("mixer_list", "dataset_mixer_list", "dataset_mixer") if draft.get(name) is not None]
    splits = "dataset_mixer_list_splits" if draft.has("dataset_mixer_list_splits") else "mixer_list_splits"
    split = draft.get(splits)
    count = draft.get("max_train_samples")
    option = mixers[0] if mixers else "dataset_name"
    try:
        if isinstance(split, list) and len(set(split)) == 1:
            split = split[0]
        if isinstance(split, list):
            raise ValueError("several splits of data sets")
        entries = _mixture(draft.get(option), split) if mixers else []
        if not mixers and draft.get("dataset_name") is not None:
            entries = [entry(str(draft.get("dataset_name")), split, draft.get("dataset_config_name"))]
        if count is not None:
            if len(entries) != 1 or not isinstance(entries[0], str):
                raise ValueError("max_train_samples of several data sets together")
            entries = [{"path": entries[0], "count": count}]
    except ValueError as error:
        for name in (option, "max_train_samples"):
            draft.lose(name, str(error), "data.train") if name in draft.options else None
        return
    if entries:
        read = [name for name in (option, "max_train_samples", "dataset_config_name") if draft.get(name) is not None]
        draft.put("data.train", entries, *read, splits)
    for name in (
        "mixer_list_splits",
        "dataset_mixer_list_splits",
        "max_train_samples",
        "dataset_config_name",
        "dataset_name",
    ):
        if name not in draft.fates:
            draft.same(name, "not used")


def _mixture(value: Any, split: str) -> list[Any]:
    """Entries of `{name: share}` or of names and shares that take turns."""
    words = value if isinstance(value, list) else str(value).split()
    pairs = list(value.items()) if isinstance(value, dict) else list(zip(words[::2], words[1::2], strict=True))
    return [mixed(str(name), float(share), share, split) for name, share in pairs]


def _tokenizer(draft: Draft) -> None:
    model = str(draft.get("model_name_or_path", ""))
    for name in ("tokenizer_name", "tokenizer_name_or_path"):
        if draft.get(name) in (None, draft.get("model_name_or_path")):
            draft.same(name, "the model's own")
        else:
            draft.lose(name, "a tokenizer of another model", "model.path")
    if draft.get("chat_template_name") is not None:
        named_template(draft, "chat_template_name", str(draft.get("chat_template_name")), model)
