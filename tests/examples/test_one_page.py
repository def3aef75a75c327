"""The page that is read first computes what the real trainer computes: same ids, order, losses, first gradient."""

import importlib.util
import re
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raydpo.artifacts import ExampleTable
from raydpo.batches import Order
from raydpo.config.sections import ObjectiveSection, RunSection, TrainSection
from raydpo.data.encode import encode
from raydpo.data.template import Rendered
from raydpo.data.tokenizer import TextTokenizer
from raydpo.schema.rank_events import Stepped
from raydpo.train.schedule import learning_rate
from tests.train import jobs
from tests.train.gang import Gang
from tests.train.world import GLOBAL_BATCH, NUM_STEPS, NUM_TRAIN, make_world

PAGE = Path(__file__).parents[2] / "examples/one_page.py"
SAME = {"learning_rate": 1e-3, "warmup_fraction": 0.4, "weight_decay": 0.1, "max_grad_norm": 0.5}  # under either name
Real = namedtuple("Real", "losses margins grad_norms gradient")


def open_page():
    spec = importlib.util.spec_from_file_location("one_page", PAGE)
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    return page


page = open_page()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the ranks have."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def real(world, tmp_path_factory):
    """What the real trainer says of every step, and the gradient of its first before clipping: one rank, float32."""
    staging, objective = tmp_path_factory.mktemp("staging"), {"name": "dpo", "beta": 0.2}
    spec = world.spec(staging, objective=objective, schedule="cosine", **SAME)
    gang = Gang(1)
    try:
        ((events, error),) = gang.run(jobs.train, spec)
        (first,) = gang.run(jobs.gradient, spec, 0)
    finally:
        gang.close()
    assert not error
    steps = [event.metrics for event in events if isinstance(event, Stepped)]
    series = ([step[name] for step in steps] for name in ("loss", "rewards/margins", "grad_norm"))
    return Real(*series, first.gradient)


@pytest.fixture(scope="module")
def pairs(world):
    return page.read_pairs(AutoTokenizer.from_pretrained(world.reference), world.folder / "train.jsonl")


@pytest.fixture(scope="module")
def ours(world, pairs):
    """(steps, clipped gradient of the first) of the page."""
    model = AutoModelForCausalLM.from_pretrained(world.reference, dtype=torch.float32).eval()
    steps, gradient = [], {}
    for step in page.train(model, pairs, beta=0.2, batch_size=GLOBAL_BATCH, seed=3, **SAME):
        steps.append(step)
        gradient = gradient or {name: p.grad.numpy().copy() for name, p in model.named_parameters()}
    return steps, gradient


def norm(gradient):
    return np.sqrt(sum((value.astype(np.float64) ** 2).sum() for value in gradient.values()))


def test_every_step_has_the_loss_of_the_real_trainer(ours, real):
    steps, _ = ours
    assert [step.step for step in steps] == list(range(1, NUM_STEPS + 1))
    assert [step.loss for step in steps] == pytest.approx(real.losses, abs=1e-5)
    assert [step.margin for step in steps] == pytest.approx(real.margins, abs=1e-4)
    assert [step.grad_norm for step in steps] == pytest.approx(real.grad_norms, rel=1e-4)
    assert real.losses[0] - real.losses[2] > 0.01  # the updates before it did something


def test_the_first_gradient_is_that_of_the_real_trainer(ours, real):
    _, gradient = ours
    assert norm(real.gradient) > 2 * SAME["max_grad_norm"]  # it is clipped
    scale = SAME["max_grad_norm"] / norm(real.gradient)
    expected = {name: scale * value for name, value in real.gradient.items()}
    assert gradient.keys() == expected.keys()
    assert norm({name: gradient[name] - expected[name] for name in expected}) <= 1e-5 * norm(expected)


def test_pairs_are_the_token_ids_of_the_run(world, pairs):
    table = ExampleTable.open(world.data, "train")
    assert len(pairs) == len(table) == NUM_TRAIN
    for example, pair in enumerate(pairs):
        assert pair.prompt == table.prompt_ids(example).tolist()
        assert [pair.chosen, pair.rejected] == [ids.tolist() for ids in table.answer_ids(example)]


def test_an_answer_that_merges_with_the_prompt_is_tokenised_apart(world):
    tokenizer = TextTokenizer(str(world.reference))
    text = Rendered("Take not", ["es", " yes"])
    (expected,) = encode(tokenizer, [text], max_length=99, overlong="error")
    assert expected.merged
    pair = page.encode(tokenizer.tokenizer, text.prompt, *text.answers)
    assert pair == (expected.prompt_ids, *expected.answer_ids)


def test_every_epoch_has_the_batches_of_the_run():
    order = Order(10, 4, epochs=3, seed=5)
    for step in range(order.num_steps):
        assert page.batch_of(step, 10, 4, 5) == order.examples(step).tolist()
    assert order.num_steps == 9


@pytest.mark.parametrize("warmup_fraction", [0.0, 0.1, 0.5, 1.0])
def test_every_step_has_the_learning_rate_of_the_run(warmup_fraction):
    for step in range(13):
        expected = learning_rate(step, 13, peak=2e-4, warmup_fraction=warmup_fraction, schedule="cosine")
        assert page.learning_rate_of(step, 13, 2e-4, warmup_fraction) == expected


def test_defaults_are_those_of_the_config():
    train = TrainSection()
    names = {"learning_rate", "warmup_fraction", "epochs", "weight_decay", "max_grad_norm"}
    expected = {name: getattr(train, name) for name in names}
    objective = ObjectiveSection().terms[0]
    assert (objective.name, train.schedule, train.adam_beta1, train.adam_beta2) == ("dpo", "cosine", 0.9, 0.999)
    expected |= {"beta": objective.parameters["beta"], "batch_size": train.global_batch_pairs}
    assert page.train.__kwdefaults__ == expected | {"seed": RunSection(dir="anywhere").seed}


def test_the_command_prints_a_line_for_each_step(world, capsys):
    options = ["--batch-size", "40", "--epochs", "2", "--learning-rate", "1e-3"]
    page.main([str(world.reference), str(world.folder / "train.jsonl"), *options])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["step", str(number)] for number in (1, 2, 3, 4)]
    assert re.fullmatch(r"step 1  loss 0\.693147  margin \+0\.000000  grad norm \d+\.\d{4}", lines[0])
    assert float(lines[3].split()[3]) < 0.69


def test_the_page_is_short_and_stands_alone():
    text = PAGE.read_text()
    assert not re.search(r"^\s*(from|import) raydpo", text, re.MULTILINE)
    assert len(text.splitlines()) < 200


def test_every_file_that_the_page_names_exists() -> None:
    named = re.findall(r"raydpo/[\w/]+\.py|raydpo/\w+/", PAGE.read_text())
    assert len(named) > 8
    assert [name for name in named if not (PAGE.parents[1] / name).exists()] == []
