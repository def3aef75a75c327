"""TRL 1.16: arguments of its scripts and configs of its trainers.

Comes in: a draft with options. Goes out: the same with lines of ours. Which trainer it is, the script or --trainer says.
"""

from __future__ import annotations

from typing import Any

from raydpo.importing import adapters, training_arguments
from raydpo.importing.data_names import entry
from raydpo.importing.draft import Draft
from raydpo.importing.fates import Only, Row, To, flag, idle, off, together
from raydpo.importing.losses import pair_objective, weighted, with_term

TITLE = "TRL"
DEFAULTS: dict[str, Any] = {
    **training_arguments.DEFAULTS,
    "learning_rate": 1e-6,
    "gradient_checkpointing": True,
    "max_length": 1024,
    "beta": 0.1,
    "dataset_train_split": "train",
    "dataset_test_split": "test",
}
"""Those that decide numbers and are common to all trainers; tests/importing/test_trl_defaults.py compares them with TRL's."""
LORA_DEFAULTS: dict[str, Any] = {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05}
_CUT = "longer rows: TRL cuts the answer's end, raydpo leaves the example out and counts it (data.overlong)"
TABLE: dict[str, Row] = {
    **training_arguments.TABLE,
    "model_name_or_path": To("model.path", str),
    "model_revision": To("model.revision", str),
    "max_length": To("data.max_length", int, _CUT),
    "truncation_mode": Only(("keep_start",), "which end is cut", "data.overlong"),
    "router_aux_loss_coef": To("train.router_aux_loss", float),
    "disable_dropout": Only((True,), "dropout of the model is off here"),
    **together(
        "loss_type loss_weights beta label_smoothing ld_alpha f_divergence_type f_alpha_divergence_coef "
        "use_weighting discopop_tau "
        "desirable_weight undesirable_weight cpo_alpha simpo_gamma alpha sync_ref_model ref_model_mixup_alpha "
        "ref_model_sync_steps use_peft lora_r lora_alpha lora_dropout lora_target_modules lora_modules_to_save "
        "use_rslora use_dora "
        "load_in_4bit load_in_8bit bnb_4bit_quant_type dataset_name dataset_config dataset_train_split "
        "dataset_test_split dtype "
        "torch_dtype rpo_alpha"
    ),
    **off("it names another file of options, which is not read; import that file", "config"),
    **off("experts adapted by name", "lora_target_parameters", "train.lora.experts"),
    **off("the loss has no such term", "reference_free generate_during_eval", ""),
    **off("rows are cut before the whole is", "max_completion_length", "data.overlong"),
    **off("prompts are cut by themselves", "max_prompt_length", "data.overlong"),
    **off("it weights examples by the density of their prompts", "embedding_func"),
    "train_sampling_strategy": Only(("random", "sequential"), "the order of examples"),
    **idle(
        "speed and memory",
        "padding_free pad_to_multiple_of padding_value precompute_ref_log_probs precompute_ref_batch_size "
        "activation_offloading "
        "use_logits_to_keep dataset_streaming ignore_bias_buffers lora_task_type use_bnb_nested_quant "
        "bnb_4bit_quant_storage "
        "is_encoder_decoder prompt_sample_size min_density_ratio max_density_ratio",
    ),
    **idle("code from the hub is never run; a model that needs it is refused", "trust_remote_code"),
    "pad_token": Only((None,), "the pad token; rows are packed here"),
}


def compose(draft: Draft, processes: int | None, trainer: str | None) -> None:
    """What several options decide together."""
    kind = trainer or trainer_of(draft)
    _objective(draft, kind)
    _reference(draft)
    if flag(draft.get("use_peft", False)):
        _adapter(draft)
    else:
        for name in (
            *LORA_DEFAULTS,
            "use_peft",
            "lora_target_modules",
            "lora_modules_to_save",
            "use_rslora",
            "use_dora",
        ):
            draft.idle(name, "no adapter: use_peft is not set")
        adapters.four_bit(draft, "bnb_4bit_quant_type")
    training_arguments.batch(draft, processes, "per_device_train_batch_size", "gradient_accumulation_steps")
    steps = training_arguments.length_of_run(draft)
    training_arguments.schedule(draft, steps)
    has_eval = training_arguments.evaluations(draft)
    dtype = str(draft.get("dtype", draft.get("torch_dtype", "float32")))
    training_arguments.precision(
        draft, "bfloat16", *(name for name in ("dtype", "torch_dtype") if name in draft.options)
    )
    if dtype in ("bfloat16", "torch.bfloat16"):
        draft.differences.append("weights in bfloat16 are updated in bfloat16 there, by a float32 copy here")
    training_arguments.deepspeed(draft)
    _data(draft, has_eval)


def trainer_of(draft: Draft) -> str:
    """dpo, kto, orpo, cpo or bco."""
    for word in draft.given.program.replace("/", " ").replace(".", " ").split()[::-1]:
        if word in ("dpo", "kto", "orpo", "cpo", "bco"):
            return word
    if draft.has("cpo_alpha") or draft.has("simpo_gamma"):
        return "cpo"
    if draft.has("desirable_weight") or draft.has("undesirable_weight"):
        return "kto"
    draft.differences.append("the file does not say which trainer it is for: DPO is assumed; --trainer says another")
    return "dpo"


_READ = {
    "dpo": "loss_type loss_weights beta label_smoothing ld_alpha f_divergence_type f_alpha_divergence_coef "
    "use_weighting discopop_tau rpo_alpha",
    "kto": "loss_type beta desirable_weight undesirable_weight",
    "bco": "beta",
    "orpo": "beta",
    "cpo": "loss_type beta label_smoothing cpo_alpha simpo_gamma alpha",
}
_MAKE = {}


def _objective(draft: Draft, kind: str) -> None:
    read = [name for name in _READ[kind].split() if name in draft.options]
    try:
        objective = _MAKE[kind](draft)
    except ValueError as error:
        for name in read:
            draft.lose(name, str(error), "objective")
        if not read:
            draft.note("objective", {"name": "dpo"}, str(error))
        objective = {"name": "dpo"}
    else:
        draft.put("objective", objective, *read)
    for names in _READ.values():
        for name in names.split():
            if name in draft.options and name not in draft.fates:
                draft.idle(name, f"the {kind.upper()} trainer does not read it")


def _dpo(draft: Draft) -> dict[str, Any]:
    kinds = draft.get("loss_type", "sigmoid")
    kinds = list(kinds) if isinstance(kinds, list | tuple) else [kinds]
    weights = draft.get("loss_weights") or [1.0] * len(kinds)
    weights = list(weights) if isinstance(weights, list | tuple) else [weights]
    more = {
        "label_smoothing": draft.get("label_smoothing"),
        "ld_alpha": draft.get("ld_alpha"),
        "wpo": draft.get("use_weighting"),
        "tau": draft.get("discopop_tau", 0.05),
        "divergence": draft.get("f_divergence_type"),
        "divergence_alpha": draft.get("f_alpha_divergence_coef", 0.5),
    }
    if len(weights) != len(kinds):
        raise ValueError(f"{len(weights)} weights of {len(kinds)} losses")
    terms = [pair_objective(str(kind), draft.get("beta"), **more) for kind in kinds]
    return with_term(weighted(terms, weights), "sft", draft.get("rpo_alpha") or 0)


def _kto(draft: Draft) -> dict[str, Any]:
    beta = draft.get("beta")
    if draft.get("loss_type", "kto") == "apo_zero_unpaired":
        return {"name": "apo_zero_unpaired", "beta": beta}
    if draft.get("loss_type", "kto") != "kto":
        raise ValueError(f"the loss {draft.get('loss_type')} of KTO")
    sides = {f"{side}_weight": draft.get(f"{side}_weight", 1.0) for side in ("desirable", "undesirable")}
    return {"name": "kto", "beta": beta, **sides}


def _bco(draft: Draft) -> dict[str, Any]:
    if draft.given.program.endswith("bco.py"):
        draft.add_default("embedding_func", "of TRL's script")
    draft.differences.append(
        "BCO's shift: TRL takes a running mean of the rewards, raydpo the middle of the global batch"
    )
    return {"name": "bco", "beta": draft.get("beta")}


def _orpo(draft: Draft) -> dict[str, Any]:
    draft.differences.append("ORPO's likelihood term: TRL takes prompt and answer, raydpo the answer")
    return {"name": "orpo", "odds_weight": draft.get("beta")}


def _cpo(draft: Draft) -> dict[str, Any]:
    kind, beta = str(draft.get("loss_type", "sigmoid")), draft.get("beta")
    bend, smoothing = draft.get("alpha", 0.0), draft.get("label_smoothing", 0.0)
    if smoothing:
        raise ValueError("label_smoothing of CPO")
    if kind == "simpo":
        ratio = draft.get("simpo_gamma", 0.5) / beta
        found: dict[str, Any] = {"name": "simpo", "beta": beta, "gamma_beta_ratio": ratio}
        found = {**found, "name": "alphapo", "alpha": bend} if bend else found
    elif kind == "hinge" and not bend:
        found = {"name": "slic", "delta": 1.0 / beta, "weight": beta, "nll_weight": 0.0}
    elif kind == "sigmoid" and not bend:
        found = {"name": "cpo", "beta": beta, "nll_weight": 0.0}
    else:
        raise ValueError(f"the loss {kind} of CPO{f' with alpha {bend}' if bend else ''}")
    return with_term(found, "sft", draft.get("cpo_alpha", 1.0))


_MAKE.update({"dpo": _dpo, "kto": _kto, "bco": _bco, "orpo": _orpo, "cpo": _cpo})


def _reference(draft: Draft) -> None:
    names = ("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps")
    if draft.get("sync_ref_model"):
        draft.put(
            "reference.sync_every", draft.get("ref_model_sync_steps", 512), "sync_ref_model", "ref_model_sync_steps"
        )
        draft.put("reference.sync_alpha", draft.get("ref_model_mixup_alpha", 0.6), "ref_model_mixup_alpha")
    for name in names:
        if name not in draft.fates:
            draft.idle(name, "the reference stays where it is")


def _adapter(draft: Draft) -> None:
    for name, value in LORA_DEFAULTS.items():
        draft.add_default(name, value)
    draft.same("use_peft", "train.lora")
    adapters.lora(
        draft,
        "lora_r",
        "lora_alpha",
        "lora_dropout",
        "lora_target_modules",
        "lora_modules_to_save",
        "use_rslora",
        "use_dora",
    )
    adapters.four_bit(draft, "bnb_4bit_quant_type")


def _data(draft: Draft, has_eval: bool) -> None:
    name, config = draft.get("dataset_name"), draft.get("dataset_config")
    if name is None:
        return
    read = [each for each in ("dataset_name", "dataset_config") if each in draft.options]
    try:
        train = entry(str(name), draft.get("dataset_train_split"), config)
        held = entry(str(name), draft.get("dataset_test_split"), config)
    except ValueError as error:
        draft.lose("dataset_name", str(error), "data.train")
        return
    draft.put("data.train", [train], *read, "dataset_train_split")
    if has_eval:
        draft.put("data.eval", [held], *read, "dataset_test_split")
    else:
        draft.idle("dataset_test_split", "no evaluation during training")
