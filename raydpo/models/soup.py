"""Several model folders -> one whose weights are the mean of theirs: a model soup.

Comes in: transformers folders of one architecture. Goes out: the first folder's files with weights averaged. Decision: tensor
by tensor, summed in float64 and rounded once to the first model's dtype, so that a soup of one model is that model, bit for
bit. Adapters are refused: a mean of A and a mean of B do not make the mean of B A.

Wortsman et al. 2022, arXiv 2203.05482 (uniform soup).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from raydpo.errors import ConfigError
from raydpo.models.blend import other_shapes, tensor_files
from raydpo.models.shard_files import begin, put


def soup(folders: Sequence[Path], shares: Sequence[float], out: Path) -> None:
    """Write sum_i shares[i] * model i to the new folder `out`. shares: of each folder, above 0; they are divided by their sum.

    Tensors that are no floating-point numbers are the first model's. Raises ConfigError, with every problem, where the models
    do not fit together; nothing is written then.
    """
    _check(folders)
    total = sum(shares)
    out.mkdir(parents=True)
    places = [tensor_files(folder) for folder in folders]
    for path in sorted(set(places[0].values())):
        names = sorted(name for name, place in places[0].items() if place == path)
        _write(out / path.name, path, names, places[1:], [share / total for share in shares])
    for path in folders[0].iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name != "COMMIT.json":
            shutil.copyfile(path, out / path.name)


def _check(folders: Sequence[Path]) -> None:
    problems = [f"{folder} is an adapter" for folder in folders if (folder / "adapter_config.json").is_file()]
    if problems:
        text = "; a mean of adapters is not the adapter of the mean. Name the merged models (model_merged) instead."
        raise ConfigError([problem + text for problem in problems])
    first = tensor_files(folders[0]).keys()
    for folder in folders[1:]:
        names = tensor_files(folder).keys()
        if apart := sorted(first ^ names):
            where = folders[0] if apart[0] in first else folder
            problems.append(
                f"{len(apart)} tensors are in one of {folders[0]} and {folder} alone; {apart[0]} is in {where}"
            )
        shapes = other_shapes(folders[0], folder)
        problems += [f"{folder} has other shapes than {folders[0]}: {'; '.join(shapes[:3])}"] if shapes else []
    if problems:
        raise ConfigError([f"{problem}. A soup needs models of one architecture." for problem in problems])


def _write(
    out: Path, path: Path, names: Sequence[str], others: Sequence[dict[str, Path]], shares: Sequence[float]
) -> None:
    """The tensors `names` of the first model's file `path`, averaged, in the file `out`."""
    with safe_open(path, "pt") as first:
        planned = {name: first.get_tensor(name).to("meta") for name in names}
        starts = begin(out, planned)
        for name in names:
            tensor = first.get_tensor(name)
            mean = _mean_of(tensor, [_read(each[name], name) for each in others], shares)
            put(out, starts[name], mean)


def _read(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as tensors:
        found: Tensor = tensors.get_tensor(name)
    return found


def _mean_of(first: Tensor, others: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    if not first.is_floating_point():
        return first
    total = first.to(torch.float64) * shares[0]
    for share, other in zip(shares[1:], others, strict=True):
        total.add_(other.to(torch.float64), alpha=share)
    return total.to(first.dtype)
