"""NeMo-RL: the YAML of run_dpo.py, with `defaults:` files and ${...} put in.

Comes in: a draft whose options have dotted names. Goes out: the same with lines of ours.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from raydpo.errors import ConfigError
from raydpo.importing import training_arguments
from raydpo.importing.data_names import entry
from raydpo.importing.draft import Draft
from raydpo.importing.fates import Only, Row, To, flag, idle, number, off, together
from raydpo.importing.given_options import GivenOption, GivenOptions
from raydpo.importing.losses import with_term
from raydpo.importing.plain_yaml import ThereLeaf, Tree
from raydpo.importing.read_theirs import tree_of

TITLE = "NeMo-RL"
DEFAULTS: dict[str, Any] = {}
_MOST_FILES = 16
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_IDLE = (
    "cluster.",
    "logger.",
    "checkpointing.",
    "policy.dtensor_cfg.",
    "policy.megatron_cfg.",
    "policy.dynamic_batching.",
    "policy.sequence_packing.",
    "policy.optimizer.kwargs.foreach",
    "policy.optimizer.kwargs.fused",
    "policy.draft.",
    "data.default.",
)
"""Beginnings of names that change no number, where no row says otherwise."""
_CUT = "longer rows: NeMo-RL takes them out of the loss, raydpo leaves the example out and counts it (data.overlong)"
_SHORTER = "warm-up here is a share of all steps: where dpo.max_num_epochs ends before dpo.max_num_steps, it is shorter"
TABLE: dict[str, Row] = {
    "policy.model_name": To("model.path", str),
    "policy.train_global_batch_size": To("train.global_batch_pairs", int),
    "policy.max_total_sequence_length": To("data.max_length", int, _CUT),
    "policy.max_grad_norm": To("train.max_grad_norm", number),
    "dpo.seed": To("run.seed", int),
    "checkpointing.checkpoint_dir": To("run.dir", str),
    "checkpointing.keep_top_k": To("train.keep_checkpoints", int),
    "checkpointing.save_period": To("train.save_every", int),
    "data.shuffle": Only((True,), "the order of examples", "run.seed"),
    "policy.hf_config_overrides.router_aux_loss_coef": To("train.router_aux_loss", float),
    "policy.dtensor_cfg.lora_cfg.enabled": Only((None, False), "an adapter drawn another way", "train.lora"),
    "policy.megatron_cfg.peft.enabled": Only((None, False), "an adapter drawn another way", "train.lora"),
    **together(
        "dpo.reference_policy_kl_penalty dpo.preference_average_log_probs dpo.sft_average_log_probs "
        "dpo.preference_loss_weight "
        "dpo.sft_loss_weight dpo.max_num_epochs dpo.max_num_steps dpo.val_period policy.precision "
        "policy.tokenizer.name "
        "policy.tokenizer.chat_template policy.tokenizer.chat_template_kwargs policy.optimizer policy.scheduler"
    ),
    **off("another loss", "dpo.preference_loss dpo.gt_reward_scale", "objective"),
    **idle(
        "speed, memory and evaluation",
        "dpo.val_batches dpo.val_global_batch_size dpo.val_micro_batch_size dpo.val_at_start dpo.val_at_end "
        "policy.train_micro_batch_size policy.logprob_batch_size policy.offload_optimizer_for_logprob data.num_workers "
        "policy.make_sequence_length_divisible_by data.max_input_seq_length defaults policy.tokenizer.use_processor",
    ),
}


def unfold(given: GivenOptions) -> GivenOptions:
    """Options under dotted names, of the file and of those it begins from. ConfigError for a loop or a missing file."""
    if given.program:
        return given
    leaves = _with_defaults(given.where.rpartition(":")[0], [])
    found = {
        name: GivenOption(name, _resolved(name, leaf.value, leaves, 0), where) for name, (leaf, where) in leaves.items()
    }
    return GivenOptions(found, given.where)


Leaves = dict[str, tuple[ThereLeaf, str]]


def _with_defaults(path: str, above: list[str]) -> Leaves:
    if path in above or len(above) >= _MOST_FILES:
        raise ConfigError(f"{path}: defaults lead in a circle: {' -> '.join([*above, path])}. Nothing was imported.")
    tree = tree_of(path)
    base = tree.pop("defaults", None)
    found: Leaves = {}
    if isinstance(base, ThereLeaf) and base.value:
        for name in base.value if isinstance(base.value, list) else [base.value]:
            found |= _with_defaults(str(Path(path).parent / str(name)), [*above, path])
    own: Leaves = {}
    _flatten(tree, "", path, own)
    for name in own:
        for other in [each for each in found if each.startswith(f"{name}.") or name.startswith(f"{each}.")]:
            del found[other]
    return {**found, **own}


def _flatten(tree: Tree, prefix: str, path: str, found: Leaves) -> None:
    for name, value in tree.items():
        if isinstance(value, dict):
            _flatten(value, f"{prefix}{name}.", path, found)
        else:
            found[prefix + name] = value, f"{path}:{value.line}"


def _resolved(name: str, value: Any, leaves: Leaves, depth: int) -> Any:
    """`${a.b}` from the top, `${.b}` beside it; what is not there stays as it is written."""
    match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    if match is None or depth >= _MOST_FILES:
        return value
    key = match[1]
    if key.startswith("."):
        key = f"{name.rpartition('.')[0]}{key}"
    return _resolved(key, leaves[key][0].value, leaves, depth + 1) if key in leaves else value


def compose(draft: Draft, processes: int | None, trainer: str | None) -> None:
    """What several options decide together."""
    _objective(draft)
    steps = _length(draft)
    if flag(draft.get("policy.megatron_cfg.enabled", False)):
        _megatron(draft, steps)
    else:
        _torch(draft, steps)
    precision = str(draft.get("policy.precision", "bfloat16"))
    if precision in ("bfloat16", "float32"):
        draft.put("model.dtype", precision, "policy.precision")
    else:
        draft.lose("policy.precision", f"{precision}; there is bfloat16 and float32", "model.dtype")
    period = draft.get("dpo.val_period")
    if isinstance(period, int) and period > 0 and draft.get("data.validation.dataset_name"):
        draft.put("train.eval_every", period, "dpo.val_period")
    draft.idle("dpo.val_period", "no evaluation during training") if "dpo.val_period" not in draft.fates else None
    _data(draft)
    _tokenizer(draft)
    for name in draft.options:
        if name not in draft.fates and name not in TABLE and name.startswith(_IDLE):
            draft.idle(name, "speed, memory, logging and saving")


def _length(draft: Draft) -> int | None:
    """Epochs and steps, of which the first to be reached ends the run there and here. Gives the steps."""
    draft.follow_one("dpo.max_num_epochs", To("train.epochs", number))
    steps = draft.get("dpo.max_num_steps")
    if not isinstance(steps, int) or steps < 1:
        draft.same("dpo.max_num_steps", "no limit")
        return None
    draft.put("train.max_steps", steps, "dpo.max_num_steps", differs=_SHORTER)
    return steps


def _objective(draft: Draft) -> None:
    names = ["reference_policy_kl_penalty", "preference_average_log_probs", "preference_loss_weight"]
    read = [f"dpo.{name}" for name in names if f"dpo.{name}" in draft.options]
    means, weight = draft.get("dpo.preference_average_log_probs"), draft.get("dpo.preference_loss_weight", 1)
    found: dict[str, Any] = {
        "name": "dpo_norm" if means else "dpo",
        "beta": draft.get("dpo.reference_policy_kl_penalty", 0.05),
    }
    if weight != 1:
        found["weight"] = weight
    likelihood = draft.get("dpo.sft_loss_weight") or 0
    if likelihood and not draft.get("dpo.sft_average_log_probs"):
        draft.lose(
            "dpo.sft_loss_weight", "a likelihood term that sums over tokens; there are means (sft, nll)", "objective"
        )
        likelihood = 0
    if likelihood:
        read += ["dpo.sft_loss_weight", "dpo.sft_average_log_probs"]
    draft.put("objective", with_term(found, "nll", likelihood), *read)
    for name in ("dpo.sft_loss_weight", "dpo.sft_average_log_probs"):
        draft.same(name, "no likelihood term") if name not in draft.fates else None


def _torch(draft: Draft, steps: int | None) -> None:
    """The optimizer and schedule of policy.optimizer and policy.scheduler."""
    kind, prefix = draft.get("policy.optimizer.name"), "policy.optimizer.kwargs"
    if kind == "torch.optim.AdamW":
        draft.same("policy.optimizer.name", "AdamW")
    elif kind is not None:
        draft.lose("policy.optimizer.name", f"{kind}; the optimizer here is AdamW")
    draft.follow_one(f"{prefix}.lr", To("train.learning_rate", number))
    draft.follow_one(f"{prefix}.weight_decay", To("train.weight_decay", number))
    _epsilon(draft, f"{prefix}.eps")
    betas = draft.get(f"{prefix}.betas")
    if isinstance(betas, list) and len(betas) == 2:
        draft.put("train.adam_beta1", betas[0], f"{prefix}.betas")
        draft.put("train.adam_beta2", betas[1], f"{prefix}.betas")
    try:
        schedule, warm = _schedule_of(draft.get("policy.scheduler") or [])
    except ValueError as error:
        draft.lose("policy.scheduler", str(error), "train.schedule")
        return
    draft.put("train.schedule", schedule, "policy.scheduler")
    if warm and steps:
        draft.put("train.warmup_fraction", round(warm / steps, 9), "policy.scheduler")
    elif warm:
        draft.lose(
            "policy.scheduler",
            "warm-up in steps, and the run's number of steps is not in the file",
            "train.warmup_fraction",
        )
    else:
        draft.put("train.warmup_fraction", 0.0, "policy.scheduler")


def _epsilon(draft: Draft, name: str) -> None:
    draft.follow_one(name, Only((None, 1e-8), "AdamW's epsilon is 1e-8 here"))


_MOST_START = 0.01
"""A warm-up that begins at no more than this share of the peak is one that begins at 0."""


def _schedule_of(parts: Any) -> tuple[str, int]:
    """Schedule and steps of warm-up of a list of torch's schedulers with milestones."""
    listed = parts if isinstance(parts, list) else [parts]
    kinds = [
        (str(part["name"]).rpartition(".")[2], part.get("kwargs") or {})
        for part in listed
        if isinstance(part, dict) and "name" in part
    ]
    warm = 0
    if len(kinds) > 1 and kinds[0][0] == "LinearLR":
        first = kinds.pop(0)[1]
        if first.get("start_factor", 1 / 3) > _MOST_START or first.get("end_factor", 1.0) != 1.0:
            raise ValueError(f"a warm-up from {first.get('start_factor')} of the peak; here it begins at 0")
        warm = int(first.get("total_iters", 5))
    if not kinds:
        return "constant", warm
    kind, settings = kinds[0]
    if len(kinds) == 1 and kind == "ConstantLR" and settings.get("factor", 1 / 3) == 1.0:
        return "constant", warm
    if (
        len(kinds) == 1
        and kind == "LinearLR"
        and settings.get("start_factor") == 1.0
        and settings.get("end_factor") == 0.0
    ):
        return "linear", warm
    if len(kinds) == 1 and kind == "CosineAnnealingLR" and not settings.get("eta_min"):
        return "cosine", warm
    raise ValueError(
        f"{', '.join(name for name, _ in kinds)} with {settings}; there is constant, linear to 0, cosine to 0"
    )


def _megatron(draft: Draft, steps: int | None) -> None:
    """Optimizer and schedule of policy.megatron_cfg."""
    prefix = "policy.megatron_cfg.optimizer"
    for name in draft.options:
        if name == "policy.scheduler" or name.startswith("policy.optimizer"):
            draft.idle(name, "policy.megatron_cfg has its own")
    for name, key in (
        ("lr", "learning_rate"),
        ("weight_decay", "weight_decay"),
        ("adam_beta1", "adam_beta1"),
        ("adam_beta2", "adam_beta2"),
    ):
        draft.follow_one(f"{prefix}.{name}", To(f"train.{key}", number))
    draft.follow_one(f"{prefix}.optimizer", Only(("adam",), "the optimizer here is AdamW"))
    _epsilon(draft, f"{prefix}.adam_eps")
    peak, low = draft.get(f"{prefix}.lr"), draft.get(f"{prefix}.min_lr")
    schedule = "policy.megatron_cfg.scheduler"
    kind = str(draft.get(f"{schedule}.lr_decay_style", "constant"))
    floor = low / peak if kind != "constant" and peak and low else None
    training_arguments.put_schedule(draft, kind, floor, f"{schedule}.lr_decay_style")
    warm = draft.get(f"{schedule}.lr_warmup_iters", 0)
    if warm and not steps:
        draft.lose(
            f"{schedule}.lr_warmup_iters", "the run's number of steps is not in the file", "train.warmup_fraction"
        )
    else:
        draft.put("train.warmup_fraction", round(warm / steps, 9) if steps else 0.0, f"{schedule}.lr_warmup_iters")
    if draft.get("policy.megatron_cfg.freeze_moe_router"):
        draft.idle("policy.megatron_cfg.freeze_moe_router", "of a mixture of experts; a dense model has no router")


_NAMED = {
    "HelpSteer3": ("nvidia/HelpSteer3", "preference"),
    "Tulu3Preference": ("allenai/llama-3.1-tulu-3-8b-preference-mixture", None),
}
_COLUMNS = {"prompt_key": "prompt", "chosen_key": "chosen", "rejected_key": "rejected"}


def _data(draft: Draft) -> None:
    columns: dict[str, str] = {}
    for part, key in (("data.train", "data.train"), ("data.validation", "data.eval")):
        here = {name.removeprefix(f"{part}."): name for name in draft.options if name.startswith(f"{part}.")}
        if part in draft.options:
            draft.same(part, "no such data")
        if not here:
            continue
        try:
            draft.put(
                key, [_entry(draft, part, columns)], *(name for short, name in here.items() if short in _OF_ENTRY)
            )
        except ValueError as error:
            draft.lose(f"{part}.dataset_name" if "dataset_name" in here else next(iter(here.values())), str(error), key)
    if columns:
        draft.note("data.columns", columns, "data.train.*_key")


_OF_ENTRY = ("dataset_name", "split", "data_path", "subset", *_COLUMNS)


def _entry(draft: Draft, part: str, columns: dict[str, str]) -> Any:
    name = draft.get(f"{part}.dataset_name", draft.get("data.default.dataset_name", "PreferenceDataset"))
    split = draft.get(f"{part}.split", "train")
    for option, meaning in _COLUMNS.items():
        if (column := draft.get(f"{part}.{option}")) not in (None, meaning):
            columns[meaning] = column
    if name in _NAMED:
        hub, config = _NAMED[name]
        return entry(hub, split, config)
    if name in ("PreferenceDataset", "BinaryPreferenceDataset") and draft.get(f"{part}.data_path"):
        return entry(str(draft.get(f"{part}.data_path")), split, draft.get(f"{part}.subset"))
    raise ValueError(
        f"the data set {name}; known are {', '.join(_NAMED)}, PreferenceDataset and BinaryPreferenceDataset with "
        "data_path"
    )


def _tokenizer(draft: Draft) -> None:
    name = draft.get("policy.tokenizer.name")
    if name in (None, draft.get("policy.model_name")):
        draft.same("policy.tokenizer.name", "the model's own")
    else:
        draft.lose("policy.tokenizer.name", "a tokenizer of another model", "model.path")
    if draft.get("policy.tokenizer.chat_template") not in (None, "default"):
        draft.lose("policy.tokenizer.chat_template", "a template as text", "data.chat_template")
    draft.same("policy.tokenizer.chat_template", "the model's own")
    settings = [each for each in draft.options if each.startswith("policy.tokenizer.chat_template_kwargs.")]
    if settings:
        values = {each.rpartition(".")[2]: draft.get(each) for each in settings}
        draft.put("data.chat_template_kwargs", values, *settings)
    draft.same("policy.tokenizer.chat_template_kwargs", "none")
