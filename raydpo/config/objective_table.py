"""The table of objectives: names, needs, parameters with bounds and defaults. Torch-free, written once.

The config check, the command line and the documentation read this table; `raydpo.objectives` implements exactly
its names (tests/objectives/test_table.py). To add an objective: a row here, a file there, golden values in its test.
"""

from __future__ import annotations

from raydpo.config.objective_row import ObjectiveRow, Parameter


def _beta(default: float, help: str = "strength of the pull to the reference, in 1/nats") -> Parameter:
    return Parameter(default, 0.0, 1e4, help, low_open=True)


def _flips(default: float, help: str, *, zero: bool = False) -> Parameter:
    return Parameter(default, 0.0, 0.5, help, low_open=not zero, high_open=True)


def _weight(default: float, help: str) -> Parameter:
    return Parameter(default, 0.0, 1e4, help)


_PER_TOKEN = "strength of the pull to the reference, on the mean log-ratio of a token, in tokens/nats"
_TAU = "the paper's tau: the target margin is 1 / (2 beta)"
_SCALE = "scale of the mean log-prob of a token, in tokens/nats"
_FLIPPED = "probability that a label is flipped"
_MARGIN = "target margin gamma as a ratio of beta"

_ROWS = (
    ObjectiveRow(
        "dpo",
        "DPO, sigmoid",
        {"beta": _beta(0.1), "label_smoothing": _flips(0.0, f"{_FLIPPED} (cDPO)", zero=True)},
        "2305.18290",
        "the policy is its own reward model: logistic loss on the difference of log-ratios",
    ),
    ObjectiveRow(
        "cdpo",
        "conservative DPO",
        {"beta": _beta(0.1), "label_smoothing": _flips(0.1, _FLIPPED)},
        "2305.18290",
        "DPO whose labels are flipped with a known probability, so that the margin stays bounded",
    ),
    ObjectiveRow(
        "robust",
        "robust DPO",
        {"beta": _beta(0.1), "label_smoothing": _flips(0.1, _FLIPPED)},
        "2403.00409",
        "the DPO loss without the bias of flipped labels",
    ),
    ObjectiveRow(
        "hinge",
        "hinge on log-ratios (RSO)",
        {"beta": _beta(0.1)},
        "2309.06657",
        "pairs within the margin count, pairs beyond it do not",
    ),
    ObjectiveRow(
        "ipo",
        "IPO, sums",
        {"beta": _beta(0.1, _TAU)},
        "2310.12036",
        "log-ratios are drawn to a finite margin, so certain labels do not overfit",
    ),
    ObjectiveRow(
        "ipo_mean",
        "IPO, means per token",
        {"beta": _beta(0.1, _TAU)},
        "2310.12036",
        "IPO whose margin does not grow with answer length",
        reads="lengths",
    ),
    ObjectiveRow(
        "exo",
        "EXO for pairs",
        {"beta": _beta(0.1), "label_smoothing": _flips(1e-3, "mass of the rejected answer")},
        "2402.00856",
        "the reverse KL, which seeks the mode, in place of DPO's forward KL to the label",
    ),
    ObjectiveRow(
        "nca",
        "NCA for pairs",
        {"beta": _beta(0.01)},
        "2402.05369",
        "the chosen answer's likelihood is held at an absolute level",
    ),
    ObjectiveRow(
        "bco_pair",
        "BCO on pairs, without shift",
        {"beta": _beta(0.1)},
        "2404.04656",
        "a classifier of single answers whose logit is the reward",
    ),
    ObjectiveRow(
        "sppo",
        "SPPO, hard labels",
        {"beta": _beta(1e-3, "1 / eta: log-ratios are drawn to +-1 / (2 beta)")},
        "2405.00675",
        "self-play to a Nash equilibrium: log-ratios regress to win probabilities",
    ),
    ObjectiveRow(
        "apo_zero",
        "APO-zero",
        {"beta": _beta(0.1)},
        "2408.06266",
        "chosen up and rejected down, for chosen answers better than the model's",
    ),
    ObjectiveRow(
        "apo_down",
        "APO-down",
        {"beta": _beta(0.1)},
        "2408.06266",
        "both down, rejected further, for chosen answers worse than the model's",
    ),
    ObjectiveRow(
        "discopop",
        "DiscoPOP",
        {
            "beta": _beta(0.05),
            "tau": Parameter(0.05, 0.0, 1.0, "temperature of the blend of the two losses", low_open=True),
        },
        "2406.08414",
        "a blend of logistic and exponential loss, found by a language model",
    ),
    ObjectiveRow(
        "dpo_norm",
        "DPO, means per token",
        {"beta": _beta(5.0, _PER_TOKEN)},
        "2411.15124",
        "DPO whose reward does not grow with answer length",
        reads="lengths",
    ),
    ObjectiveRow(
        "dpop",
        "DPO-positive",
        {"beta": _beta(0.3), "penalty": _weight(50.0, "lambda, of nats that the chosen answer is below the reference")},
        "2402.13228",
        "DPO may lower both answers; this one punishes a falling chosen answer",
    ),
    ObjectiveRow(
        "fdpo_forward_kl",
        "f-DPO, forward KL",
        {"beta": _beta(0.1, "strength of the pull to the reference")},
        "2309.16240",
        "DPO with another divergence from the reference; this one covers its modes",
    ),
    ObjectiveRow(
        "fdpo_js",
        "f-DPO, Jensen-Shannon",
        {"beta": _beta(0.1, "strength of the pull to the reference")},
        "2309.16240",
        "DPO with another divergence from the reference; this one is symmetric and bounded",
    ),
    ObjectiveRow(
        "fdpo_alpha",
        "f-DPO, alpha divergence",
        {
            "beta": _beta(0.1, "strength of the pull to the reference"),
            "alpha": Parameter(0.5, 0.0, 1.0, "0: reverse KL, 1: forward KL", low_open=True, high_open=True),
        },
        "2309.16240",
        "DPO with another divergence from the reference; this one is between the two KLs",
    ),
    ObjectiveRow(
        "aot",
        "AOT, paired",
        {"beta": _beta(0.01), "label_smoothing": _flips(0.0, _FLIPPED, zero=True)},
        "2406.05882",
        "the margins of the policy dominate those of the reference as distributions, not pair by pair",
        batch="answers",
    ),
    ObjectiveRow(
        "aot_unpaired",
        "AOT, unpaired",
        {"beta": _beta(0.01), "label_smoothing": _flips(0.0, _FLIPPED, zero=True)},
        "2406.05882",
        "the rewards of chosen answers dominate those of rejected ones as distributions",
        batch="answers",
    ),
    ObjectiveRow(
        "kto",
        "KTO",
        {
            "beta": _beta(0.1),
            "desirable_weight": _weight(1.0, "lambda_D, of desirable answers"),
            "undesirable_weight": _weight(1.0, "lambda_U, of undesirable answers"),
        },
        "2402.01306",
        "gains and losses count against a reference point, the KL divergence, as people feel them",
        data="labels",
        batch="mismatched",
    ),
    ObjectiveRow(
        "bco",
        "BCO, with shift",
        {"beta": _beta(0.1)},
        "2404.04656",
        "a classifier of single answers whose logit is the reward less its middle over the batch",
        data="labels",
        batch="answers",
    ),
    ObjectiveRow(
        "apo_zero_unpaired",
        "APO-zero on single answers",
        {"beta": _beta(0.1)},
        "2408.06266",
        "desirable up and undesirable down, with no reference point to estimate",
        data="labels",
    ),
    ObjectiveRow(
        "simpo",
        "SimPO",
        {"beta": _beta(2.0, _SCALE), "gamma_beta_ratio": _weight(0.5, f"{_MARGIN}, in nats a token")},
        "2405.14734",
        "the reward is what generation maximises, the mean log-prob, with a target margin",
        reads="lengths",
        needs_reference=False,
    ),
    ObjectiveRow(
        "orpo",
        "ORPO",
        {"odds_weight": _weight(0.1, "lambda, of the log odds ratio")},
        "2403.07691",
        "fine-tuning and preferences in one stage: likelihood plus an odds ratio",
        reads="lengths",
        needs_reference=False,
    ),
    ObjectiveRow(
        "cpo",
        "CPO",
        {
            "beta": _beta(0.1, "scale of the log-prob of an answer, in 1/nats"),
            "nll_weight": _weight(1.0, "of the negative log-likelihood of the chosen answer, a sum"),
        },
        "2401.08417",
        "DPO with a uniform reference, kept near the chosen answers by their likelihood",
        needs_reference=False,
    ),
    ObjectiveRow(
        "slic",
        "SLiC-HF",
        {
            "delta": _weight(1.0, "margin between log-probs, in nats"),
            "nll_weight": _weight(0.1, "of the negative log-likelihood of the chosen answer, a sum"),
        },
        "2305.10425",
        "sequence likelihoods are calibrated by a margin, next to fine-tuning",
        needs_reference=False,
    ),
    ObjectiveRow(
        "alphapo",
        "AlphaPO",
        {
            "beta": _beta(2.0, _SCALE),
            "gamma_beta_ratio": _weight(0.5, _MARGIN),
            "alpha": Parameter(0.25, -10.0, 10.0, "bend of the reward; 0 is SimPO"),
        },
        "2501.03884",
        "the shape of the reward decides how far likelihoods move",
        reads="lengths",
        needs_reference=False,
    ),
    ObjectiveRow(
        "sft",
        "next-token likelihood of the chosen answer",
        reading="supervised fine-tuning, mean over the tokens of the batch",
        reads="tokens",
        data="answers",
        needs_reference=False,
    ),
    ObjectiveRow(
        "nll",
        "likelihood of the chosen answer, mean per token of each answer",
        paper="2404.19733",
        reading="supervised fine-tuning in which every answer weighs the same; the NLL term of iterative RPO",
        reads="lengths",
        data="answers",
        needs_reference=False,
    ),
)

OBJECTIVES: dict[str, ObjectiveRow] = {row.name: row for row in _ROWS}
