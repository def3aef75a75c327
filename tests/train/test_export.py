"""`model/` of a checkpoint is a plain transformers folder with the weights of the trainer's last evaluation."""

import stat
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from raydpo.artifacts import ExampleTable
from raydpo.metrics import means
from raydpo.models.blend import tensor_files
from raydpo.models.resolve import ResolvedModel
from raydpo.reference.held import hold
from raydpo.train import evaluation
from raydpo.train.trainer import NAMES
from tests.train import export_jobs
from tests.train.gang import Place
from tests.train.world import plain_nats

pytestmark = pytest.mark.slow


def mean_logps(model, table):
    """(chosen, rejected) means of plain forwards over a split."""
    rows = [[plain_nats(model, table.prompt_ids(e), a).sum() for a in table.answer_ids(e)] for e in range(len(table))]
    return np.mean(rows, axis=0)


@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 0), (1, 2), (1, 3), (2, 0), (2, 2), (2, 3)])
def test_the_exported_model_is_the_one_that_was_evaluated(runs, world, num_ranks, stage):
    run = runs.get(num_ranks=num_ranks, zero_stage=stage)
    folder = run.staged() / "model"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    chosen, rejected = mean_logps(model, ExampleTable.open(world.data, "eval"))
    assert chosen == pytest.approx(run.last_evaluation["eval/logps/chosen"], abs=1e-3)
    assert rejected == pytest.approx(run.last_evaluation["eval/logps/rejected"], abs=1e-3)
    assert abs(chosen - run.first_evaluation["eval/logps/chosen"]) > 1  # it is not the start model


def test_the_folder_is_complete(runs, world):
    folder = runs.get(num_ranks=2, zero_stage=3).staged() / "model"
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt"))]
    text = world.train_rows[0]["prompt"]
    start, exported = (AutoTokenizer.from_pretrained(path)(text).input_ids for path in (world.reference, folder))
    assert exported == start
    assert (
        GenerationConfig.from_pretrained(folder).eos_token_id
        == GenerationConfig.from_pretrained(world.reference).eos_token_id
    )
    assert all(path.stat().st_mode & stat.S_IROTH for path in folder.iterdir())
    assert AutoModelForCausalLM.from_pretrained(folder).config.tie_word_embeddings is True


@pytest.mark.parametrize("stage", [0, 3])
def test_bf16_exports_bf16(runs, stage):
    run = runs.get(num_ranks=2 if stage else 1, dtype="bfloat16", zero_stage=stage)
    model = AutoModelForCausalLM.from_pretrained(run.staged() / "model", dtype="auto")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_evaluate_of_the_exported_model_repeats_the_last_evaluation(runs, num_ranks):
    run = runs.get(zero_stage=2)
    spec = runs.spec(policy=run.staged() / "model")
    assert spec.model == ResolvedModel("start", None, run.staged() / "model")
    total = np.zeros(2 * len(NAMES))
    for rank in range(num_ranks):
        whole = partial(hold, spec.model, spec.dtype, spec.config.model.attention, "whole", 1)
        *progress, last = evaluation.run(Place(rank, num_ranks), spec, whole)
        assert last.done
        assert [share.done for share in progress] == [False] * len(progress)
        total += last.vector
    found = means(NAMES, total, "eval/")
    assert found == pytest.approx(run.last_evaluation, abs=1e-4)
    assert set(found) == set(run.last_evaluation)


@pytest.mark.parametrize(("num_ranks", "stage"), [(2, 3), (1, 0)])
def test_a_model_larger_than_a_file_is_written_tensor_by_tensor(runs, world, num_ranks, stage):
    """Before any step, so that every stage has the same bits. Without the optimizer's state, whose copy counts, too."""
    found = {}
    for shard_bytes in ("1GB", 20_000):
        spec = runs.spec(zero_stage=stage, save="weights", max_shard_size=shard_bytes)
        spec.staging.mkdir(parents=True)
        first, *others = runs.gangs[num_ranks].run(export_jobs.export_start, spec)
        assert [other.held for other in others] == [0] * len(others)
        found[shard_bytes] = (first, spec.staging / "step-000000/model")
    (whole, one_file), (streamed, files) = found.values()
    assert whole.held == whole.weights
    assert streamed.held <= streamed.largest < streamed.weights / 2
    names = {path.name for path in files.iterdir()}
    assert "model.safetensors" not in names
    assert len([name for name in names if name.endswith(".safetensors")]) > 2
    assert not [path for path in files.parent.iterdir() if path.name == "weights"]
    assert {name for name in names if ".safetensors" not in name} == {path.name for path in one_file.iterdir()} - {
        "model.safetensors"
    }
    assert all(path.stat().st_mode & stat.S_IROTH for path in files.iterdir())
    read = [
        {name: load_file(path)[name] for name, path in tensor_files(folder).items()}
        for folder in (files, one_file, world.reference)
    ]
    for other in read[1:]:
        assert read[0].keys() == other.keys()
        assert all(torch.equal(read[0][name], tensor) for name, tensor in other.items())
    prompt, answer = np.arange(5, 9), np.arange(9, 14)
    ours, theirs = (
        plain_nats(AutoModelForCausalLM.from_pretrained(path, dtype="auto"), prompt, answer)
        for path in (files, one_file)
    )
    assert np.array_equal(ours, theirs)
