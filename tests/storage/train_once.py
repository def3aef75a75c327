"""`python -m tests.storage.train_once TOY URL`: one training on the toy of tests/pipelines, in a process that can be killed."""

from __future__ import annotations

import sys
from pathlib import Path

from raydpo.pipelines import train
from tests.pipelines.toy import Toy
from tests.storage.runs import remote_config


def main(root: Path, url: str) -> None:
    toy = Toy(root, root / "model", root / "other", root / "train.jsonl", root / "eval.jsonl", root / "cache")
    train(remote_config(toy, url))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
