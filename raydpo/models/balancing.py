"""The balancing loss of a mixture of experts: is it on, and with which coefficient? By config.json alone, without torch.

Comes in: config.json of the model, and what `train.router_aux_loss` asks for. Goes out: a coefficient and one sentence, or a
ConfigError. Decision: the coefficient that a model carries is what its own training used, so it stays on; whether a config
says `output_router_logits` is about what a forward returns and decides nothing. The price is the table below: families whose
loss transformers has, and the coefficient of a config that names none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raydpo.errors import ConfigError
from raydpo.models.config_file import config_of, value_of

KEY = "train.router_aux_loss"
Asked = Literal["auto", "off"] | float
DEFAULT = 0.001
OWN_LOSS = {
    **dict.fromkeys(("deepseek_v4", "ernie4_5_moe", "ernie4_5_vl_moe", "glm5_next", "gpt_oss", "granitemoe"), DEFAULT),
    **dict.fromkeys(("granitemoe_swa", "granitemoehybrid", "granitemoeshared", "jamba", "laguna", "mellum"), DEFAULT),
    **dict.fromkeys(("minimax", "minimax_m2", "minimax_m3_vl", "mixtral", "phimoe", "qwen2_moe"), DEFAULT),
    **dict.fromkeys(("qwen3_5_moe", "qwen3_moe", "qwen3_next", "qwen3_omni_moe", "qwen3_vl_moe", "qwen4_exp"), DEFAULT),
    **{"dbrx": 0.01, "flex_olmo": 0.01, "glm4v_moe": 0.0001, "jetmoe": 0.01, "olmoe": 0.01},
}
"""model_type -> coefficient where config.json names none: families for which transformers computes the loss of
`load_balancing_loss_func` (Switch Transformers, eq. 4 to 6, all layers at once)."""

_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef", "moe_loss_weight")
_NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_UNREAD = ("aux_loss_alpha", "router_aux_loss_coef")


@dataclass(frozen=True)
class Balancing:
    """coefficient: of the balancing loss, 0 for none. said: one sentence for a person, empty for a model without experts."""

    coefficient: float
    said: str


def balancing_in(folder: Path, asked: Asked) -> Balancing:
    """`balancing` of the model in `folder`, which `model.path` names. Raises ConfigError."""
    return balancing(config_of("model.path", folder), asked)


def balancing(described: dict[str, Any], asked: Asked) -> Balancing:
    """What the model of config.json `described` gets. Raises ConfigError for a number where there is no such loss."""
    family = _family(described)
    if not _has_experts(described, family):
        return _without(family, asked, "it has no experts", "")
    if family not in OWN_LOSS:
        named = [(name, value) for name in _UNREAD if (value := value_of(described, name, "ffn_config"))]
        unread = "".join(f"; {name}: {value} of its config.json is not read" for name, value in named)
        return _without(family, asked, "transformers computes none for this family", unread)
    own, place = _own(described)
    coefficient = OWN_LOSS[family] if own is None else own
    source = f"{place} of its config.json" if own is not None else "the family's default, its config.json names none"
    if asked == "off":
        text = f"is off ({KEY}: off); the model's own coefficient is {coefficient:g} ({source})"
        return Balancing(0.0, _sentence(family, text))
    if asked == "auto":
        if not coefficient:
            return Balancing(0.0, _sentence(family, f"is off: its coefficient is 0 ({source})"))
        text = f"is on with its own coefficient {coefficient:g} ({source}); {KEY}: off leaves it out"
        return Balancing(coefficient, _sentence(family, text))
    text = f"is on with coefficient {asked:g} ({KEY}); the model's own is {coefficient:g} ({source})"
    return Balancing(asked, _sentence(family, text))


def _without(family: str, asked: Asked, why: str, more: str) -> Balancing:
    if isinstance(asked, float):
        raise ConfigError(
            f"{KEY}: {asked:g}, but there is no balancing loss of experts for {family}: {why}{more}. The key would have been "
            "without effect, so nothing was started. Leave it out."
        )
    return Balancing(0.0, _sentence(family, f"is off: {why}{more}") if why != "it has no experts" else "")


def _sentence(family: str, what: str) -> str:
    return f"the balancing loss of the experts of {family} {what}"


def _family(described: dict[str, Any]) -> str:
    part = described.get("text_config")
    named = part.get("model_type") if isinstance(part, dict) else None
    return str(named or described.get("model_type")).removesuffix("_text")


def _has_experts(described: dict[str, Any], family: str) -> bool:
    """By the number that config.json names; where it names none, by the family."""
    counts = (value_of(described, name, "ffn_config") for name in _NUM_EXPERTS)
    found = next((one for one in counts if one is not None), None)
    return found > 1 if isinstance(found, int) else family in OWN_LOSS


def _own(described: dict[str, Any]) -> tuple[float | None, str]:
    for name in _COEFFICIENTS:
        if isinstance(found := value_of(described, name, "ffn_config"), int | float) and not isinstance(found, bool):
            return float(found), name
    return None, ""
