"""`raydpo plan`: what it says, of what, and that no weight is read for it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from raydpo import cli
from raydpo.capacity.lengths import Lengths
from raydpo.capacity.other_roles import staging_parts, streams
from raydpo.capacity.skeleton import skeleton_of
from raydpo.capacity.sought import load_of
from raydpo.capacity.step_time import GPU, moved_bytes
from raydpo.capacity.zero_bytes import ZeroRank, bucket_at, gathered, gradients, masters, moments, weights
from raydpo.config import Config
from raydpo.config.sections import TrainSection
from raydpo.quickstart.bpe import train_bpe

LLAMA_8B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
}
NUM_WEIGHTS = 8_030_261_248
TOKENS = ["--prompt-tokens", "300", "--answer-tokens", "250", "--examples", "60000"]


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a model of 8 * 10^9 weights of which nothing is there but its config and the head of an empty file."""
    root = tmp_path_factory.mktemp("plan")
    train_bpe(["sort 12 34 no"] * 2, 280, root / "model")
    (root / "model" / "config.json").write_text(json.dumps(LLAMA_8B))
    (root / "model" / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (root / "pairs.jsonl").write_text("")
    train = {"gpus_per_worker": 1, "num_workers": 8, "zero_stage": 2}
    found = {
        "run": {"dir": str(root / "run")},
        "model": {"path": str(root / "model")},
        "data": {"train": [str(root / "pairs.jsonl")]},
        "reference": {"gpus_per_worker": 1},
        "train": train,
    }
    (root / "run.yaml").write_text(yaml.safe_dump(found))
    return root / "run.yaml"


def planned(path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[dict[str, Any], str]:
    assert cli.main(["plan", str(path), *TOKENS, "--num-devices", "8", "--host-gb", "1000", "--json", *more]) == 0
    said = capsys.readouterr()
    return json.loads(said.out.splitlines()[-1]), said.err


def test_a_model_of_8b_on_gpus_of_80_gb(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, text = planned(run_file, capsys, "--device-gb", "80")
    assert plan["model"]["weights"] == plan["model"]["trained"] == NUM_WEIGHTS
    assert plan["model"]["dtype"] == "bfloat16"
    train, reference = plan["roles"][0], plan["roles"][-1]
    assert (train["role"], reference["role"]) == ("train", "reference")
    assert train["parts"]["weights"] == reference["parts"]["weights"] == 2 * NUM_WEIGHTS
    assert train["parts"]["optimizer"] == NUM_WEIGHTS
    assert plan["disk"]["parts"]["checkpoints (3)"] >= 3 * 14 * NUM_WEIGHTS or plan["disk"]["bytes"] > 14 * NUM_WEIGHTS
    assert max(map(len, text.splitlines())) <= 100
    assert "8 ranks, ZeRO 2" in text
    assert not (run_file.parent / "run").exists()


def test_what_does_not_fit_is_said_with_what_would_and_the_largest_budget_is_the_largest(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, text = planned(run_file, capsys, "--device-gb", "40")
    assert plan["fits"] is False
    assert "DOES NOT FIT" in text
    fitting = [change for change in plan["changes"] if change["fits"]]
    assert fitting
    assert all(change["bytes"] <= 36e9 for change in fitting)
    assert fitting[0]["said"] in " ".join(text.split())
    sharded = ["train.zero_stage=3", "train.gradient_checkpointing=true"]
    plan, _ = planned(run_file, capsys, "--device-gb", "80", *sharded)
    assert plan["fits"] is True
    largest = plan["micro_batch"]["largest"]
    assert largest > 8192
    at, _ = planned(run_file, capsys, "--device-gb", "80", *sharded, f"train.tokens_per_microbatch={largest}")
    assert at["fits"] is True
    assert at["micro_batch"]["largest"] == largest


def test_what_is_offloaded_fits_only_where_main_memory_has_room(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_host = {}
    for host_gb in (100, 1000):
        plan, text = planned(run_file, capsys, "--device-gb", "40", "--host-gb", str(host_gb))
        of_host[host_gb] = [change for change in plan["changes"] if "offload" in change["said"]]
        assert ("of main memory a rank" in text) == (host_gb == 1000)
    # 12 bytes a weight over eight ranks, all on one machine
    assert all(change["host_bytes"] >= 12 * NUM_WEIGHTS / 8 for change in of_host[100])
    assert [change["fits"] for change in of_host[100]] == [False] * len(of_host[100])
    assert any(change["fits"] for change in of_host[1000])


def test_auto_streams_a_reference_that_is_too_large_unless_it_is_packed(run_file: Path) -> None:
    skeleton, config = skeleton_of(run_file.parent / "model"), Config.load(run_file)
    whole = 2 * NUM_WEIGHTS
    assert streams(skeleton, config, 2, 1.2 * whole, is_packed=False)
    assert not streams(skeleton, config, 2, 1.3 * whole, is_packed=False)
    assert not streams(skeleton, config, 2, 1.2 * whole, is_packed=True)
    assert not streams(skeleton, config, 2, None, is_packed=False)


def test_a_whole_reference_that_does_not_fit_is_told_what_it_takes_by_layers(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*more: str) -> list[str]:
        plan, _ = planned(run_file, capsys, "--device-gb", "16", *more)
        return [note for note in plan["notes"] if "one layer at a time" in note]

    assert said() == [], "auto streams it anyway"
    (note,) = said("reference.weights=whole")
    taken = float(note.split("it takes ")[1].split(" GB")[0])
    assert 2 < taken < 13
    assert "and fits (reference.weights: auto or streamed)" in note
    (note,) = said("reference.weights=whole", "reference.stream_tokens=2000000")
    assert "does not fit, either" in note


def test_lengths_are_given_together(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(run_file), "--prompt-tokens", "300"]) == 2
    assert "--examples" in capsys.readouterr().err


def rank(stage: int, num_ranks: int = 4, **more: Any) -> ZeroRank:
    numbers = {"dtype_bytes": 2, "trained": 1000, "frozen": 200, "largest": 100, "head": 50, "is_tied": False}
    return ZeroRank(stage=stage, num_ranks=num_ranks, bucket=500, **(numbers | more))


@pytest.mark.parametrize(
    ("trained", "frozen", "held"),
    [(10**9, 0, 10**9), (10**10, 0, 500), (10**8, 10**10, 10**8), (10**10, 10**11, 10**10)],
    ids=["of one file", "larger", "adapter", "large adapter"],
)
def test_what_a_checkpoint_copies(trained: int, frozen: int, held: int) -> None:
    """A model that is larger than a file goes there tensor by tensor, an adapter never does."""
    first = rank(3, trained=trained, frozen=frozen, largest=500)
    assert staging_parts(first, trained, False) == {"state": 0, "model of the first rank": 2 * held}
    if not frozen:
        assert staging_parts(first, trained, False, 2 * trained)["model of the first rank"] == 2 * trained
        assert staging_parts(first, trained, False, 2 * trained - 1)["model of the first rank"] == 2 * 500


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (0, (2400, 0, 8000, 4000, 0)),
        (1, (2400, 1000, 2000, 2000, 0)),
        (2, (2400, 1000, 2000, 1000, 0)),
        (3, (600, 1000, 2000, 1000, 2400)),
    ],
)
def test_what_each_stage_holds(stage: int, expected: tuple[int, ...]) -> None:
    one = rank(stage)
    assert (weights(one), masters(one), moments(one), gradients(one), gathered(one)) == expected


def test_a_single_rank_sends_nothing_and_stage_3_gathers_for_every_micro_batch() -> None:
    assert moved_bytes(rank(3, num_ranks=1), 5) == moved_bytes(rank(0, num_ranks=1), 5) == 0
    assert moved_bytes(rank(3), 2) == 2 * moved_bytes(rank(3), 1)
    assert moved_bytes(rank(1), 7) == moved_bytes(rank(2), 1) == 0.75 * (2 + 4) * 1000
    assert moved_bytes(rank(0), 7) == 0.75 * 2 * 4 * 1000
    assert GPU.flops > 1e14


def test_a_micro_batch_is_the_budget_the_longest_example_or_what_a_rank_has() -> None:
    lengths = Lengths(prompt=100, answer=50, longest=150, num_answers=2, examples=10, held_out=0, source="")
    assert (lengths.example("packed"), lengths.example("padded")) == (200, 300)
    assert (lengths.longest_example("packed"), lengths.longest_example("padded")) == (200, 300)
    train = TrainSection(global_batch_pairs=8, tokens_per_microbatch=500)
    assert lengths.micro_batch(train, 1, "packed") == 500
    assert lengths.micro_batch(train, 4, "packed") == 400
    assert lengths.micro_batch(train.model_copy(update={"tokens_per_microbatch": 64}), 4, "packed") == 200
    assert lengths.num_micro_batches(train, 1, "packed") == 4
    assert load_of.__doc__


def test_ranks_that_share_sequences_are_one_that_reads_data() -> None:
    lengths = Lengths(prompt=100, answer=50, longest=150, num_answers=2, examples=10, held_out=0, source="")
    train = TrainSection(global_batch_pairs=8, tokens_per_microbatch=500, num_workers=8, sequence_parallel_size=4)
    assert lengths.micro_batch(train, 8, "packed") == 500
    assert lengths.num_micro_batches(train, 8, "packed") == 2
    assert lengths.num_micro_batches(train, 16, "packed") == 1
    assert lengths.answers_of_rank(400, 1, "packed") == 200
    assert lengths.answers_of_rank(400, 2, "packed") == 100, "an example of two"
    assert lengths.answers_of_rank(200, 2, "packed") == 100, "all answers are behind the half with the prompt"
    assert lengths.answers_of_rank(200, 4, "packed") == 50, "nothing but answers"
    assert lengths.answers_of_rank(600, 4, "packed") == 100, "a stretch of 150 tokens with both answers of an example"


def test_a_plan_with_ranks_that_share_sequences(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """32 heads: four ranks take a quarter of a stream of four times the tokens each."""
    long = ["--device-gb", "80", "train.zero_stage=3", "train.tokens_per_microbatch=16384"]
    alone, _ = planned(run_file, capsys, *long)
    shared, text = planned(run_file, capsys, *long, "train.sequence_parallel_size=4")
    train, other = alone["roles"][0]["parts"], shared["roles"][0]["parts"]
    assert train["optimizer"] == other["optimizer"], "weights are sharded over all ranks as ever"
    assert other["activations"] == pytest.approx(train["activations"] / 4, rel=0.1)
    assert shared["micro_batch"]["largest"] == pytest.approx(4 * alone["micro_batch"]["largest"], rel=0.15)
    assert "8 ranks in groups of 4 that share sequences" in text
    assert shared["time"]["parts_s"]["arithmetic"] == pytest.approx(alone["time"]["parts_s"]["arithmetic"])
    more_ranks = [change["keys"].get("train.num_workers") for change in shared["changes"]]
    assert all(number is None or number % 4 == 0 for number in more_ranks)
    odd = ["train.num_workers=6", "train.sequence_parallel_size=3"]
    assert cli.main(["plan", str(run_file), *TOKENS, *odd]) == 2
    assert "32" in capsys.readouterr().err


def test_stage_1_has_its_bucket_until_the_last_micro_batch_and_one_rank_on_a_cpu_copies_no_weights() -> None:
    assert [bucket_at(rank(1), "head"), bucket_at(rank(1, accumulates=False), "head")] == [1000, 0]
    assert [bucket_at(rank(2), "head"), bucket_at(rank(1), "update")] == [0, 0]
    alone = {"num_ranks": 1, "offload_parameters": True}
    assert [gathered(rank(3, **alone)), gathered(rank(3, **alone, on_gpu=True))] == [0, 2400]
