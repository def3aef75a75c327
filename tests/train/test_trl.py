"""TRL's DPOTrainer as the oracle: same token ids, same reference log-probs, same loss, same gradient, in float32."""

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raydpo.artifacts import ExampleTable, ReferenceCache
from raydpo.batches import Order
from tests.train import jobs
from tests.train.world import GLOBAL_BATCH, NUM_TRAIN

trl = pytest.importorskip("trl", reason="TRL is the oracle of these tests: pip install --no-deps trl")


@pytest.fixture(scope="module")
def trainer(world, tmp_path_factory):
    """A DPOTrainer whose policy is not its reference, with the reference log-probs of 64 pairs precomputed."""
    policy, reference = (AutoModelForCausalLM.from_pretrained(path) for path in (world.policy, world.reference))
    settings = trl.DPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        beta=0.1,
        loss_type="sigmoid",
        precompute_ref_log_probs=True,
        per_device_train_batch_size=GLOBAL_BATCH,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
    )
    return trl.DPOTrainer(
        model=policy,
        ref_model=reference,
        args=settings,
        train_dataset=datasets.Dataset.from_list(world.train_rows),
        processing_class=AutoTokenizer.from_pretrained(world.reference),
    )


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


def loss_of(trainer, step):
    rows = [trainer.train_dataset[int(e)] for e in Order(NUM_TRAIN, GLOBAL_BATCH, 1, seed=3).examples(step)]
    batch = trainer.data_collator(rows)
    trainer.model.train()
    return trainer.compute_loss(trainer.model, batch)


@pytest.mark.parametrize("step", [0, 4], ids=["full batch", "partial batch"])
def test_loss_and_gradient_of_a_batch(trainer, runs, gangs, world, step):
    trainer.model.zero_grad()
    theirs = loss_of(trainer, step)
    theirs.backward()
    ((ours, gradient),) = gangs[1].run(jobs.gradient, runs.spec(policy=world.policy), step)
    assert abs(ours - np.log(2)) > 0.1  # a policy that is not its reference
    assert ours == pytest.approx(float(theirs.detach()), abs=1e-5)
    expected = {name: p.grad.numpy() for name, p in trainer.model.named_parameters()}
    assert gradient.keys() == expected.keys()
    distance = np.sqrt(sum(((gradient[name] - expected[name]) ** 2).sum() for name in expected))
    norm = np.sqrt(sum((value**2).sum() for value in expected.values()))
    assert distance <= 1e-5 * norm


def test_metrics_of_the_first_step_are_theirs(trainer, runs, world):
    trainer._metrics["train"].clear()
    with torch.no_grad():
        loss_of(trainer, 0)
    theirs = {name: values[0] for name, values in trainer._metrics["train"].items()}
    run = runs.get(policy=world.policy, max_steps=1)
    names = ["rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen"]
    for name in [*names, "logps/rejected"]:
        assert run.series(name)[0] == pytest.approx(theirs[name], abs=1e-3), name
