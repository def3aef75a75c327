"""`rounds.optimizer: carried`: rounds are one training whose data is made on the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

from raydpo.config import Config
from raydpo.errors import ConfigError, IntegrityError, NonFiniteError, ResumeError
from raydpo.pipelines import iterate, train
from tests.pipelines.rounds.toy_rounds import pairs, rounds_config
from tests.pipelines.toy import Toy, flip_byte

pytestmark = pytest.mark.slow

ONE_BATCH: dict[str, Any] = {
    "rounds.optimizer": "carried",
    "rounds.num_rounds": 3,
    "rounds.prompts_per_round": 8,
    "rounds.eval_prompts": [],
    "train.global_batch_pairs": 64,
    "train.schedule": "constant",
    "train.learning_rate": 1e-3,
}


@pytest.fixture(scope="module")
def online(toy: Toy, machine: None) -> Config:
    """Three rounds of one step, with a driver that ends after the first."""
    config = rounds_config(toy, toy.root / "carried", ONE_BATCH)
    attempt = iterate(config)
    next(attempt)
    attempt.close()
    assert [found.metrics["train/steps"] for found in iterate(config)] == [1, 1, 1]
    return config


def test_rounds_of_one_batch_are_one_run_of_adam(toy: Toy, online: Config) -> None:
    """Beside a plain loop over the same pairs, in which the optimizer lives on, and one in which it does not."""
    folder = Path(online.run.dir)
    start, found = (weights_of(path) for path in (toy.model, folder / "rounds/002/train/model"))
    one, anew = (plain(toy, online, folder, lives_on=lives_on) for lives_on in (True, False))
    moved = (one - start).norm()
    assert float((found - one).norm() / moved) < 1e-3
    assert float((anew - one).norm() / moved) > 0.05


def weights_of(path: Path) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def plain(toy: Toy, config: Config, folder: Path, *, lives_on: bool) -> Tensor:
    """Weights after a step of AdamW on the pairs of each round, one forward an answer."""
    policy, reference = (AutoModelForCausalLM.from_pretrained(toy.model, dtype=torch.float32) for _ in range(2))
    train = config.train

    def fresh() -> torch.optim.Optimizer:
        betas = (train.adam_beta1, train.adam_beta2)
        return torch.optim.AdamW(
            policy.parameters(), lr=train.learning_rate, betas=betas, weight_decay=train.weight_decay
        )

    optimizer = fresh()
    for index in range(3):
        rows = pairs(folder, index)
        assert rows
        optimizer = optimizer if lives_on else fresh()
        optimizer.zero_grad()
        for row in rows:
            (chosen, rejected), (chosen_then, rejected_then) = (
                [nats(model, row["prompt_ids"], row[f"{side}_ids"]) for side in ("chosen", "rejected")]
                for model in (policy, reference)
            )
            margin = chosen - chosen_then.detach() - rejected + rejected_then.detach()
            (-logsigmoid(config.objective.parameters["beta"] * margin) / len(rows)).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), train.max_grad_norm)
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


def nats(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None]).sum()


def test_states_that_no_round_needs_are_removed(online: Config) -> None:
    """The newest is where the next round goes on, the one before it is where the newest can be made again."""
    kept = sorted(Path(online.run.dir).glob("rounds/*/train/checkpoints/*"))
    names = [f"rounds/00{index}/train/checkpoints/step-000001" for index in (1, 2)]
    assert [str(path.relative_to(online.run.dir)) for path in kept] == names


def test_a_round_whose_state_is_damaged_is_made_again(toy: Toy, online: Config) -> None:
    folder = toy.root / "carried-damaged"
    shutil.copytree(online.run.dir, folder)
    flip_byte(next(folder.glob("rounds/002/train/checkpoints/*/engine/rank-*.safetensors")))
    config = rounds_config(toy, folder, {**ONE_BATCH, "rounds.num_rounds": 4})
    with pytest.raises(IntegrityError, match=r"state that round 2 ended with \(damaged: .*sha256.*Remove the folders"):
        list(iterate(config))
    for index in (2, 3):
        shutil.rmtree(folder / f"rounds/00{index}")
    assert len(list(iterate(config))) == 4
    (made,) = (folder / "rounds/002/pairs").glob("part-*")
    for name in (f"pairs/{made.name}", "train/model/model.safetensors"):
        assert (folder / "rounds/002" / name).read_bytes() == (Path(online.run.dir) / "rounds/002" / name).read_bytes()


def test_a_round_that_was_trained_needs_no_state_any_more(toy: Toy, online: Config) -> None:
    """Nor is anything left of a checkpoint that was being deleted when a driver died."""
    folder = toy.root / "carried-trained"
    shutil.copytree(online.run.dir, folder)
    shutil.rmtree(folder / "rounds/002/summary")
    flip_byte(next(folder.glob("rounds/001/train/checkpoints/*/engine/rank-*.safetensors")))
    leftover = folder / "rounds/002/train/checkpoints/.removed-step-000000-abcdef"
    leftover.mkdir()
    assert len(list(iterate(rounds_config(toy, folder, ONE_BATCH)))) == 3
    assert not leftover.exists()


def test_a_round_that_was_trained_without_the_state_is_not_taken(toy: Toy, online: Config) -> None:
    """By hand, from the config of its run directory."""
    folder = toy.root / "carried-by-hand"
    shutil.copytree(online.run.dir, folder)
    last = folder / "rounds/002"
    for name in ("summary", "train/checkpoints", "train/model"):
        shutil.rmtree(last / name)
    train(Config.load(last / "train/config.yaml", [f"run.dir={last / 'train'}"]))
    with pytest.raises(ResumeError, match="optimizer state: 'none' then"):
        list(iterate(rounds_config(toy, folder, ONE_BATCH)))


def test_rounds_that_were_made_without_are_not_gone_on_with(toy: Toy, online: Config) -> None:
    """Also where there was no choice yet when they were made."""
    folder = toy.root / "carried-before"
    shutil.copytree(online.run.dir, folder)
    settings = json.loads((folder / "rounds.json").read_text())
    del settings["rounds.optimizer"]
    (folder / "rounds.json").write_text(json.dumps(settings))
    with pytest.raises(ResumeError, match=r"rounds\.optimizer: 'fresh' then, 'carried' now"):
        next(iterate(rounds_config(toy, folder, ONE_BATCH)))
    assert json.loads((folder / "rounds.json").read_text()) == settings


def test_steps_that_are_not_finite_are_counted_over_rounds(toy: Toy, machine: None) -> None:
    """A beta of which no loss is finite: two rounds move nothing, the third ends the run."""
    changes = {**ONE_BATCH, "objective.name": "ipo", "objective.beta": 1e-30, "rounds.num_rounds": 5}
    rounds = iterate(rounds_config(toy, toy.root / "carried-nonfinite", changes))
    done = [next(rounds), next(rounds)]
    with pytest.raises(NonFiniteError, match=r"none of the last 3 steps, up to those of round 2,"):
        next(rounds)
    assert [(found.metrics["train/steps"], found.metrics["train/skipped_steps"]) for found in done] == [(1, 1)] * 2
    assert torch.equal(weights_of(done[-1].model), weights_of(toy.model))


def test_what_makes_no_one_training_is_refused(toy: Toy, tmp_path: Path) -> None:
    changes = {**ONE_BATCH, "train.schedule": "cosine", "train.lora": {"rank": 2, "alpha": 4}}
    with pytest.raises(ConfigError) as caught:
        next(iterate(rounds_config(toy, tmp_path / "never", changes)))
    said = " ".join(caught.value.problems)
    assert "train.schedule: cosine falls to 0 within each round" in said
    assert "each round trains a new adapter" in said
