"""A training on two real nodes of which one goes, another comes, and that one is drained. Run as a module, with a folder.

Goes out: in the folder, run/ and alone/ (the same training without a cluster), and notes.txt, what was said.
"""

import os
import sys
import time
from pathlib import Path

import psutil

from raydpo.driver import training
from raydpo.pipelines import train
from raydpo.runtime import Demand, session, wait_for_room
from raydpo.schema.events import Advanced
from tests.pipelines.toy import Notes, config, make_toy
from tests.runtime.ray_head import RayHead, ray_head

CHANGES = {
    "run.runtime": "ray",
    "train.num_workers": {"min": 1, "max": 2},
    "train.save_every": 2,
    "train.epochs": 60,
    "train.learning_rate": 2e-4,
}


class Nodes(Notes):
    """Takes a node away after one step, brings another after a later one, and drains that one in the end."""

    def __init__(self, head: RayHead, node, away: int, back: int) -> None:
        super().__init__()
        self.head, self.node, self.away, self.back = head, node, away, back
        self.drain = 0

    def __call__(self, event):
        super().__call__(event)
        if not isinstance(event, Advanced) or event.stage != "train":
            return
        if event.done == self.away and self.node is not None:
            for process in [*psutil.Process(self.node.pid).children(recursive=True), self.node]:
                process.kill()  # all at once, as when power goes
            self.node = None
        if event.done == self.back and self.back:
            self.back = 0
            self.head.add_node(1)
            wait_for_room(Demand("train", 2, 1.0))
        if "2 ranks from here on, 1 before" in self.info:
            self.drain = self.drain or event.done + 5
        if event.done == self.drain:
            drain_a_node()


def drain_a_node() -> None:
    """As a cloud that takes a machine back: with notice."""
    import ray
    from ray.core.generated import autoscaler_pb2

    context = ray.get_runtime_context()
    (other,) = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != context.get_node_id()]
    client = ray._raylet.GcsClient(address=context.gcs_address)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    assert client.drain_node(other, reason, "taken back", int(1000 * (time.time() + 3600)))[0]


def main(folder: Path) -> None:
    toy = make_toy(folder)
    with ray_head(1) as head:
        node = head.add_node(1)
        training._ASK_NODES_S = 0.1
        os.environ.update({name: text for name, text in head.driver_environment().items() if name.startswith("RAY_")})
        notes = Nodes(head, node, away=7, back=30)
        with session(kind="ray"):
            wait_for_room(Demand("train", 2, 1.0))
            # Who receives weights bounds how far ranks are ahead: they stand while a node comes.
            train(config(toy, folder / "run", CHANGES), notes, receive=lambda part: None)
    (folder / "notes.txt").write_text("\n".join(notes.warning + notes.info))
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        del os.environ[name]
    train(config(toy, folder / "alone", CHANGES | {"run.runtime": "local", "train.num_workers": 2}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
