"""ms-swift: `swift rlhf` and `megatron rlhf` with --rlhf_type dpo, kto, orpo, cpo or simpo.

Comes in: a draft with options. Goes out: the same with lines of ours. Decision: ids of ModelScope are read from the
hub of Hugging
Face under the same name, which is said.
"""

from __future__ import annotations

import math
from typing import Any

from raydpo.importing import adapters, megatron_arguments, training_arguments
from raydpo.importing.data_names import entry
from raydpo.importing.draft import Draft
from raydpo.importing.fates import Only, Row, To, idle, names, number, off, together
from raydpo.importing.losses import pair_objective, weighted, with_term
from raydpo.importing.named_templates import named_template

TITLE = "ms-swift"
DEFAULTS: dict[str, Any] = {"rlhf_type": "dpo", "seed": 42, "output_dir": "output"}
_PLAIN: dict[str, Any] = {
    **training_arguments.DEFAULTS,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": None,
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
    "lr_scheduler_type": "cosine",
    "tuner_type": "lora",
    "gradient_checkpointing": True,
    "learning_rate": None,
}
_CUT = "longer rows: ms-swift goes by truncation_strategy, raydpo leaves the example out and counts it (data.overlong)"
_BATCH = "packing makes one example of several pairs, so that the batch in pairs is not in the file"
TABLE: dict[str, Row] = {
    **training_arguments.TABLE,
    **megatron_arguments.TABLE,
    "model": To("model.path", str),
    "model_revision": To("model.revision", str),
    "ref_model": To("reference.model", str),
    "max_length": To("data.max_length", int, _CUT),
    "truncation_strategy": Only((None, "delete"), "what becomes of longer rows", "data.overlong"),
    "split_dataset_ratio": To("data.eval_fraction", number),
    "packing": Only((None, False), _BATCH, "train.global_batch_pairs"),
    "router_aux_loss_coef": To("train.router_aux_loss", float),
    **together(
        "rlhf_type loss_type loss_weights beta label_smoothing rpo_alpha ld_alpha cpo_alpha simpo_gamma discopop_tau "
        "f_divergence_type "
        "desirable_weight undesirable_weight tuner_type train_type lora_rank lora_alpha lora_dropout target_modules "
        "modules_to_save "
        "use_rslora use_dora quant_bits quant_method dataset val_dataset torch_dtype template sequence_parallel_size "
        "bnb_4bit_quant_type enable_thinking learning_rate_of_swift"
    ),
    **off(
        "it changes what is trained",
        "freeze_llm freeze_parameters freeze_parameters_ratio trainable_parameters adapters lora_bias",
    ),
    **off("images are not read", "cached_dataset cached_val_dataset max_pixels"),
    **off("it changes the loss", "reference_free enable_dft_loss loss_scale lorap_lr_ratio use_galore"),
    **off(
        "it changes token ids",
        "system new_special_tokens agent_template response_prefix custom_register_path rope_scaling",
    ),
    **off("rows are mixed by chance", "interleave_prob"),
    "freeze_vit": Only((None, False), "towers of images are not trained here", "model.path"),
    "freeze_aligner": Only((None, False), "towers of images are not trained here", "model.path"),
    "group_by_length": Only((None, False), "the order of examples", "run.seed"),
    "dataset_shuffle": Only((None, True), "the order of examples"),
    "train_dataloader_shuffle": Only((None, True), "the order of examples"),
    **idle(
        "speed, memory and files",
        "load_from_cache_file attn_impl padding_free streaming lazy_tokenize packing_num_proc use_hf check_model "
        "data_seed strict "
        "download_mode max_model_len deepspeed_autotp_size zero_hpz_partition_size use_logits_to_keep add_version "
        "load_args "
        "ignore_args_error max_shard_size use_liger_kernel external_plugins logging_steps_of_swift device_map "
        "merge_lora "
        "max_completion_length model_type use_chat_template_of_eval swanlab_project swanlab_exp_name wandb_project "
        "wandb_exp_name "
        "model_author model_name vit_gradient_checkpointing",
    ),
}


def compose(draft: Draft, processes: int | None, trainer: str | None) -> None:
    """What several options decide together."""
    is_megatron = draft.given.program.startswith("megatron")
    for name, value in (megatron_arguments.DEFAULTS if is_megatron else _PLAIN).items():
        draft.add_default(name, value)
    kind = trainer or str(draft.get("rlhf_type"))
    _objective(draft, kind)
    _adapter(draft)
    if is_megatron:
        megatron_arguments.compose(draft)
    else:
        _plain(draft, processes)
    _data(draft)
    if draft.get("template") is not None:
        named_template(draft, "template", str(draft.get("template")), str(draft.get("model", "")))
    for name in ("enable_thinking", "quant_method", "bnb_4bit_quant_type"):
        if name not in draft.fates:
            draft.same(name)


def _plain(draft: Draft, processes: int | None) -> None:
    shared = draft.get("sequence_parallel_size", 1)
    if draft.get("gradient_accumulation_steps") is None:
        world = processes or draft.given.num_processes or 1
        steps = max(1, math.ceil(16 / draft.get("per_device_train_batch_size") / world))
        draft.options.pop("gradient_accumulation_steps", None)
        draft.add_default("gradient_accumulation_steps", steps)
    if draft.get("learning_rate") is None:
        draft.options.pop("learning_rate", None)
        draft.add_default("learning_rate", 1e-5 if draft.get("tuner_type") == "full" else 1e-4)
    training_arguments.batch(draft, processes, "per_device_train_batch_size", "gradient_accumulation_steps", shared)
    draft.idle("sequence_parallel_size", "ranks that share a sequence; the batch counts them once")
    training_arguments.schedule(draft, training_arguments.length_of_run(draft))
    if draft.get("eval_steps") is not None:
        draft.add_default("eval_strategy", "steps")
    training_arguments.evaluations(draft)
    training_arguments.precision(draft, _dtype(draft), "torch_dtype")
    training_arguments.deepspeed(draft)


def _dtype(draft: Draft) -> str:
    return "float32" if draft.get("torch_dtype") == "float32" else "bfloat16"


_READ = {
    "dpo": "loss_type loss_weights beta label_smoothing rpo_alpha ld_alpha discopop_tau f_divergence_type",
    "kto": "loss_type beta desirable_weight undesirable_weight",
    "orpo": "beta",
    "cpo": "loss_type beta cpo_alpha",
    "simpo": "beta simpo_gamma cpo_alpha",
}


def _objective(draft: Draft, kind: str) -> None:
    if kind not in _READ:
        draft.lose("rlhf_type", f"{kind}; preference trainings are {', '.join(_READ)}", "objective")
        return
    draft.add_default("beta", 2.0 if kind == "simpo" else 0.1)
    try:
        found = _section(draft, kind)
    except ValueError as error:
        draft.lose("rlhf_type", str(error), "objective")
    else:
        draft.put("objective", found, "rlhf_type", *(name for name in _READ[kind].split() if name in draft.options))
    for name in {each for names_of in _READ.values() for each in names_of.split()}:
        if name in draft.options and name not in draft.fates:
            draft.idle(name, f"{kind} does not read it")


def _section(draft: Draft, kind: str) -> dict[str, Any]:
    beta = draft.get("beta")
    if kind == "kto":
        sides = {f"{side}_weight": draft.get(f"{side}_weight", 1.0) for side in ("desirable", "undesirable")}
        return {"name": "kto", "beta": beta, **sides}
    if kind == "orpo":
        draft.differences.append("ORPO's likelihood term: TRL takes prompt and answer, raydpo the answer")
        return {"name": "orpo", "odds_weight": beta}
    if kind == "simpo":
        found: dict[str, Any] = {"name": "simpo", "beta": beta, "gamma_beta_ratio": draft.get("simpo_gamma", 1) / beta}
        return with_term(found, "sft", draft.get("cpo_alpha", 1.0))
    if kind == "cpo":
        if draft.get("loss_type", "sigmoid") != "sigmoid":
            raise ValueError(f"the loss {draft.get('loss_type')} of CPO")
        return with_term({"name": "cpo", "beta": beta, "nll_weight": 0.0}, "sft", draft.get("cpo_alpha", 1.0))
    kinds = draft.get("loss_type", "sigmoid")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    weights = draft.get("loss_weights") or [1.0] * len(kinds)
    weights = weights if isinstance(weights, list) else [weights]
    more = {
        "label_smoothing": draft.get("label_smoothing"),
        "ld_alpha": draft.get("ld_alpha"),
        "tau": draft.get("discopop_tau", 0.05),
        "divergence": draft.get("f_divergence_type"),
        "smooths_dpo": True,
    }
    terms = [pair_objective(str(each), beta, **more) for each in kinds]
    if draft.get("rpo_alpha"):
        draft.differences.append(
            "the likelihood term: ms-swift takes the mean over tokens of a micro-batch, raydpo of the global batch"
        )
    return with_term(weighted(terms, weights), "sft", draft.get("rpo_alpha") or 0)


def _adapter(draft: Draft) -> None:
    option = "train_type" if "train_type" in draft.options else "tuner_type"
    kind, bits = draft.get(option), draft.get("quant_bits")
    if kind == "lora":
        for name, value in (
            ("lora_rank", 8),
            ("lora_alpha", 32),
            ("lora_dropout", 0.05),
            ("target_modules", "all-linear"),
        ):
            draft.add_default(name, value)
        draft.same(option, "train.lora")
        adapters.lora(
            draft,
            "lora_rank",
            "lora_alpha",
            "lora_dropout",
            "target_modules",
            "modules_to_save",
            "use_rslora",
            "use_dora",
        )
    elif kind == "full":
        for name in (
            option,
            "lora_rank",
            "lora_alpha",
            "lora_dropout",
            "target_modules",
            "modules_to_save",
            "use_rslora",
            "use_dora",
        ):
            draft.same(name, "all weights are trained")
    else:
        draft.lose(option, f"{kind}; there is full and lora")
    if bits == 4 and draft.get("quant_method") == "bnb":
        draft.put("train.lora.quantize_base", "nf4", "quant_bits", "quant_method")
    elif bits:
        draft.lose(
            "quant_bits",
            f"a base in {bits} bits by {draft.get('quant_method')}; there is nf4",
            "train.lora.quantize_base",
        )
    draft.same("quant_bits")
    draft.same("tuner_type")


def _data(draft: Draft) -> None:
    for option, key in (("dataset", "data.train"), ("val_dataset", "data.eval")):
        if draft.get(option) is None:
            continue
        value = draft.get(option)
        try:
            entries = [_entry(name) for name in names(value)]
        except ValueError as error:
            draft.lose(option, str(error), key)
            continue
        draft.put(
            key, entries, option, differs="ids of ModelScope are read from the hub of Hugging Face under the same name"
        )


def _entry(text: str) -> Any:
    path, _, count = text.partition("#")
    path = path.removeprefix("HF::").removeprefix("MS::")
    name, _, config = path.partition(":") if not path.startswith(("/", ".")) else (path, "", "")
    if count and not count.isdecimal():
        raise ValueError(f"{text!r}: {count!r} is no count")
    if "/" in config:
        raise ValueError(f"{text!r} names several parts")
    return entry(name, "train", config or None, int(count) if count else None)
