"""LLaMA-Factory: YAML, JSON or arguments of `stage: dpo` and `stage: kto`.

Comes in: a draft with options. Goes out: the same with lines of ours. Names of data sets are looked up in dataset_info.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raydpo.errors import ConfigError
from raydpo.importing import adapters, training_arguments
from raydpo.importing.data_names import entry
from raydpo.importing.draft import Draft
from raydpo.importing.fates import Only, Row, To, idle, names, number, off, together
from raydpo.importing.losses import pair_objective, with_term
from raydpo.importing.named_templates import named_template
from raydpo.importing.plain_yaml import plain
from raydpo.importing.read_theirs import tree_of

TITLE = "LLaMA-Factory"
DEFAULTS: dict[str, Any] = {
    **training_arguments.DEFAULTS,
    "cutoff_len": 2048,
    "pref_beta": 0.1,
    "pref_loss": "sigmoid",
    "finetuning_type": "lora",
    "output_dir": "saves",
}
_CUT = "longer rows: LLaMA-Factory cuts prompt and answer, raydpo leaves the example out and counts it (data.overlong)"
TABLE: dict[str, Row] = {
    **training_arguments.TABLE,
    "model_name_or_path": To("model.path", str),
    "model_revision": To("model.revision", str),
    "cutoff_len": To("data.max_length", int, _CUT),
    "ref_model": To("reference.model", str),
    "stage": Only(("dpo", "kto"), "a training without preferences"),
    "val_size": To("data.eval_fraction", number),
    **together(
        "pref_beta pref_loss pref_ftx pref_bco_weight dpo_label_smoothing kto_chosen_weight kto_rejected_weight "
        "simpo_gamma ld_alpha "
        "finetuning_type lora_rank lora_alpha lora_dropout lora_target additional_target use_rslora use_dora "
        "quantization_bit "
        "quantization_method quantization_type dataset eval_dataset max_samples template dataset_dir pure_bf16 "
        "enable_thinking"
    ),
    **off("it names another file of options, which is not read; import that file", "config"),
    **off(
        "it changes what is trained",
        "loraplus_lr_ratio pissa_init badam use_galore use_apollo use_adam_mini use_muon freeze_vision",
    ),
    **off(
        "it changes token ids or labels",
        "train_on_prompt mask_history default_system tool_format resize_vocab new_special_tokens",
    ),
    **off("the training starts from an adapter", "adapter_name_or_path ref_model_adapters reward_model"),
    **off("it changes positions or attention", "rope_scaling shift_attn"),
    **off("several pairs in one example", "neat_packing packing", "train.global_batch_pairs"),
    "mix_strategy": Only(("concat",), "how data sets are mixed"),
    "media_dir": Only((None,), "images, video and sound are not read"),
    **idle(
        "speed and memory",
        "preprocessing_batch_size overwrite_cache flash_attn enable_liger_kernel use_unsloth "
        "disable_gradient_checkpointing "
        "upcast_layernorm streaming buffer_size tokenized_path data_shared_file_system cache_dir use_fast_tokenizer "
        "trust_remote_code use_reentrant_gc infer_backend double_quantization hf_hub_token ms_hub_token "
        "image_max_pixels "
        "video_max_pixels ray_run_name ray_storage_path ray_num_workers resources_per_worker placement_strategy "
        "use_ref_model",
    ),
}


def compose(draft: Draft, processes: int | None, trainer: str | None) -> None:
    """What several options decide together."""
    stage = str(draft.get("stage", "dpo"))
    _objective(draft, stage)
    _adapter(draft)
    training_arguments.batch(draft, processes, "per_device_train_batch_size", "gradient_accumulation_steps")
    training_arguments.schedule(draft, training_arguments.length_of_run(draft))
    training_arguments.evaluations(draft)
    training_arguments.precision(draft, "bfloat16" if draft.get("pure_bf16") else "float32", "pure_bf16")
    training_arguments.deepspeed(draft)
    _data(draft)
    if draft.get("template") is not None:
        named_template(draft, "template", str(draft.get("template")), str(draft.get("model_name_or_path", "")))
    if draft.get("enable_thinking") is False:
        draft.put("data.chat_template_kwargs", {"enable_thinking": False}, "enable_thinking")
    else:
        draft.same("enable_thinking")


def _objective(draft: Draft, stage: str) -> None:
    kind, beta = str(draft.get("pref_loss")), draft.get("pref_beta")
    if stage == "kto":
        read = ("pref_beta", "kto_chosen_weight", "kto_rejected_weight", "stage")
        sides = {
            "desirable_weight": draft.get("kto_chosen_weight", 1.0),
            "undesirable_weight": draft.get("kto_rejected_weight", 1.0),
        }
        draft.put(
            "objective", {"name": "kto", "beta": beta, **sides}, *(name for name in read if name in draft.options)
        )
    else:
        of_pairs = ("pref_loss", "pref_beta", "dpo_label_smoothing", "simpo_gamma", "ld_alpha", "pref_ftx", "stage")
        try:
            found = _pairs(draft, kind, beta)
        except ValueError as error:
            draft.lose("pref_loss", str(error), "objective")
        else:
            draft.put("objective", found, *(name for name in of_pairs if name in draft.options))
    if draft.get("pref_bco_weight"):
        draft.lose("pref_bco_weight", "a loss with a running shift beside the first", "objective")
    for name in (*_READ, "pref_bco_weight"):
        if name in draft.options and name not in draft.fates:
            draft.idle(name, "this loss does not read it")


_READ = (
    "pref_loss",
    "pref_beta",
    "dpo_label_smoothing",
    "simpo_gamma",
    "ld_alpha",
    "pref_ftx",
    "kto_chosen_weight",
    "kto_rejected_weight",
)


def _pairs(draft: Draft, kind: str, beta: float) -> dict[str, Any]:
    if kind == "orpo":
        return {"name": "orpo", "odds_weight": beta}
    if kind == "simpo":
        return {"name": "simpo", "beta": beta, "gamma_beta_ratio": draft.get("simpo_gamma", 0.5) / beta}
    smoothing = draft.get("dpo_label_smoothing")
    found = pair_objective(kind, beta, label_smoothing=smoothing, smooths_dpo=True, ld_alpha=draft.get("ld_alpha"))
    return with_term(found, "nll", draft.get("pref_ftx") or 0)


def _adapter(draft: Draft) -> None:
    kind = draft.get("finetuning_type")
    bits = draft.get("quantization_bit")
    if kind == "lora":
        rank = draft.get("lora_rank", 8)
        for name, value in (("lora_rank", 8), ("lora_alpha", 2 * rank), ("lora_dropout", 0.0), ("lora_target", "all")):
            draft.add_default(name, value)
        draft.same("finetuning_type", "train.lora")
        adapters.lora(
            draft,
            "lora_rank",
            "lora_alpha",
            "lora_dropout",
            "lora_target",
            "additional_target",
            "use_rslora",
            "use_dora",
        )
    elif kind == "full":
        for name in ("finetuning_type", "lora_rank", "lora_alpha", "lora_dropout", "lora_target"):
            draft.same(name, "all weights are trained")
    else:
        draft.lose("finetuning_type", f"{kind}; there is full and lora")
        for name in ("lora_rank", "lora_alpha", "lora_dropout", "lora_target"):
            draft.idle(name, "no adapter of LoRA")
    if bits == 4 and str(draft.get("quantization_type", "nf4")) == "nf4":
        draft.put("train.lora.quantize_base", "nf4", "quantization_bit")
    elif bits:
        draft.lose("quantization_bit", f"a base in {bits} bits; there is nf4, in 4", "train.lora.quantize_base")
    for name in ("quantization_bit", "quantization_method", "quantization_type"):
        if name not in draft.fates:
            draft.same(name)


def _data(draft: Draft) -> None:
    info = _dataset_info(draft)
    count = draft.get("max_samples")
    columns: dict[str, str] = {}
    for option, key in (("dataset", "data.train"), ("eval_dataset", "data.eval")):
        if draft.get(option) is None:
            continue
        try:
            entries = [_entry(name, info, count, columns) for name in names(draft.get(option))]
        except ValueError as error:
            draft.lose(option, str(error), key)
            continue
        read = [name for name in (option, "max_samples") if name in draft.options]
        draft.put(key, entries, *read)
    if columns:
        draft.put("data.columns", columns, "dataset")
    draft.idle("dataset_dir", "where dataset_info.json is")
    if "max_samples" not in draft.fates and "max_samples" in draft.options:
        draft.lose("max_samples", "it belongs to the data sets above", "data.train")


def _dataset_info(draft: Draft) -> dict[str, Any]:
    """The nearest dataset_info.json: in dataset_dir, seen from the folder of the file or one above it."""
    file = Path(draft.given.where.rpartition(":")[0]).resolve()
    for folder in list(file.parents)[:6]:
        place = folder / str(draft.get("dataset_dir", "data")) / "dataset_info.json"
        if place.is_file():
            try:
                return {"": str(place.parent), **plain(tree_of(str(place)))}
            except ConfigError:
                return {}
    return {}


_COLUMNS = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected", "system": "system", "messages": "messages"}
_COLUMNS |= {"response": "completion", "kto_tag": "label", "tools": "tools"}


def _entry(name: str, info: dict[str, Any], count: int | None, columns: dict[str, str]) -> Any:
    found = info.get(name)
    if found is None:
        try:
            return entry(name, count=count)
        except ValueError:
            raise ValueError(
                f"{name!r} is a name of dataset_info.json, which is not near the file or has no such name"
            ) from None
    if found.get("columns", {}).get("images"):
        raise ValueError(f"{name!r} has images")
    for theirs, column in found.get("columns", {}).items():
        if theirs in _COLUMNS and _COLUMNS[theirs] != column and found.get("formatting") != "sharegpt":
            columns[_COLUMNS[theirs]] = column
    if found.get("hf_hub_url") and not found.get("file_name"):
        return entry(found["hf_hub_url"], found.get("split", "train"), found.get("subset"), count)
    return entry(f"{info['']}/{found.get('file_name')}", count=count)
