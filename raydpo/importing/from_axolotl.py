"""Axolotl: YAML with `rl: dpo`, ipo, kto, orpo or simpo.

Comes in: a draft with options. Goes out: the same with lines of ours.
"""

from __future__ import annotations

import re
from typing import Any

from raydpo.importing import adapters, training_arguments
from raydpo.importing.data_names import entry
from raydpo.importing.draft import Draft
from raydpo.importing.fates import Only, Row, To, flag, idle, number, off, together
from raydpo.importing.losses import pair_objective, weighted, with_term
from raydpo.importing.named_templates import named_template

TITLE = "Axolotl"
DEFAULTS: dict[str, Any] = {
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "num_epochs": 1,
    "lr_scheduler": "cosine",
    "optimizer": "adamw_torch_fused",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "seed": 42,
    "sequence_len": 512,
    "output_dir": "./model-out",
}
_ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused")
TABLE: dict[str, Row] = {
    "base_model": To("model.path", str),
    "revision_of_model": To("model.revision", str),
    "sequence_len": To("data.max_length", int),
    "learning_rate": To("train.learning_rate", number),
    "weight_decay": To("train.weight_decay", number),
    "max_grad_norm": To("train.max_grad_norm", number),
    "adam_beta1": To("train.adam_beta1", number),
    "adam_beta2": To("train.adam_beta2", number),
    "adam_epsilon": Only((None, 1e-8), "AdamW's epsilon is 1e-8 here"),
    "optimizer": Only(_ADAMW, "the optimizer here is AdamW with states in 32 bits"),
    "seed": To("run.seed", int),
    "gradient_checkpointing": To("train.gradient_checkpointing", lambda value: value == "offload" or flag(value)),
    "output_dir": To("run.dir", str),
    "val_set_size": To("data.eval_fraction", number),
    "base_model_ignore_patterns": Only((None,), "files that are not loaded"),
    **together(
        "rl rl_beta trl orpo_alpha simpo_gamma cpo_alpha kto_desirable_weight kto_undesirable_weight dpo_loss_type "
        "dpo_loss_weights "
        "dpo_label_smoothing dpo_use_weighting rpo_alpha adapter lora_r lora_alpha lora_dropout lora_target_linear "
        "lora_target_modules "
        "lora_modules_to_save peft_use_rslora peft_use_dora load_in_4bit load_in_8bit micro_batch_size "
        "gradient_accumulation_steps "
        "num_epochs max_steps lr_scheduler warmup_steps warmup_ratio bf16 fp16 datasets test_datasets chat_template "
        "special_tokens "
        "dataset_exact_deduplication deepspeed evals_per_epoch eval_steps eval_strategy saves_per_epoch save_steps "
        "save_strategy "
        "save_total_limit save_only_model logging_steps plugins"
    ),
    **off("a start from an adapter", "lora_model_dir"),
    **off(
        "it changes the model or its layers",
        "use_onebitllms relora peft_layers_to_transform unfrozen_parameters lisa_n_layers",
    ),
    **off(
        "it changes the data or the loss",
        "neftune_noise_alpha tokens added_tokens_overrides default_system_message train_on_inputs",
    ),
    **off("several rows are packed into one example", "sample_packing", "train.global_batch_pairs"),
    **off(
        "rates of their own",
        "loraplus_lr_ratio lr_groups cosine_min_lr_ratio embedding_lr lr_scheduler_kwargs optim_args",
    ),
    "tensor_parallel_size": Only((None, 1), "the batch is smaller by it", "train.global_batch_pairs"),
    "context_parallel_size": Only((None, 1), "the batch is smaller by it", "train.global_batch_pairs"),
    "shuffle_merged_datasets": Only((None, True), "the order of examples"),
    **idle(
        "speed, memory and files",
        "model_type tokenizer_type tokenizer_config is_llama_derived_model tf32 flash_attention sdp_attention "
        "xformers_attention "
        "attn_implementation dataset_prepared_path dataset_processes dataset_num_proc remove_unused_columns "
        "trust_remote_code "
        "gradient_checkpointing_kwargs fsdp fsdp_config fsdp_version dp_shard_size dp_replicate_size "
        "accelerator_config "
        "pad_to_sequence_len eval_sample_packing experimental_skip_move_to_device local_rank use_kernels "
        "use_scattermoe "
        "use_sonicmoe liger_rope liger_rms_norm liger_glu_activation liger_layer_norm liger_fused_linear_cross_entropy "
        "torch_compile dpo_use_liger_kernel dpo_padding_free dpo_use_logits_to_keep precompute_ref_log_probs strict "
        "group_by_length_of_eval eval_batch_size eval_causal_lm_metrics eval_table_size eval_max_new_tokens "
        "dataloader_num_workers "
        "dataloader_pin_memory dataloader_prefetch_factor eot_tokens push_dataset_to_hub hf_use_auth_token "
        "is_mistral_derived_model",
    ),
    **idle(
        "logging, saving and watching",
        "hub_model_id hub_strategy resume_from_checkpoint auto_resume_from_checkpoints early_stopping_patience "
        "loss_watchdog_threshold loss_watchdog_patience debug save_first_step save_safetensors load_best_model_at_end "
        "use_tensorboard profiler_steps include_tokens_per_second",
    ),
    "group_by_length": Only((None, False), "the order of examples"),
}
_TRACKERS = re.compile(r"(wandb|swanlab|mlflow|comet|use_wandb|use_swanlab|use_mlflow|use_comet|trackio|otel)")


def compose(draft: Draft, processes: int | None, trainer: str | None) -> None:
    """What several options decide together."""
    _objective(draft)
    _adapter(draft)
    training_arguments.batch(draft, processes, "micro_batch_size", "gradient_accumulation_steps")
    steps = training_arguments.length_of_run(draft, "num_epochs")
    training_arguments.put_schedule(draft, str(draft.get("lr_scheduler")), None, "lr_scheduler")
    if draft.get("warmup_steps") is None and draft.get("warmup_ratio") is None:
        draft.add_default("warmup_ratio", 0.03)
    training_arguments.warm_up(draft, steps, draft.get("warmup_steps", 0), draft.get("warmup_ratio", 0))
    training_arguments.evaluations(draft)
    for name in ("evals_per_epoch", "saves_per_epoch"):
        draft.idle(name, "evaluations and checkpoints")
    training_arguments.precision(draft, "bfloat16")
    training_arguments.deepspeed(draft)
    _data(draft)
    _plugins(draft)
    for name in draft.options:
        if _TRACKERS.match(name):
            draft.idle(name, "logging")


_LOSS = (
    "rl",
    "rl_beta",
    "trl",
    "orpo_alpha",
    "simpo_gamma",
    "cpo_alpha",
    "kto_desirable_weight",
    "kto_undesirable_weight",
    "dpo_loss_type",
    "dpo_loss_weights",
    "dpo_label_smoothing",
    "dpo_use_weighting",
    "rpo_alpha",
)


def _objective(draft: Draft) -> None:
    kind = str(draft.get("rl"))
    read = {
        "dpo": "rl_beta trl dpo_loss_type dpo_loss_weights dpo_label_smoothing dpo_use_weighting rpo_alpha",
        "ipo": "rl_beta trl dpo_label_smoothing",
        "kto": "rl_beta trl kto_desirable_weight kto_undesirable_weight",
        "orpo": "rl_beta trl orpo_alpha",
        "simpo": "rl_beta trl simpo_gamma cpo_alpha",
    }
    try:
        if kind not in read:
            raise ValueError(f"rl: {kind}; preference trainings are {', '.join(read)}")
        found = _section(draft, kind)
    except ValueError as error:
        draft.lose("rl", str(error), "objective")
        return
    draft.put("objective", found, "rl", *(name for name in read[kind].split() if name in draft.options))
    for name in _LOSS:
        if name in draft.options and name not in draft.fates:
            draft.idle(name, f"rl: {kind} does not read it")


def _section(draft: Draft, kind: str) -> dict[str, Any]:
    settings = draft.get("trl") or {}
    if more := sorted(set(settings) - {"beta"}):
        raise ValueError(f"trl: {', '.join(more)}")
    beta = settings.get("beta") or draft.get("rl_beta") or (draft.get("orpo_alpha") if kind == "orpo" else None) or 0.1
    if kind == "kto":
        sides = {f"{side}_weight": draft.get(f"kto_{side}_weight") or 1.0 for side in ("desirable", "undesirable")}
        return {"name": "kto", "beta": beta, **sides}
    if kind == "orpo":
        draft.differences.append("ORPO's likelihood term: TRL takes prompt and answer, raydpo the answer")
        return {"name": "orpo", "odds_weight": beta}
    if kind == "simpo":
        gamma = draft.get("simpo_gamma") or 0.5
        found = {"name": "simpo", "beta": beta, "gamma_beta_ratio": gamma / beta}
        return with_term(found, "sft", 1.0 if draft.get("cpo_alpha") is None else draft.get("cpo_alpha"))
    kinds = ["ipo"] if kind == "ipo" else list(draft.get("dpo_loss_type") or ["sigmoid"])
    weights = list(draft.get("dpo_loss_weights") or [1.0] * len(kinds))
    more_of = {"label_smoothing": draft.get("dpo_label_smoothing"), "wpo": draft.get("dpo_use_weighting")}
    terms = [pair_objective(str(each), beta, **more_of) for each in kinds]
    return with_term(weighted(terms, weights), "sft", draft.get("rpo_alpha") or 0)


def _adapter(draft: Draft) -> None:
    kind = draft.get("adapter")
    if kind in ("lora", "qlora"):
        draft.same("adapter", "train.lora")
        for name, value in (("lora_r", 8), ("lora_alpha", 16), ("lora_dropout", 0.0)):
            draft.add_default(name, value)
        targets = "" if draft.get("lora_target_linear") else "lora_target_modules"
        adapters.lora(
            draft,
            "lora_r",
            "lora_alpha",
            "lora_dropout",
            targets,
            "lora_modules_to_save",
            "peft_use_rslora",
            "peft_use_dora",
        )
        if draft.get("lora_target_linear"):
            read = [name for name in ("lora_target_linear", "lora_target_modules") if name in draft.options]
            draft.put("train.lora.target_modules", "all-linear", *read)
    elif kind:
        draft.lose("adapter", f"{kind}; there is lora and qlora")
    if kind or draft.get("load_in_4bit") or draft.get("load_in_8bit"):
        adapters.four_bit(draft)
    for name in ("adapter", "lora_target_linear", "lora_target_modules", "load_in_4bit", "load_in_8bit"):
        if name not in draft.fates:
            draft.same(name, "off")
    for name in ("lora_r", "lora_alpha", "lora_dropout", "lora_modules_to_save"):
        if name not in draft.fates and name in draft.options:
            draft.idle(name, "no adapter")


_OF_ROWS = {"path", "split", "type", "name", "ds_type", "data_files", "roles", "message_property_mappings", "revision"}
_OF_ROWS |= {"field_messages", "field_chosen", "field_rejected", "shards"}
_KNOWN_TYPES = re.compile(r"(chat_template|chatml|llama3|zephyr|user_defined)(\.\w+)?\Z")


def _data(draft: Draft) -> None:
    columns: dict[str, str] = {}
    for option, key in (("datasets", "data.train"), ("test_datasets", "data.eval")):
        sets = draft.get(option)
        if sets is None:
            continue
        try:
            entries = [_entry(each, columns) for each in sets]
        except (ValueError, TypeError, AttributeError) as error:
            draft.lose(option, str(error), key)
            continue
        draft.put(key, entries, option)
    if columns:
        draft.put("data.columns", columns, "datasets")
    _templates(draft)
    _special_tokens(draft)
    if draft.get("dataset_exact_deduplication"):
        draft.put("data.deduplicate", "pair", "dataset_exact_deduplication")
    else:
        draft.same("dataset_exact_deduplication", "off")


def _entry(given: dict[str, Any], columns: dict[str, str]) -> Any:
    kind = given.get("type") or "chat_template.default"
    if not isinstance(kind, str) or not _KNOWN_TYPES.match(kind) or kind.startswith("user_defined"):
        raise ValueError(f"type: {kind!r:.60} makes texts of its own")
    if more := sorted(set(given) - _OF_ROWS):
        raise ValueError(f"{', '.join(more)} of a data set")
    mapping = given.get("message_property_mappings") or {}
    if any(name != column for name, column in mapping.items()):
        raise ValueError(f"message_property_mappings: {mapping}")
    if given.get("shards") not in (None, 1):
        raise ValueError("shards of a data set")
    for name, field in (("messages", "field_messages"), ("chosen", "field_chosen"), ("rejected", "field_rejected")):
        if given.get(field) not in (None, name):
            columns["prompt" if name == "messages" else name] = given[field]
    files = given.get("data_files")
    path = str(files if isinstance(files, str) else given["path"])
    return entry(path, given.get("split") or "train", given.get("name"))


def _templates(draft: Draft) -> None:
    model = str(draft.get("base_model", ""))
    kinds = {
        str(each.get("type") or "").partition(".")[0] for each in draft.get("datasets") or [] if isinstance(each, dict)
    }
    forced = sorted(kinds & {"chatml", "llama3", "zephyr"})
    if draft.get("chat_template") is not None and not forced:
        named_template(draft, "chat_template", str(draft.get("chat_template")), model)
    elif forced:
        draft.idle("chat_template", "the type of the data set decides")
        if not draft.is_yours("data.chat_template"):
            named_template(draft, "datasets", forced[0], model)


def _special_tokens(draft: Draft) -> None:
    tokens = {name: token for name, token in (draft.get("special_tokens") or {}).items() if token is not None}
    others = sorted(set(tokens) - {"pad_token", "eos_token", "unk_token"})
    if others:
        draft.lose("special_tokens", f"{', '.join(others)} of a tokenizer", "data.bos")
    elif "eos_token" in tokens:
        draft.put("data.eos", tokens["eos_token"], "special_tokens")
    else:
        draft.same("special_tokens", "the pad token is not trained on")


def _plugins(draft: Draft) -> None:
    others = [
        name
        for name in draft.get("plugins") or []
        if not re.search(r"(Liger|Kernels|CutCrossEntropy)\w*Plugin$", str(name))
    ]
    if others:
        draft.lose("plugins", f"{', '.join(map(str, others))} may change anything")
    else:
        draft.idle("plugins", "speed and memory")
