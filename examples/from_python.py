"""Align a model on pairs that are in memory, and look at what came of it: python examples/from_python.py MODEL [RUN_DIR]

In: a path or hub id. Out: a run directory, and on the screen the verdict, the last metrics and answers before and after.
"""

import sys

import raydpo

NUMBERS = [(3 * number % 97, 5 * number % 89, 7 * number % 83) for number in range(1, 65)]
PAIRS = [
    {
        "prompt": f"sort {' '.join(map(str, numbers))}:",
        "chosen": f" {' '.join(map(str, sorted(numbers)))}",
        "rejected": f" {' '.join(map(str, sorted(numbers, reverse=True)))}",
    }
    for numbers in NUMBERS
]


def stop_when_sure(event: object) -> str | None:
    """Ends the run after an evaluation at which nine in ten held-out pairs are ranked right."""
    metrics = getattr(event, "metrics", {})
    return "stop" if metrics.get("eval/rewards/accuracies", 0.0) > 0.9 else None


def main(model: str, run_dir: str | None = None) -> None:
    run = raydpo.dpo(
        model,
        PAIRS[:48],
        eval_data=PAIRS[48:],
        beta=0.1,
        run_dir=run_dir,
        callbacks=stop_when_sure,
        train={"learning_rate": 1e-4, "global_batch_pairs": 16, "epochs": 2, "eval_every": 2},
        reference={"cache_dir": "runs/cache"},
    )
    print(run)
    print(run.metrics.tail(3))
    print(run.samples(2, 12))


if __name__ == "__main__":
    main(*sys.argv[1:])
