"""Write a fresh small Llama and a byte-level BPE tokenizer trained on the HH text: the starting point of the example.

python examples/hh_rlhf/make_model.py --data DIR_WITH_HH_FILES --out runs/hh/fresh
"""

import argparse
import gzip
import json
from pathlib import Path

from raydpo.quickstart.bpe import train_bpe
from raydpo.quickstart.fresh_model import create_model


def texts(files: list[Path]) -> list[str]:
    """The chosen transcript of every line."""
    chosen = []
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            chosen += [json.loads(line)["chosen"] for line in lines]
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with HH-RLHF *.jsonl.gz files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new model")
    arguments = parser.parse_args()
    tokenizer = train_bpe(texts(sorted(arguments.data.glob("*.jsonl.gz"))), vocab_size=4096)
    num_parameters = create_model(
        arguments.out,
        tokenizer,
        hidden_size=128,
        num_layers=3,
        num_heads=4,
        intermediate_size=384,
        max_positions=512,
        seed=0,
    )
    print(f"{arguments.out}: {num_parameters / 1e6:.1f}M parameters, {len(tokenizer)} ids")


if __name__ == "__main__":
    main()
