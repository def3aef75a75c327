"""The loss of another project as our section `objective`.

Comes in: its name, and the options that it reads. Goes out: the section as a mapping. Decision: the names are those of
TRL, which
LLaMA-Factory, Axolotl and ms-swift hand on; tests/train/test_trl.py holds the formulas to TRL's.
"""

from __future__ import annotations

from typing import Any

_BY_NAME = {
    "sigmoid": "dpo",
    "hinge": "hinge",
    "ipo": "ipo_mean",
    "exo_pair": "exo",
    "nca_pair": "nca",
    "robust": "robust",
    "bco_pair": "bco_pair",
    "sppo_hard": "sppo",
    "aot": "aot",
    "aot_pair": "aot_unpaired",
    "aot_unpaired": "aot_unpaired",
    "apo_zero": "apo_zero",
    "apo_down": "apo_down",
    "discopop": "discopop",
    "sigmoid_norm": "dpo_norm",
    "sft": "sft",
}
_DIVERGENCES = {
    "forward_kl": "fdpo_forward_kl",
    "js_divergence": "fdpo_js",
    "alpha_divergence": "fdpo_alpha",
}
_SMOOTHED = ("robust", "exo", "aot", "aot_unpaired")
_SUMS = ("dpo", "cdpo", "robust", "hinge", "ipo", "exo", "nca", "bco_pair", "sppo", "apo_zero", "apo_down", "discopop")


def pair_objective(name: str, beta: float, **more: Any) -> dict[str, Any]:
    """One loss of TRL's DPOTrainer. more: label_smoothing, tau, ld_alpha, wpo, divergence, divergence_alpha, smooths_dpo (the
    sigmoid loss reads label_smoothing). ValueError for one that there is not here."""
    if name not in _BY_NAME:
        raise ValueError(f"the loss {name} is none of {', '.join(_BY_NAME)}")
    ours, smoothing = _BY_NAME[name], more.get("label_smoothing") or 0.0
    divergence = more.get("divergence") or "reverse_kl"
    if divergence != "reverse_kl":
        if name != "sigmoid" or divergence not in _DIVERGENCES:
            raise ValueError(
                f"the divergence {divergence} with the loss {name}; there is sigmoid with {', '.join(_DIVERGENCES)}"
            )
        ours = _DIVERGENCES[divergence]
    term: dict[str, Any] = {"name": ours}
    if ours != "sft":
        term["beta"] = beta
    if ours == "fdpo_alpha":
        term["alpha"] = more.get("divergence_alpha", 0.5)
    if ours == "discopop":
        term["tau"] = more.get("tau", 0.05)
    if ours in _SMOOTHED or (ours == "dpo" and smoothing and more.get("smooths_dpo")):
        if ours == "robust" and not smoothing:
            term["name"] = "dpo"
        else:
            term["label_smoothing"] = smoothing
    if (alpha := more.get("ld_alpha")) is not None and alpha != 1:
        if ours not in _SUMS:
            raise ValueError(f"ld_alpha with the loss {name}")
        term["ld_alpha"] = alpha
    if more.get("wpo"):
        term["wpo"] = True
    return term


def weighted(terms: list[dict[str, Any]], weights: list[float]) -> dict[str, Any]:
    """The sum of terms, the first that reads pairs being first. Terms of weight 0 are left out."""
    kept = [
        {**term, "weight": weight} if weight != 1 else term
        for term, weight in zip(terms, weights, strict=True)
        if weight != 0
    ]
    if not kept:
        raise ValueError("every loss has the weight 0")
    kept.sort(key=lambda term: term["name"] in ("sft", "nll"))
    return {**kept[0], "plus": kept[1:]} if len(kept) > 1 else kept[0]


def with_term(objective: dict[str, Any], name: str, weight: float) -> dict[str, Any]:
    """The objective with one more term, none for the weight 0."""
    if not weight:
        return objective
    return {**objective, "plus": [*objective.get("plus", []), {"name": name, "weight": weight}]}
