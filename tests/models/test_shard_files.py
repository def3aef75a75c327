"""Files that are written tensor by tensor: the bytes of safetensors itself, and shards that transformers reads."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from raydpo.models.shard_files import ShardFiles

DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    found = {
        f'{dtype[::-1]}.é"{n}': torch.randn(3, n).mul(9).to(getattr(torch, dtype)) for dtype in DTYPES for n in (1, 4)
    }
    turned = torch.randn(4, 3).T
    return {**found, "turned": turned, "one": torch.tensor(2.5), "none": torch.zeros(0, 3)}


def test_one_file_has_the_bytes_of_safetensors(tmp_path):
    given = tensors()
    files = ShardFiles(tmp_path / "ours", {name: tensor.to("meta") for name, tensor in given.items()}, 10**6)
    for name in reversed(given):
        files.write(name, given[name])
    assert files.finish() == [tmp_path / "ours/model.safetensors"]
    save_file({name: tensor.contiguous() for name, tensor in given.items()}, tmp_path / "theirs", {"format": "pt"})
    assert (tmp_path / "ours/model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_shards_stay_below_the_bound_and_the_index_finds_every_tensor(tmp_path):
    given = {f"w{number}": torch.full((number,), float(number)) for number in (5, 3, 2, 30, 4, 1)}
    files = ShardFiles(tmp_path, given, 36)
    for name, tensor in given.items():
        files.write(name, tensor)
    *shards, _ = files.finish()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 4 * 45}
    places = {name: load_file(tmp_path / file) for name, file in index["weight_map"].items()}
    assert all(torch.equal(places[name][name], tensor) for name, tensor in given.items())
    sizes = [sum(tensor.nbytes for tensor in load_file(path).values()) for path in shards]
    assert sizes == [32, 8, 120, 20]
    assert [path.name for path in shards] == [f"model-0000{n}-of-00004.safetensors" for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("other", [torch.zeros(3), torch.zeros(2, dtype=torch.float64)], ids=["shape", "dtype"])
def test_a_tensor_that_is_not_as_planned_is_refused(tmp_path, other):
    files = ShardFiles(tmp_path, {"w": torch.zeros(2)}, 100)
    with pytest.raises(ValueError, match=r"w is .* not torch.float32 \[2\]"):
        files.write("w", other)


def test_a_tensor_that_never_came_is_named(tmp_path):
    files = ShardFiles(tmp_path, {"w": torch.zeros(2), "v": torch.zeros(2)}, 100)
    files.write("w", torch.zeros(2))
    with pytest.raises(ValueError, match="1 tensors were not written: v"):
        files.finish()
