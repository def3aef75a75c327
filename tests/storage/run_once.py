"""`python -m tests.storage.run_once VERB TOY URL`: one verb on the toy of tests/pipelines, in a process that can be killed."""

from __future__ import annotations

import sys
from pathlib import Path

from raydpo.pipelines import run_rounds, train
from tests.pipelines.rounds.toy_rounds import rounds_config
from tests.pipelines.toy import Toy
from tests.storage.runs import remote_config


def main(verb: str, root: Path, url: str) -> None:
    toy = Toy(root, root / "model", root / "other", root / "train.jsonl", root / "eval.jsonl", root / "cache")
    if verb == "train":
        train(remote_config(toy, url))
    else:
        run_rounds(rounds_config(toy, Path("unused"), {"run.dir": url}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
