"""TRL as the oracle: same token ids, same reference log-probs, same loss, same gradient, in float32.

DPOTrainer for its objectives on pairs, LD-DPO, WPO and sums; CPOTrainer and ORPOTrainer without a reference; KTOTrainer.
"""

from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from raydpo.artifacts import ExampleTable, ReferenceCache
from raydpo.batches import Order
from raydpo.config import OBJECTIVES
from raydpo.models.blend import blend
from tests.train import jobs
from tests.train.world import GLOBAL_BATCH, NUM_TRAIN

trl = pytest.importorskip("trl", reason="TRL is the oracle of these tests: pip install --no-deps trl")

pytestmark = pytest.mark.trl


@pytest.fixture(scope="module")
def trainer(world, tmp_path_factory):
    """A DPOTrainer whose policy is not its reference, with the reference log-probs of 64 pairs precomputed."""
    policy, reference = (AutoModelForCausalLM.from_pretrained(path) for path in (world.policy, world.reference))
    settings = trl.DPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        beta=0.1,
        loss_type="sigmoid",
        precompute_ref_log_probs=True,
        use_weighting=True,  # so that the model gives what WPO needs; switched off below
        per_device_train_batch_size=GLOBAL_BATCH,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = trl.DPOTrainer(
        model=policy,
        ref_model=reference,
        args=settings,
        train_dataset=datasets.Dataset.from_list(world.train_rows),
        processing_class=AutoTokenizer.from_pretrained(world.reference),
    )
    trainer.use_weighting = False
    return trainer


@pytest.fixture(scope="module")
def table(world):
    return ExampleTable.open(world.data, "train")


def test_both_sides_see_the_same_token_ids(trainer, table):
    assert len(trainer.train_dataset) == len(table) == NUM_TRAIN
    for example, row in enumerate(trainer.train_dataset):
        assert row["prompt_ids"] == table.prompt_ids(example).tolist()
        assert [row["chosen_ids"], row["rejected_ids"]] == [ids.tolist() for ids in table.answer_ids(example)]


def test_reference_log_probs(trainer, world, table):
    test_both_sides_see_the_same_token_ids(trainer, table)
    cache = ReferenceCache(*world.cache()).open()
    ours = [[float(n.astype(np.float64).sum()) for n in cache.lookup(table.row_keys(e))] for e in range(len(table))]
    theirs = np.array([[row["ref_chosen_logps"], row["ref_rejected_logps"]] for row in trainer.train_dataset])
    differences = np.abs(np.array(ours) - theirs)
    assert theirs.std() > 10  # rows differ by far more than the tolerance
    assert (differences <= np.maximum(1e-4, 1e-6 * np.abs(theirs))).all(), differences.max()


@pytest.fixture(scope="module")
def near(world, tmp_path_factory):
    """A policy some nats away from the reference, so that no exponential of a log-ratio leaves its range."""
    folder = tmp_path_factory.mktemp("near") / "policy"
    blend(world.policy, world.reference, 0.1, folder)
    return folder


def batch_of(step, num_examples=NUM_TRAIN):
    return [int(e) for e in Order(num_examples, GLOBAL_BATCH, 1, seed=3).examples(step)]


def loss_of(trainer, step):
    batch = trainer.data_collator([trainer.train_dataset[e] for e in batch_of(step)])
    trainer.model.train()
    return trainer.compute_loss(trainer.model, batch)


def gradient_of(model, loss):
    """(loss, gradient by name) of a loss that was computed with `model`."""
    model.zero_grad()
    loss.backward()
    return float(loss.detach()), {name: p.grad.numpy().copy() for name, p in model.named_parameters()}


def norm(gradient):
    return np.sqrt(sum((value.astype(np.float64) ** 2).sum() for value in gradient.values()))


def assert_same(ours, theirs, of_norm=1e-5):
    """Loss to 1e-5 (relative where it is above 1), gradient to `of_norm` of its norm."""
    gradient, (expected, wanted) = ours.gradient, theirs
    assert ours.metrics["loss"] == pytest.approx(expected, abs=1e-5, rel=1e-5)
    assert gradient.keys() == wanted.keys()
    assert norm(wanted) > 0
    assert norm({name: gradient[name] - wanted[name] for name in wanted}) <= of_norm * norm(wanted)


@pytest.mark.parametrize("step", [0, 4], ids=["full batch", "partial batch"])
def test_loss_and_gradient_of_a_batch(trainer, runs, gangs, world, step):
    theirs = gradient_of(trainer.model, loss_of(trainer, step))
    (ours,) = gangs[1].run(jobs.gradient, runs.spec(policy=world.policy), step)
    assert abs(ours.metrics["loss"] - np.log(2)) > 0.1  # a policy that is not its reference
    assert_same(ours, theirs)


def test_metrics_of_the_first_step_are_theirs(trainer, runs, world):
    trainer._metrics["train"].clear()
    with torch.no_grad():
        loss_of(trainer, 0)
    theirs = {name: values[0] for name, values in trainer._metrics["train"].items()}
    run = runs.get(policy=world.policy, max_steps=1)
    names = ["rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen"]
    for name in [*names, "logps/rejected"]:
        assert run.series(name)[0] == pytest.approx(theirs[name], abs=1e-3), name


# --- every objective on pairs that DPOTrainer has -------------------------------------------------------------

PLAIN = {
    "loss_types": ["sigmoid"],
    "loss_weights": [1.0],
    "beta": 0.1,
    "label_smoothing": 0.0,
    "f_divergence_type": "reverse_kl",
    "f_alpha_divergence_coef": 0.5,
    "ld_alpha": None,
    "use_weighting": False,
}
"""DPOTrainer's attributes that decide its loss."""

DPO_TRAINER = [
    ({"name": "robust", "label_smoothing": 0.2}, {"loss_types": ["robust"], "label_smoothing": 0.2}),
    ({"name": "hinge"}, {"loss_types": ["hinge"]}),
    ({"name": "ipo_mean"}, {"loss_types": ["ipo"]}),
    ({"name": "exo"}, {"loss_types": ["exo_pair"], "label_smoothing": 1e-3}),
    ({"name": "nca", "beta": 0.1}, {"loss_types": ["nca_pair"]}),
    ({"name": "bco_pair"}, {"loss_types": ["bco_pair"]}),
    ({"name": "sppo"}, {"loss_types": ["sppo_hard"], "beta": 1e-3}),
    ({"name": "apo_zero"}, {"loss_types": ["apo_zero"]}),
    ({"name": "apo_down"}, {"loss_types": ["apo_down"]}),
    ({"name": "discopop"}, {"loss_types": ["discopop"], "beta": 0.05}),
    ({"name": "dpo_norm"}, {"loss_types": ["sigmoid_norm"], "beta": 5.0}),
    ({"name": "fdpo_forward_kl"}, {"f_divergence_type": "forward_kl"}),
    ({"name": "fdpo_js"}, {"f_divergence_type": "js_divergence"}),
    (
        {"name": "fdpo_alpha", "alpha": 0.3},  # TRL's coefficient is 1 less the paper's alpha
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
    ),
    ({"name": "aot", "label_smoothing": 0.1}, {"loss_types": ["aot"], "beta": 0.01, "label_smoothing": 0.1}),
    ({"name": "aot_unpaired", "beta": 0.1}, {"loss_types": ["aot_unpaired"]}),
    ({"name": "dpo", "ld_alpha": 0.4}, {"ld_alpha": 0.4}),
    ({"name": "aot", "beta": 0.1, "ld_alpha": 0.0}, {"loss_types": ["aot"], "ld_alpha": 0.0}),
    ({"name": "dpo", "wpo": True}, {"use_weighting": True}),
    ({"name": "nca", "beta": 0.1, "wpo": True}, {"loss_types": ["nca_pair"], "use_weighting": True}),
    (
        {"name": "dpo", "weight": 0.8, "plus": [{"name": "bco_pair", "weight": 0.2}, "sft"]},
        {"loss_types": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    ),
]
"""raydpo's objective section, and the attributes of DPOTrainer that differ from `PLAIN`."""


def title(section):
    return " ".join(str(value) for value in section.values())


@pytest.fixture(scope="module")
def near_trainer(trainer, near, world):
    """The same trainer around the nearer policy, with the reference at hand: precomputed sums cannot weigh tokens."""
    state = AutoModelForCausalLM.from_pretrained(near).state_dict()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    kept = {name: getattr(trainer, name) for name in (*PLAIN, "precompute_ref_logps", "ref_model")}
    trainer.model.load_state_dict(state)
    trainer.precompute_ref_logps = False
    yield trainer
    trainer.model.load_state_dict(before)
    for name, value in kept.items():
        setattr(trainer, name, value)


OF_NORM = {"fdpo_forward_kl": 5e-5}
"""Where the gradient is an exponential of a log-ratio: answers here have up to 572 nats, whose float32 sums are 3e-5 nats
apart when reference and policy are not computed in batches of one shape, as TRL does and packing does not."""


@pytest.fixture(scope="module")
def ours_of(runs, gangs, near):
    """Title of each section of `DPO_TRAINER` -> our loss and gradient of the first batch."""
    sections = [section for section, _ in DPO_TRAINER]
    (found,) = gangs[1].run(jobs.gradients, runs.spec(policy=near), 0, sections)
    return dict(zip(map(title, sections), found, strict=True))


@pytest.mark.parametrize(("section", "settings"), DPO_TRAINER, ids=[title(section) for section, _ in DPO_TRAINER])
def test_dpo_trainer_has_the_same_loss_and_gradient(near_trainer, ours_of, section, settings):
    for name, value in (PLAIN | settings).items():
        setattr(near_trainer, name, value)
    of_norm = OF_NORM.get(section["name"], 1e-5)
    assert_same(ours_of[title(section)], gradient_of(near_trainer.model, loss_of(near_trainer, 0)), of_norm)


NOT_IN_TRL = {
    "cdpo": "DPOTrainer ignores label_smoothing for sigmoid; it is dpo with label_smoothing, held to golden values",
    "ipo": "its ipo is the mean per token",
    "dpop": "not there",
    "bco": "BCOTrainer is gone",
    "nll": "its likelihood is a mean over the tokens of the batch, which is sft",
}


def test_every_objective_is_compared_or_has_a_reason():
    sections = [section for section, _ in (*DPO_TRAINER, *CPO_TRAINER)]
    names = {"dpo", "orpo", "kto", "apo_zero_unpaired", *(section["name"] for section in sections)}
    names |= {term for section in sections for term in section.get("plus", ()) if isinstance(term, str)}
    assert names | set(NOT_IN_TRL) == set(OBJECTIVES)
    assert not names & set(NOT_IN_TRL)


# --- without a reference: CPOTrainer and ORPOTrainer -----------------------------------------------------------


def stand_in(kind, **attributes):
    """A trainer of TRL with the attributes that its loss reads and nothing else: real methods, no data set of its own."""
    one = object.__new__(kind)
    accelerator = SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x)
    common = {"is_encoder_decoder": False, "aux_loss_enabled": False, "pad_token_id": 0, "padding_value": 0}
    for name, value in {**common, "label_smoothing": 0.0, "accelerator": accelerator, **attributes}.items():
        setattr(one, name, value)
    return one


def padded(table, examples):
    """The batch that CPOTrainer and ORPOTrainer take, from our token ids."""
    batch = {}
    for place, side in enumerate(("chosen", "rejected")):
        rows = [(table.prompt_ids(e).tolist(), table.answer_ids(e)[place].tolist()) for e in examples]
        for name, parts in (
            ("input_ids", [(prompt + answer) for prompt, answer in rows]),
            ("attention_mask", [[1] * (len(prompt) + len(answer)) for prompt, answer in rows]),
            ("labels", [[-100] * len(prompt) + answer for prompt, answer in rows]),
        ):
            filler = -100 if name == "labels" else 0
            tensors = [torch.tensor(part) for part in parts]
            batch[f"{side}_{name}"] = pad_sequence(tensors, batch_first=True, padding_value=filler)
    return batch


CPO_TRAINER = [
    ({"name": "cpo", "nll_weight": 0.0}, {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 0.0}),
    # TRL's likelihood is a mean over the tokens of the batch; ours, the paper's, a sum over the answer: hence the sum.
    (
        {"name": "cpo", "nll_weight": 0.0, "plus": [{"name": "sft", "weight": 0.7}]},
        {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 0.7},
    ),
    (
        {"name": "simpo", "gamma_beta_ratio": 0.3},
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.6, "cpo_alpha": 0.0},
    ),
    (
        {"name": "alphapo", "gamma_beta_ratio": 0.3},
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.6, "cpo_alpha": 0.0, "alpha": 0.25},
    ),
    ({"name": "slic", "nll_weight": 0.0}, {"loss_type": "hinge", "beta": 1.0, "cpo_alpha": 0.0}),
]


@pytest.fixture(scope="module")
def plain_model(near):
    return AutoModelForCausalLM.from_pretrained(near)


def test_cpo_trainer_has_the_same_losses_and_gradients(runs, gangs, near, table, plain_model):
    cpo = pytest.importorskip("trl.experimental.cpo", reason="this TRL has no CPOTrainer where 1.16 has it")
    (found,) = gangs[1].run(jobs.gradients, runs.spec(policy=near), 0, [section for section, _ in CPO_TRAINER])
    batch = padded(table, batch_of(0))
    for ours, (_, settings) in zip(found, CPO_TRAINER, strict=True):
        one = stand_in(cpo.CPOTrainer, **({"alpha": 0.0} | settings))
        assert_same(ours, gradient_of(plain_model, one.get_batch_loss_metrics(plain_model, batch)[0]))


def test_orpo_trainer_has_the_same_loss_and_gradient(runs, gangs, near, table, plain_model):
    """Their forward and their odds, with the likelihood of the answer; their own is of prompt and answer."""
    orpo = pytest.importorskip("trl.experimental.orpo", reason="this TRL has no ORPOTrainer where 1.16 has it")
    ((ours,),) = gangs[1].run(jobs.gradients, runs.spec(policy=near), 0, [{"name": "orpo"}])
    one = stand_in(orpo.ORPOTrainer, beta=0.1)
    chosen, rejected, *_ = one.concatenated_forward(plain_model, padded(table, batch_of(0)))
    loss = (-chosen - one.odds_ratio_loss(chosen, rejected)[0]).mean()
    assert_same(ours, gradient_of(plain_model, loss))


# --- labels: KTOTrainer ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kto_trainer(world, near, tmp_path_factory):
    policy, reference = (AutoModelForCausalLM.from_pretrained(path) for path in (near, world.reference))
    settings = trl.KTOConfig(
        output_dir=str(tmp_path_factory.mktemp("kto")),
        beta=0.1,
        desirable_weight=1.5,
        undesirable_weight=0.7,
        per_device_train_batch_size=GLOBAL_BATCH,
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
    )
    rows = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in world.train_rows
        for side in ("chosen", "rejected")
    ]
    return trl.KTOTrainer(
        model=policy,
        ref_model=reference,
        args=settings,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(world.reference),
    )


@pytest.mark.parametrize(
    "section",
    [{"name": "kto", "desirable_weight": 1.5, "undesirable_weight": 0.7}, {"name": "apo_zero_unpaired"}],
    ids=lambda section: section["name"],
)
def test_kto_trainer_has_the_same_loss_and_gradient(kto_trainer, runs, gangs, world, near, section):
    """Same rows, the mismatched ones included: theirs are rotated within a batch, ours are a function of the data set."""
    table = ExampleTable.open(world.labelled, "train")
    examples, name = batch_of(0, len(table)), section["name"]
    rows = []
    for example in examples:
        theirs = kto_trainer.train_dataset[example]
        answer, mismatched = (ids.tolist() for ids in table.answer_ids(example))
        assert (theirs["prompt_ids"], theirs["completion_ids"]) == (table.prompt_ids(example).tolist(), answer)
        assert theirs["label"] == bool(table.labels[example])
        rows.append({**theirs, "KL_completion_ids": mismatched})
    kto_trainer.loss_type, kto_trainer.calculate_KL = name, name == "kto"
    weights = (section.get("desirable_weight", 1.0), section.get("undesirable_weight", 1.0))
    kto_trainer.desirable_weight, kto_trainer.undesirable_weight = weights
    kto_trainer.model.train()
    loss = kto_trainer.compute_loss(kto_trainer.model, kto_trainer.data_collator(rows))
    ((ours,),) = gangs[1].run(jobs.gradients, runs.spec(objective="kto", policy=near), 0, [section])
    assert_same(ours, gradient_of(kto_trainer.model, loss))
    if name == "kto":
        assert kto_trainer._metrics["train"]["kl"][-1] > 0  # the clamp hides nothing
