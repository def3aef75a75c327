"""What is known of a model before anything of it is loaded: by its config.json alone, without torch.

Comes in: config.json, and the few keys of a run that it is held against. Goes out: one sentence for each fact, and one for each
reason why it cannot be trained. Decision: what needs the classes of transformers is asked at the start of a run; here stands
what a person can know at once.
"""

from __future__ import annotations

from pathlib import Path

from raydpo.errors import ConfigError
from raydpo.models.auto_class import is_multimodal
from raydpo.models.balancing import Asked, balancing
from raydpo.models.config_file import POSITIONS, config_of, of_text, value_of

_FACTORS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "final_logit_softcapping")
_NOISE = ("router_jitter_noise", "input_jitter_noise")
_SAMPLING = ("phimoe",)
"""Families whose routers draw among near ties in training mode, whatever their config says."""


def facts(folder: Path, router_aux_loss: Asked, *, has_adapter: bool, is_packed: bool = False) -> list[str]:
    """One sentence each on the model in `folder`, which is trained. Raises ConfigError as `forward_facts`, and for a key that
    cannot be kept."""
    described, found = config_of("model.path", folder), forward_facts("model.path", folder)
    if is_multimodal(described):
        others = [name for name in described if name.endswith("_config") and name != "text_config"]
        parts = ", ".join(name.removesuffix("_config") for name in others if isinstance(described[name], dict))
        found.append(f"only the text part of {described.get('model_type')} is trained; its {parts} part stays as it is")
    if has_adapter:
        found.append(
            "what train.lora adapts, by kind, is counted at the start of the run: it needs the model's classes"
        )
    if is_packed:
        found.append(
            "train.lora.quantize_base: linear layers but the head are packed in 4 bits (nf4) when policy and reference are "
            "loaded; how many weights that are is counted at the start of the run"
        )
    said = balancing(described, router_aux_loss).said
    return [*found, said] if said else found


def forward_facts(key: str, folder: Path) -> list[str]:
    """One sentence each on the forward of the model in `folder`, which `key` of the config names: it need not be trained.

    Raises ConfigError where config.json cannot be read.
    """
    described = config_of(key, folder)
    family, found = value_of(described, "model_type"), []
    if factors := [
        f"{name}: {value}" for name in _FACTORS if (value := value_of(described, name)) not in (None, 1, 1.0)
    ]:
        found.append(
            f"logits of {family} are changed after the head by {', '.join(factors)}; log-probs are of the changed ones"
        )
    if of_text(described, *POSITIONS) is None:
        found.append(f"{family} names no limit of positions: data.max_length alone bounds the rows")
    return found


def refuse_training(folder: Path) -> None:
    """Raise ConfigError when a forward of the model in `folder` is random in training mode, by its config.json."""
    described = config_of("model.path", folder)
    noise = [f"{name}: {value}" for name in _NOISE if (value := value_of(described, name))]
    family = str(value_of(described, "model_type"))
    if family in _SAMPLING:
        raise ConfigError(
            f"model.path: the routers of {family} draw their experts among near ties in training mode. Policy and reference "
            "would be two functions from the first step on, and margins would hold the difference. Nothing was started. "
            "No key of its config.json turns that off: start from another model."
        )
    if noise:
        raise ConfigError(
            f"model.path: {family} adds random noise in training mode ({', '.join(noise)} of its config.json). Policy and "
            "reference would be two functions from the first step on, and margins would hold the difference. Nothing was "
            "started. Set it to 0 in a copy of the model's config.json."
        )


def check_heads(num_heads: int, num_ranks: int) -> None:
    """Raises ConfigError where the heads of queries cannot be shared equally."""
    if num_heads % num_ranks:
        raise ConfigError(
            f"train.sequence_parallel_size: {num_ranks} needs a number of attention heads that {num_ranks} divides, and the "
            f"model has {num_heads}. Ranks would have had unequal shares of them, so nothing was computed. Use a number of "
            f"ranks that divides {num_heads}."
        )


def refuse_shares(folder: Path, num_ranks: int) -> None:
    """Raise ConfigError when `num_ranks` cannot share the heads of the model in `folder`, as far as its config.json says."""
    if (num_heads := of_text(config_of("model.path", folder), "num_attention_heads", "n_head")) is not None:
        check_heads(num_heads, num_ranks)
