"""Two model folders -> a third one whose weights are a weighted mean of theirs: how a reference follows a policy.

Comes in: transformers folders of one architecture, with safetensors in one file or in many. Goes out: a folder of the
files of the policy, with tensors in float32.
Decision: tensor by tensor, so that one of each folder and their mean are in memory, whatever the size of a file. Float32 for
every dtype, because what a small share adds would vanish in bfloat16; the price is twice the disk of a bfloat16 model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from raydpo.errors import ConfigError
from raydpo.models.shard_files import DTYPE_NAMES, SHARD_BYTES, begin, put

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def blend(policy: Path, reference: Path | None, alpha: float, out: Path) -> None:
    """Write alpha * policy + (1 - alpha) * reference to the new folder `out`, with everything else of `policy`.

    reference: may be None when alpha is 1. Tensors that only the reference has (copies of tied weights) are left out;
    those that are no floating-point numbers are the policy's. Raises ConfigError when the two do not fit together.
    """
    out.mkdir(parents=True)
    ours = tensor_files(policy)
    theirs = {} if reference is None else tensor_files(reference)
    if reference is not None and not ours.keys() <= theirs.keys():
        theirs = tensor_files(_saved_anew(reference, out / "renamed"))
    written = 0
    for path in sorted(set(ours.values())):
        names = sorted(name for name, place in ours.items() if place == path)
        written += _write_mean(path, names, theirs, alpha, out / path.name)
    shutil.rmtree(out / "renamed", ignore_errors=True)
    for path in policy.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            shutil.copyfile(path, out / path.name)
    if (out / INDEX).is_file():
        index = json.loads((out / INDEX).read_text())
        index["metadata"] = {**index.get("metadata", {}), "total_size": written}
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def tensor_files(folder: Path) -> dict[str, Path]:
    """Name of each tensor of a model folder -> the file that holds it."""
    if (folder / INDEX).is_file():
        places: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
        return {name: folder / file for name, file in places.items()}
    files = [folder / SINGLE] if (folder / SINGLE).is_file() else sorted(folder.glob("*.safetensors"))
    found: dict[str, Path] = {}
    for path in files:
        with safe_open(path, "pt") as tensors:
            found |= dict.fromkeys(tensors.keys(), path)
    return found


def other_shapes(first: Path, second: Path) -> list[str]:
    """A line for each tensor that both folders hold in different shapes. Reads no values."""
    shapes = [_shapes(folder) for folder in (first, second)]
    both = sorted(shapes[0].keys() & shapes[1].keys())
    return [f"{name}: {shapes[0][name]} and {shapes[1][name]}" for name in both if shapes[0][name] != shapes[1][name]]


def _shapes(folder: Path) -> dict[str, list[int]]:
    places, shapes = tensor_files(folder), dict[str, list[int]]()
    for path in sorted(set(places.values())):
        with safe_open(path, "pt") as tensors:
            shapes |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys() if name in places}  # noqa: SIM118
    return shapes


def _saved_anew(model: Path, folder: Path) -> Path:
    """The model under the names that this version of transformers gives its tensors.

    Tensor by tensor, but for a model that cannot be read in parts: all of that is in memory."""
    from raydpo.models.hollow import WholeNeeded, hollow_model
    from raydpo.models.pretrained import load_model
    from raydpo.models.streamed_weights import StreamedWeights, kept_buffers, without_data

    try:
        hollow = hollow_model(model, "float32", "eager")
    except WholeNeeded:
        load_model(model, "float32", "eager").save_pretrained(str(folder), max_shard_size=SHARD_BYTES)
        return folder
    stream = StreamedWeights(hollow.model, without_data(hollow.model), folder, SHARD_BYTES)
    for name, parameter in hollow.model.named_parameters():
        stream.add(name, hollow.reader.whole(hollow.places[id(parameter)], parameter.dtype))
    for name, buffer in kept_buffers(hollow.model):
        stream.add(name, buffer)
    stream.finish()
    return folder


def _write_mean(path: Path, names: list[str], theirs: Mapping[str, Path], alpha: float, out: Path) -> int:
    """Write the tensors `names` of the policy's file `path`, blended, to the safetensors file `out`: bytes of tensors."""
    with safe_open(path, "pt") as policy:
        planned = {name: _without_data(policy.get_slice(name)) for name in names}
        starts = begin(out, planned)
        for name in names:
            tensor = policy.get_tensor(name)
            is_number = tensor.is_floating_point()
            put(out, starts[name], _mean(name, tensor, theirs.get(name), alpha) if is_number else tensor)
    return sum(tensor.nbytes for tensor in planned.values())


def _without_data(stored: Any) -> Tensor:
    """What becomes of a tensor of the policy."""
    kept = {name: dtype for dtype, name in DTYPE_NAMES.items() if not dtype.is_floating_point}
    return torch.empty(stored.get_shape(), dtype=kept.get(stored.get_dtype(), torch.float32), device="meta")


def _mean(name: str, policy: Tensor, place: Path | None, alpha: float) -> Tensor:
    if alpha == 1:
        return policy.float()
    if place is None:
        raise ConfigError(
            f"the reference has no tensor {name}, which the policy has; a mean of the two needs one architecture. Nothing was "
            "written. Set reference.model to a model of the same kind, or leave reference.sync_every out."
        )
    with safe_open(place, "pt") as tensors:
        reference = tensors.get_tensor(name)
    if reference.shape != policy.shape:
        raise ConfigError(
            f"{name} is {list(policy.shape)} in the policy and {list(reference.shape)} in the reference; a mean of the two "
            "needs one shape. Nothing was written. Set reference.model to a model of the same shape, or leave "
            "reference.sync_every out."
        )
    return (policy.float() * alpha).add_(reference.float(), alpha=1 - alpha)
