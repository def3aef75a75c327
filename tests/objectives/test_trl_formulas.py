"""TRL's own loss code on the same per-token log-probs: DPOTrainer, and CPOTrainer and ORPOTrainer where they are.

The trainers are not built: their loss methods run on a stand-in for `self` and a model that returns given log-probs.
"""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from tests.objectives.cases import objective
from tests.objectives.pairs import inputs

trl = pytest.importorskip("trl", reason="TRL is the oracle of these tests: pip install --no-deps trl")

pytestmark = pytest.mark.trl


def random_pairs(seed=0, count=7):
    """Pairs ((policy, reference, tokens) chosen, the same rejected), log-ratios of some nats."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(count, 4, generator=generator, dtype=torch.float64)
    tokens = torch.randint(1, 12, (count, 2), generator=generator).tolist()
    made = []
    for draw, (a, b) in zip(draws.tolist(), tokens, strict=True):
        made.append(((-2 * a - 4 * draw[0], -2 * a - 4 * draw[1], a), (-2 * b - 4 * draw[2], -2 * b - 4 * draw[3], b)))
    return made


def dpo_trainer_loss(pairs, loss_type, beta, dtype=torch.float64, **more):
    """Mean loss of `pairs` by DPOTrainer._compute_loss. Every row is one prompt token and then the answer."""
    sides = [pair[0] for pair in pairs] + [pair[1] for pair in pairs]
    rows = [torch.full((tokens,), policy / tokens, dtype=dtype) for policy, _, tokens in sides]
    mask = pad_sequence([torch.tensor([0] + [1] * len(row)) for row in rows], batch_first=True)
    log_probs = pad_sequence(rows, batch_first=True)
    zeros = torch.zeros_like(log_probs)
    outputs = SimpleNamespace(
        log_probs=log_probs,
        entropy=zeros,
        mean_logits=zeros,
        is_top1=zeros.bool(),
        log_sum_sq_probs=zeros,
        aux_loss=None,
    )
    reference = torch.tensor([side[1] for side in sides], dtype=dtype)
    settings = {
        "label_smoothing": 0.0,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "discopop_tau": 0.05,
    } | more
    stand_in = SimpleNamespace(
        **settings,
        args=SimpleNamespace(discopop_tau=settings["discopop_tau"]),
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        use_weighting=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    chosen, rejected = reference.chunk(2)
    batch = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    return float(trl.DPOTrainer._compute_loss(stand_in, lambda **unused: outputs, batch, False))


CASES = [
    ("dpo", "sigmoid", {}, {}),
    ("robust", "robust", {"label_smoothing": 0.2}, {"label_smoothing": 0.2}),
    ("hinge", "hinge", {}, {}),
    ("ipo_mean", "ipo", {}, {}),
    ("exo", "exo_pair", {"label_smoothing": 0.01}, {"label_smoothing": 0.01}),
    ("nca", "nca_pair", {}, {}),
    ("bco_pair", "bco_pair", {}, {}),
    ("sppo", "sppo_hard", {"beta": 0.01}, {}),
    ("apo_zero", "apo_zero", {}, {}),
    ("apo_down", "apo_down", {}, {}),
    ("discopop", "discopop", {"tau": 0.1}, {"discopop_tau": 0.1}),
    ("dpo_norm", "sigmoid_norm", {}, {}),
    ("fdpo_forward_kl", "sigmoid", {}, {"f_divergence_type": "forward_kl"}),
    ("fdpo_js", "sigmoid", {}, {"f_divergence_type": "js_divergence"}),
    (
        "fdpo_alpha",
        "sigmoid",
        {"alpha": 0.3},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7, "dtype": torch.float32},
    ),
]


@pytest.mark.parametrize(("name", "loss_type", "ours", "theirs"), CASES, ids=[case[0] for case in CASES])
def test_dpo_trainer(name, loss_type, ours, theirs):
    pairs = random_pairs()
    one = objective(name, **ours)
    mean = float(one(inputs(pairs)).loss_sum) / len(pairs)
    assert mean == pytest.approx(dpo_trainer_loss(pairs, loss_type, one.beta, **theirs), rel=1e-5, abs=1e-6)
    assert len({round(float(one(inputs([pair])).loss_sum), 7) for pair in pairs}) == len(pairs)


def sides(pairs, per_token):
    """[E] policy log-probs of the chosen and of the rejected answers, sums or means."""
    return tuple(
        torch.tensor([pair[side][0] / (pair[side][2] if per_token else 1) for pair in pairs], dtype=torch.float64)
        for side in (0, 1)
    )


@pytest.mark.parametrize(
    ("name", "loss_type", "alpha", "ours"),
    [
        ("cpo", "sigmoid", 0.0, {"nll_weight": 0.0}),
        ("simpo", "simpo", 0.0, {"gamma_beta_ratio": 0.3}),
        ("alphapo", "simpo", 0.25, {"gamma_beta_ratio": 0.3}),
    ],
)
def test_cpo_trainer(name, loss_type, alpha, ours):
    cpo = pytest.importorskip("trl.experimental.cpo", reason="this TRL has no CPOTrainer where 1.16 has it")
    pairs, one = random_pairs(1), objective(name, **ours)
    stand_in = SimpleNamespace(
        alpha=alpha,
        loss_type=loss_type,
        beta=one.beta,
        simpo_gamma=one.beta * ours.get("gamma_beta_ratio", 0.0),
        label_smoothing=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )
    theirs = cpo.CPOTrainer.cpo_loss(stand_in, *sides(pairs, name != "cpo"))[0]
    assert float(one(inputs(pairs)).loss_sum) == pytest.approx(float(theirs.sum()), rel=1e-5)


def test_orpo_trainer():
    orpo = pytest.importorskip("trl.experimental.orpo", reason="this TRL has no ORPOTrainer where 1.16 has it")
    pairs = random_pairs(2)
    stand_in = SimpleNamespace(beta=0.1, accelerator=SimpleNamespace(device="cpu"))
    chosen, rejected = sides(pairs, True)
    odds_terms = orpo.ORPOTrainer.odds_ratio_loss(stand_in, chosen, rejected)[0]  # of the opposite sign
    ours = float(objective("orpo")(inputs(pairs)).loss_sum)
    assert ours == pytest.approx(float((-chosen - odds_terms).sum()), rel=1e-5)
