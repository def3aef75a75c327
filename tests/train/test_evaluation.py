"""`raydpo evaluate` on one rank: what it refuses to measure."""

import json
import shutil

import pytest

from raydpo.errors import ConfigError
from raydpo.train import evaluation
from tests.train.gang import Place


def test_positions_that_depend_on_the_rows_beside_are_refused(runs, world, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(world.policy, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}
    config |= {"max_position_embeddings": 32}
    (folder / "config.json").write_text(json.dumps(config))
    shares = evaluation.run(Place(0, 1), runs.spec(objective="simpo", policy=folder))
    with pytest.raises(ConfigError, match="rescales its rotary positions beyond 32 tokens"):
        list(shares)
