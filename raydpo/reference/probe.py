"""Probe rows: a few cached rows, scored a second time, that must come out the same.

Decision: four examples evenly spaced by length. One tolerance for all probes, by dtype: it is the noise between two
batchings of the same kernels, far below what another model would show.
"""

from __future__ import annotations

from pathlib import Path

from raydpo.artifacts import ExampleTable
from raydpo.models.probe import probe_examples
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
