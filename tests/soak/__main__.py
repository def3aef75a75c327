"""Runs that are killed again and again until they are done: `make soak`, or python -m tests.soak --scene hh --on cluster
--kills 8.

Comes in: what is run, where, how many kills, a seed, and the mean number of events between two. Goes out: 0 where everything
is, bit for bit, that of a run that nobody disturbed; with --page the result is kept in benchmarks/results/soak.json and
docs/soak.md is written anew. Decision: the command is the one that people run, in a process of its own.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raydpo.config.render import dump
from tests.pipelines import driver
from tests.soak.killer import SoakKiller, made_again, start
from tests.soak.nodes import SoakNodes, three_nodes
from tests.soak.page import SoakResult, keep
from tests.soak.scenes import SoakScene, make_scene
from tests.soak.telling import read_told

HH = Path(__file__).parents[3] / "shared/data/hh-rlhf/helpful-base-test.jsonl.gz"


def main() -> int:
    args = _parser().parse_args()
    if args.scene == "hh" and not args.hh.is_file():
        print(f"no HH-RLHF file at {args.hh}: name one with --hh; the scene is left out")
        return 0
    root = Path(tempfile.mkdtemp(prefix="soak-"))
    scene = make_scene(args.scene, root, args.hh)
    with _place(args.on) as nodes:
        result = _run(scene, args, nodes)
    for line in result.told():
        print(line)
    if args.page:
        keep(result)
    if all(result.same.values()):
        shutil.rmtree(root)
        return 0
    print(f"not equal; everything is in {root}")
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--scene", choices=("toy", "hh", "rounds"), default="toy", help="what is run")
    parser.add_argument(
        "--on", choices=("local", "ray", "cluster"), default="local", help="processes, Ray, or three nodes of it"
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mean-events", type=float, default=6.0, help="mean number of steps forward between two kills")
    parser.add_argument("--hh", type=Path, default=HH, help="a file of HH-RLHF transcripts, for --scene hh")
    parser.add_argument("--page", action="store_true", help="keep the result and write docs/soak.md")
    return parser


@contextmanager
def _place(on: str) -> Iterator[SoakNodes | None]:
    if on != "cluster":
        yield None
        return
    with three_nodes() as nodes:
        yield nodes


def _run(scene: SoakScene, args: argparse.Namespace, nodes: SoakNodes | None) -> SoakResult:
    started_s = time.monotonic()
    for name, runtime in (("killed", "local" if args.on == "local" else "ray"), ("undisturbed", "local")):
        (scene.root / f"{name}.yaml").write_text(dump(scene.config(name, runtime)))
    killer = SoakKiller(scene, "killed", args.kills, args.seed, args.mean_events, nodes)
    killer.run()
    process = start(scene, "undisturbed", {})
    assert process.wait(10 * driver.PATIENCE_S) == 0, (scene.root / "undisturbed.log").read_text()
    told = [scene.root / f"{name}.told" for name in ("killed", "undisturbed")]
    said = [str(line[2]) for line in read_told(told[0]) if line[0] == "said"]
    return SoakResult(
        command=f"python -m tests.soak {shlex.join(sys.argv[1:])}",
        scene=args.scene,
        on=args.on,
        killed=dict(sorted(killer.killed.items())),
        starts=killer.starts,
        healed=sum("Going on after step" in text for text in said),
        made_again=made_again(*told),
        same=scene.compared("killed", "undisturbed"),
        wall_s=round(time.monotonic() - started_s),
    )


if __name__ == "__main__":
    sys.exit(main())
