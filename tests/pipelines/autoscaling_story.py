"""A run on a cluster whose nodes are started when they are asked for. Run as a module, with a folder.

Goes out: in the folder, run/ and notes.json: what was said, and how many nodes there were before and at the end. The nodes are
those of Ray's own provider for tests, real processes of this machine that its autoscaler starts and ends.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from raydpo.errors import ResourceError
from raydpo.pipelines import train
from raydpo.runtime import Demand, session
from tests.pipelines.toy import Notes, config, make_toy
from tests.runtime.ray_head import ray_head

HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
CHANGES = {
    "run.runtime": "ray",
    "run.wait_for_nodes_s": 900,
    "reference.num_workers": {"min": 1, "max": 2},
    "train.num_workers": 2,
}


def autoscaling(folder: Path, address: str) -> Sequence[str]:
    """Options of `ray start` for a cluster of up to two nodes with one CPU."""
    empty = ("docker", "auth", "file_mounts")
    lists = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
    lists += (
        "head_start_ray_commands",
        "worker_start_ray_commands",
        "cluster_synced_files",
        "rsync_exclude",
        "rsync_filter",
    )
    wanted = {
        "cluster_name": "story",
        "max_workers": 2,
        "idle_timeout_minutes": 30,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": address,
            "head_node_id": HEAD,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": 1, "object_store_memory": 100 * 2**20},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 2,
            },
        },
        "file_mounts_sync_continuously": False,
        **{name: {} for name in empty},
        **{name: [] for name in lists},
    }
    (folder / "cluster.json").write_text(json.dumps(wanted))
    return ["--autoscaling-config", str(folder / "cluster.json")]


def num_nodes() -> int:
    import ray  # reads the environment once, which `main` sets before

    return sum(node["Alive"] for node in ray.nodes())


def main(folder: Path) -> None:
    toy = make_toy(folder)
    environment = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    environment |= {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD, "RAY_CLOUD_INSTANCE_ID": HEAD}
    with ray_head(0, lambda address: autoscaling(folder, address), **environment) as head:
        os.environ.update({name: text for name, text in head.driver_environment().items() if name.startswith("RAY_")})
        notes, said = Notes(), {}
        with session(kind="ray"):
            said["nodes before"] = num_nodes()
            try:
                with session([Demand("train", 2, 1.0)]):
                    pass
            except ResourceError as error:
                said["refused"] = str(error)
            train(config(toy, folder / "run", CHANGES), notes)
            said["nodes after"] = num_nodes()
    said["notes"] = notes.info
    (folder / "notes.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
