"""OpenRLHF: arguments of openrlhf.cli.train_dpo, with dots (--model.beta) or as they were before them (--beta).

Comes in: a draft with options. Goes out: the same with lines of ours.
"""

from __future__ import annotations

from typing import Any

from raydpo.importing import training_arguments
from raydpo.importing.data_names import entry
from raydpo.importing.draft import Draft
from raydpo.importing.fates import Only, Row, To, flag, idle, names, number, off, together
from raydpo.importing.losses import with_term

TITLE = "OpenRLHF"
DEFAULTS: dict[str, Any] = {
    "train.batch_size": 128,
    "train.seed": 42,
    "train.max_epochs": 1,
    "model.beta": 0.1,
    "model.label_smoothing": 0.0,
    "adam.lr": 1e-5,
    "adam.betas": [0.9, 0.95],
    "adam.weight_decay": 0.0,
    "lr_scheduler": "cosine_with_min_lr",
    "lr_warmup_ratio": 0.03,
    "min_lr_ratio": 0.1,
    "max_norm": 1.0,
    "ds.param_dtype": "bf16",
    "ds.zero_stage": 2,
    "ds.lora.rank": 0,
    "data.max_len": 512,
    "data.dataset_split": "train",
    "eval.split": "test",
    "ckpt.output_dir": "./ckpt",
}
_CUT = "longer rows: OpenRLHF leaves out prompts and cuts answers, raydpo leaves the example out and counts it (data.overlong)"
TABLE: dict[str, Row] = {
    "model.model_name_or_path": To("model.path", str),
    "ref.model_name_or_path": To("reference.model", str),
    "train.batch_size": To("train.global_batch_pairs", int),
    "train.seed": To("run.seed", int),
    "train.max_epochs": To("train.epochs", number),
    "adam.lr": To("train.learning_rate", number),
    "adam.weight_decay": To("train.weight_decay", number),
    "adam.eps": Only((1e-8,), "AdamW's epsilon is 1e-8 here"),
    "optim": Only(("adam",), "the optimizer here is AdamW"),
    "max_norm": To("train.max_grad_norm", number),
    "lr_warmup_ratio": To("train.warmup_fraction", number),
    "ds.zero_stage": To("train.zero_stage", int),
    "ds.adam_offload": To("train.offload_optimizer", flag),
    "model.gradient_checkpointing_enable": To("train.gradient_checkpointing", flag),
    "model.aux_loss_coef": To("train.router_aux_loss", float),
    "data.max_len": To("data.max_length", int, _CUT),
    "ckpt.output_dir": To("run.dir", str),
    "data.tokenizer_chat_template": Only((None,), "a template as text", "data.chat_template"),
    **together(
        "model.beta model.ipo_enable model.label_smoothing model.nll_loss_coef adam.betas lr_scheduler min_lr_ratio "
        "ds.param_dtype "
        "ds.load_in_4bit ds.lora.rank ds.lora.alpha ds.lora.dropout ds.lora.target_modules data.dataset "
        "data.dataset_probs "
        "data.dataset_split data.max_samples data.prompt_key data.chosen_key data.rejected_key "
        "data.apply_chat_template "
        "eval.dataset eval.split eval.steps ckpt.save_steps ckpt.max_num logger.logging_steps"
    ),
    **off("it names another file of options, which is not read; import that file", "config"),
    **off("texts are made by a pattern", "data.input_template", "data.chat_template"),
    **idle(
        "speed, memory and files",
        "train.micro_batch_size train.full_determinism_enable ref.offload ds.zpg ds.attn_implementation "
        "ds.experts_implementation "
        "ds.use_liger_kernel ds.overlap_comm ds.deepcompile ds.tensor_parallel_size ds.ring_attn_size "
        "ds.ring_attn_head_stride "
        "ds.packing_samples ds.use_universal_ckpt model.gradient_checkpointing_reentrant data.disable_fast_tokenizer "
        "data.dataloader_num_workers local_rank use_ms ds.grad_accum_dtype",
    ),
    **idle("saving", "ckpt.save_hf ckpt.disable_ds ckpt.path ckpt.max_mem ckpt.load_enable ckpt.best_metric_key"),
    **idle(
        "logging",
        "logger.wandb.key logger.wandb.org logger.wandb.group logger.wandb.project logger.wandb.run_name "
        "logger.tensorboard_dir",
    ),
    **idle("of Muon", "muon.lr muon.momentum muon.ns_steps muon.nesterov"),
}
OLD = {
    "pretrain": "model.model_name_or_path",
    "ref_pretrain": "ref.model_name_or_path",
    "train_batch_size": "train.batch_size",
    "micro_train_batch_size": "train.micro_batch_size",
    "seed": "train.seed",
    "max_epochs": "train.max_epochs",
    "beta": "model.beta",
    "ipo": "model.ipo_enable",
    "label_smoothing": "model.label_smoothing",
    "nll_loss_coef": "model.nll_loss_coef",
    "aux_loss_coef": "model.aux_loss_coef",
    "learning_rate": "adam.lr",
    "adam_betas": "adam.betas",
    "l2": "adam.weight_decay",
    "zero_stage": "ds.zero_stage",
    "adam_offload": "ds.adam_offload",
    "gradient_checkpointing": "model.gradient_checkpointing_enable",
    "max_len": "data.max_len",
    "save_path": "ckpt.output_dir",
    "dataset": "data.dataset",
    "dataset_probs": "data.dataset_probs",
    "dataset_split": "data.dataset_split",
    "max_samples": "data.max_samples",
    "prompt_key": "data.prompt_key",
    "chosen_key": "data.chosen_key",
    "rejected_key": "data.rejected_key",
    "apply_chat_template": "data.apply_chat_template",
    "input_template": "data.input_template",
    "eval_dataset": "eval.dataset",
    "eval_split": "eval.split",
    "eval_steps": "eval.steps",
    "save_steps": "ckpt.save_steps",
    "logging_steps": "logger.logging_steps",
    "load_in_4bit": "ds.load_in_4bit",
    "lora_rank": "ds.lora.rank",
    "lora_alpha": "ds.lora.alpha",
    "lora_dropout": "ds.lora.dropout",
    "target_modules": "ds.lora.target_modules",
    "packing_samples": "ds.packing_samples",
    "ref_offload": "ref.offload",
    "load_checkpoint": "ckpt.load_enable",
    "use_wandb": "logger.wandb.key",
    "attn_implementation": "ds.attn_implementation",
    "use_liger_kernel": "ds.use_liger_kernel",
    "ring_attn_size": "ds.ring_attn_size",
    "ring_head_stride": "ds.ring_attn_head_stride",
    "zpg": "ds.zpg",
    "overlap_comm": "ds.overlap_comm",
}
"""Names before 0.11 -> with dots."""


def compose(draft: Draft, processes: int | None, trainer: str | None) -> None:
    """What several options decide together."""
    for old, new in OLD.items():
        if old in draft.given.options:
            draft.rename(old, new)
    if draft.has("bf16"):
        draft.same("bf16", "model.dtype")
    if draft.has("flash_attn"):
        draft.idle("flash_attn", "speed")
    _objective(draft)
    betas = draft.get("adam.betas")
    if isinstance(betas, list) and len(betas) == 2:
        draft.put("train.adam_beta1", betas[0], "adam.betas")
        draft.put("train.adam_beta2", betas[1], "adam.betas")
    kind, floor = str(draft.get("lr_scheduler")), draft.get("min_lr_ratio")
    is_floored = kind == "cosine_with_min_lr"
    training_arguments.put_schedule(draft, kind, floor if is_floored else None, "lr_scheduler", "min_lr_ratio")
    if draft.get("ds.param_dtype") == "bf16":
        draft.put("model.dtype", "bfloat16", "ds.param_dtype")
    else:
        draft.lose("ds.param_dtype", "float16 needs a loss scale, and there is none here", "model.dtype")
    _adapter(draft)
    _data(draft)
    for name, key in (
        ("eval.steps", "eval_every"),
        ("ckpt.save_steps", "save_every"),
        ("logger.logging_steps", "log_every"),
    ):
        value = draft.get(name)
        if isinstance(value, int) and value > 0 and (name != "eval.steps" or draft.get("eval.dataset")):
            draft.put(f"train.{key}", value, name)
        else:
            draft.idle(name, "at the end alone")
    draft.idle("ckpt.max_num", "saving")


def _objective(draft: Draft) -> None:
    beta, smoothing, is_ipo = draft.get("model.beta"), draft.get("model.label_smoothing"), draft.get("model.ipo_enable")
    read = [f"model.{name}" for name in ("beta", "ipo_enable", "label_smoothing", "nll_loss_coef")]
    found: dict[str, Any] = {"name": "ipo" if is_ipo else "dpo", "beta": beta}
    if smoothing and not is_ipo:
        found["label_smoothing"] = smoothing
    draft.put(
        "objective",
        with_term(found, "nll", draft.get("model.nll_loss_coef") or 0),
        *(n for n in read if n in draft.options),
    )


def _adapter(draft: Draft) -> None:
    rest = ("ds.lora.alpha", "ds.lora.dropout", "ds.lora.target_modules", "ds.load_in_4bit")
    if not draft.get("ds.lora.rank"):
        for name in ("ds.lora.rank", *rest[:3]):
            draft.same(name, "no adapter")
        if draft.get("ds.load_in_4bit"):
            draft.lose("ds.load_in_4bit", "4 bits without an adapter", "train.lora.quantize_base")
        draft.same("ds.load_in_4bit")
        return
    draft.add_default("ds.lora.alpha", 16)
    draft.put("train.lora.rank", draft.get("ds.lora.rank"), "ds.lora.rank")
    draft.put("train.lora.alpha", draft.get("ds.lora.alpha"), "ds.lora.alpha")
    if draft.get("ds.lora.dropout"):
        draft.lose(
            "ds.lora.dropout", "an adapter has no dropout here: policy and reference are compared token by token"
        )
    targets = names(draft.get("ds.lora.target_modules", "all-linear"))
    draft.put(
        "train.lora.target_modules", targets[0] if targets == ["all-linear"] else targets, "ds.lora.target_modules"
    )
    if draft.get("ds.load_in_4bit"):
        draft.put("train.lora.quantize_base", "nf4", "ds.load_in_4bit")
    for name in rest:
        if name not in draft.fates:
            draft.same(name, "as here")


def _data(draft: Draft) -> None:
    count = draft.get("data.max_samples")
    for option, split, key in (
        ("data.dataset", "data.dataset_split", "data.train"),
        ("eval.dataset", "eval.split", "data.eval"),
    ):
        if draft.get(option) is None:
            draft.same(split, "no such data")
            continue
        try:
            found = names(draft.get(option))
            if count is not None and (len(found) > 1 or key == "data.eval"):
                raise ValueError("max_samples of several data sets together")
            entries = [entry(name.partition("@")[0], draft.get(split), count=count) for name in found]
        except ValueError as error:
            draft.lose(option, str(error), key)
            continue
        draft.put(key, entries, option, split, *(["data.max_samples"] if count is not None else []))
    if draft.get("data.dataset_probs"):
        draft.lose("data.dataset_probs", "shares by which rows are drawn", "data.train")
    draft.same("data.dataset_probs", "off")
    columns = {}
    for meaning, default in (("prompt", None), ("chosen", "chosen"), ("rejected", "rejected")):
        column = draft.get(f"data.{meaning}_key")
        if column not in (None, default, meaning):
            columns[meaning] = column
        elif f"data.{meaning}_key" in draft.options:
            draft.same(f"data.{meaning}_key", "the column's name as it is")
    if columns:
        draft.put("data.columns", columns, *(f"data.{meaning}_key" for meaning in columns))
    if draft.get("data.apply_chat_template"):
        draft.same("data.apply_chat_template", "rows of messages go through the template")
    else:
        draft.same("data.apply_chat_template", "off")
        draft.differences.append(
            "without apply_chat_template OpenRLHF joins texts; here rows of messages go through the template"
        )
