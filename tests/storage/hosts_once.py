"""The driver on the first of two hosts: a training that is interrupted and, in a second attempt, goes on to its end.

Writes the model and says what was said. Run on the host itself: `python -m tests.storage.hosts_once FOLDER`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ray

from raydpo.artifacts.object_store import ObjectStore
from raydpo.pipelines import train
from raydpo.runtime import session
from raydpo.schema.events import Advanced, Event, Note
from tests.pipelines.toy import Toy
from tests.runtime.hosts import wait_for
from tests.storage.runs import remote_config

URL = "s3://bucket/team/run"
CHANGES = {"run.runtime": "ray", "train.num_workers": 2, "reference.cache_dir": "s3://bucket/cache"}


class Interrupted(Exception):
    """What ends the first attempt."""


def main(folder: Path) -> None:
    toy = Toy(
        folder, folder / "model", folder / "other", folder / "train.jsonl", folder / "eval.jsonl", folder / "cache"
    )

    def observe(event: Event) -> None:
        if isinstance(event, Note):
            print(event.text, flush=True)

    with session(kind="ray"):
        wait_for(lambda: sum(node["Alive"] for node in ray.nodes()) == 2, "the second host")
        config = remote_config(toy, URL, CHANGES)

        def interrupt(event: Event) -> None:
            observe(event)
            if isinstance(event, Advanced) and (event.stage, event.done) == ("train", 3):
                raise Interrupted

        try:
            train(config, interrupt)
        except Interrupted:
            print("interrupted", flush=True)
        summary = train(config, observe)
        print(f"resumed from step {summary['train']['resumed_from_step']}", flush=True)
    (folder / "trained.safetensors").write_bytes(ObjectStore(URL).get("model/model.safetensors") or b"")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
