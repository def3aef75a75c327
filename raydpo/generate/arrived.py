"""What a push brought, as weights that an engine takes: an adapter that came alone is merged here.

Comes in: a mapped file. Goes out: name in memory -> CPU tensor, part by part. Decision: the matrices below the adapter are read
from the folder that training began with, one by one, and merged by the function that trainers would have merged them with: the
same bits as merged matrices, whichever policy the engine holds now, and none of their roundings adds up over pushes. Price:
each generator computes every product, on its CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raydpo.artifacts.elsewhere import bring
from raydpo.generate.mapped_weights import MappedWeights
from raydpo.generate.weights import weights_in
from raydpo.models.hollow import WholeNeeded, hollow_model
from raydpo.models.merged_matrix import merged
from raydpo.schema.shared_weights import AdaptedMatrix, factor_name

NUM_FACTORS = 3
"""Of a matrix at most: the two of the product, and DoRA's magnitudes."""


def arrived(weights: MappedWeights) -> Iterator[Mapping[str, Any]]:
    """Parts of what `weights` say of a policy: themselves, or matrix by matrix what their adapter makes of its start.

    Raises ConfigError where the folder of the start cannot be read.
    """
    adapted = weights.shared.adapted
    if not adapted:
        yield weights
        return
    rest = dict(weights)
    with _start(Path(weights.shared.start), adapted) as matrix_of:
        for each in adapted:
            names = [factor_name(each.name, place) for place in range(NUM_FACTORS)]
            factors = [rest.pop(name) for name in names if name in rest]
            yield {each.name: merged(matrix_of(each), factors, each)}
    yield rest


@contextmanager
def _start(folder: Path, adapted: tuple[AdaptedMatrix, ...]) -> Iterator[Callable[[AdaptedMatrix], Tensor]]:
    """Reads a matrix of the model in `folder` as the trainers have it below their adapter."""
    bring(folder)
    dtypes = {each.dtype for each in adapted}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    try:
        hollow = hollow_model(folder, dtype, "auto")
    except WholeNeeded:
        whole = weights_in(str(folder), dtype)
        yield lambda each: whole[each.name].to(getattr(torch, each.dtype))
        return
    hollow.reader.looks = False  # trainers began from these files, and looked
    named = dict(hollow.model.named_parameters(remove_duplicate=False))
    with closing(hollow.reader):
        yield lambda each: hollow.reader.whole(hollow.places[id(named[each.name])], getattr(torch, each.dtype))
