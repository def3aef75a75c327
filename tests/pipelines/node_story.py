"""A training on two real nodes of which one goes, another comes, and that one is drained. Run as a module, with a folder.

Goes out: in the folder, run/ and alone/ (the same training without a cluster), and notes.txt, what was said.
"""

import faulthandler
import os
import sys
import time
from pathlib import Path

from raydpo.driver import training
from raydpo.pipelines import train
from raydpo.runtime import session
from raydpo.schema.events import Advanced, Note
from tests.pipelines.toy import Notes, config, make_toy
from tests.runtime.ray_head import RayHead, living_nodes, power_off, ray_head

LONGEST_S = 570.0
"""After that the story says where each of its threads is, and ends."""
CHANGES = {
    "run.runtime": "ray",
    "train.num_workers": {"min": 1, "max": 2},
    "train.save_every": 2,
    "train.epochs": 60,
    "train.learning_rate": 2e-4,
    "train.hang_timeout_s": 300,
}


class Nodes(Notes):
    """Takes a node away after one step, brings another after a later one, and drains that one in the end."""

    def __init__(self, head: RayHead, away: int, back: int) -> None:
        super().__init__()
        self.head, self.away, self.back = head, away, back
        self.node, self.other = head.join(1)
        self.drain = 0

    def __call__(self, event):
        super().__call__(event)
        if isinstance(event, Note):
            print(event.level, event.text, flush=True)
        if not isinstance(event, Advanced) or event.stage != "train":
            return
        if self.away and event.done >= self.away:
            self.away = 0
            print("power off after step", event.done, flush=True)
            power_off(self.node)
        if self.back and event.done >= self.back:
            self.back = 0
            print("a node joins after step", event.done, flush=True)
            self.node, self.other = self.head.join(1)
        if "2 ranks from here on, 1 before" in self.info:
            self.drain = self.drain or event.done + 5
        if self.other and self.drain and event.done >= self.drain:
            print("a node is drained after step", event.done, flush=True)
            drain(self.other)
            self.other = ""


def drain(node_id: str) -> None:
    """As a cloud that takes a machine back: with notice."""
    import ray
    from ray.core.generated import autoscaler_pb2

    client = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int(1000 * (time.time() + 3600))
    is_accepted, why = client.drain_node(node_id, reason, "taken back", deadline_ms)
    assert is_accepted, f"node {node_id} is not drained: {why}; there are {living_nodes()}"


def main(folder: Path) -> None:
    faulthandler.dump_traceback_later(LONGEST_S, exit=True)
    toy = make_toy(folder)
    with ray_head(1) as head:
        training._ASK_NODES_S = 0.1
        os.environ.update({name: text for name, text in head.driver_environment().items() if name.startswith("RAY_")})
        with session(kind="ray"):
            notes = Nodes(head, away=7, back=30)
            # Who receives weights bounds how far ranks are ahead: they stand while a node comes.
            train(config(toy, folder / "run", CHANGES), notes, receive=lambda part: None)
    (folder / "notes.txt").write_text("\n".join(notes.warning + notes.info))
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        del os.environ[name]
    print("the same training alone", flush=True)
    train(config(toy, folder / "alone", CHANGES | {"run.runtime": "local", "train.num_workers": 2}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
