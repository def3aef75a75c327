"""Probe rows: a few cached rows, scored a second time, that must come out the same.

Decision: four examples evenly spaced by length. One tolerance for all probes, by dtype: it is the noise between two
batchings of the same kernels, far below what another model would show.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raydpo.artifacts import ExampleTable
from raydpo.models.probe import probe_examples, tolerance_nats
from raydpo.reference.plan import ShardWork


def probe_work(data: Path, num_answers: int) -> ShardWork:
    """The probe rows of the training split."""
    table = ExampleTable.open(data, "train")
    lengths = table.prompt_lengths + table.answer_lengths[:, :num_answers].sum(axis=1)
    examples = probe_examples(lengths)
    rows = [(example, answer) for example in examples for answer in range(num_answers)]
    return ShardWork(
        name="probe",
        places=tuple(("train", example, answer) for example, answer in rows),
        keys=tuple(table.row_keys(example)[answer] for example, answer in rows),
        lengths=tuple(int(table.prompt_lengths[e] + table.answer_lengths[e, a]) for e, a in rows),
    )


def compare_probe(fresh: list[np.ndarray], cached: list[np.ndarray], dtype: str) -> tuple[float, float, str]:
    """(largest difference of a row's sum in nats, what was allowed for it, the problem or "")."""
    now = np.array([values.astype(np.float64).sum() for values in fresh])
    then = np.array([values.astype(np.float64).sum() for values in cached])
    differences, allowed = np.abs(now - then), tolerance_nats(dtype, then)
    at = int(np.argmax(differences - allowed))
    problem = ""
    if not (differences <= allowed).all():
        problem = (
            f"the cache says {then[at]:.6f} nats for a probe row, the reference now gives {now[at]:.6f}: they differ by "
            f"{differences[at]:.3g}, allowed are {allowed[at]:.3g} in {dtype}. Margins would have been measured from the wrong "
            "reference. The cache was made by other kernels or on other hardware: use another reference.cache_dir."
        )
    return float(differences.max()), float(allowed[differences.argmax()]), problem
