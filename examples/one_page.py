"""Direct preference optimisation on one page: what raydpo computes, without what makes it fast and safe. Read this first.

    python examples/one_page.py MODEL PAIRS.jsonl --learning-rate 1e-5

In: a transformers folder, which is the SFT model, and JSON lines with `prompt`, `chosen` and `rejected` as plain text.
Out: a line for each step. No weights are saved.
Decision: one answer a forward, in float32 on the CPU, so that nothing here is padded, packed or masked; the price is speed.
Each part names the file that does the same at full size. `tests/examples/test_one_page.py` holds the losses and the first
gradient of this page to those of the real trainer, to 1e-5.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer

# --- 1. From text to token ids --------------------------------------------------------------------------------------
# raydpo/data/read.py reads more kinds of files, raydpo/data/template.py writes conversations down as text,
# raydpo/data/tokenizer.py reads control tokens that the text spells out as plain text, raydpo/data/encode.py makes the
# ids and leaves out what is too long or broken.


class Pair(NamedTuple):
    """One preference: a prompt of P token ids, the answer that people liked (C ids) and the one that they did not (R)."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def read_pairs(tokenizer: Any, file: Path) -> list[Pair]:
    with file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [encode(tokenizer, row["prompt"], row["chosen"], row["rejected"]) for row in rows]


def encode(tokenizer: Any, prompt: str, chosen: str, rejected: str) -> Pair:
    """The prompt begins with the BOS token, if the tokenizer writes one, and each answer ends with the EOS token."""

    def ids_of(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    prompt_ids = ids_of(prompt)
    answers = []
    for answer in (chosen, rejected):
        whole = ids_of(prompt + answer)
        # A tokenizer may join the prompt's last letters with the answer's first. The model, when it is asked, sees the
        # prompt alone, so there the two are tokenised separately.
        begins_with_prompt = whole[: len(prompt_ids)] == prompt_ids
        answer_ids = whole[len(prompt_ids) :] if begins_with_prompt else ids_of(answer)
        answers.append([*answer_ids, tokenizer.eos_token_id])
    begins_with_bos = tokenizer("x").input_ids[0] == tokenizer.bos_token_id
    return Pair([tokenizer.bos_token_id] * begins_with_bos + prompt_ids, *answers)


# --- 2. How probable the model finds an answer ----------------------------------------------------------------------
# raydpo/models/logprobs.py is the one function that reference, policy and evaluation share: the head runs on answer
# tokens only. raydpo/batches/micro_batches.py packs many answers into one stream in which those to one prompt share it.


def answer_nats(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """Log-prob of each token of `answer` after `prompt` and the answer's own tokens before it, in nats."""
    ids = torch.tensor([prompt + answer])  # [1, P + A], A tokens in the answer
    logits = model(input_ids=ids, use_cache=False).logits  # [1, P + A, V], V ids in the vocabulary
    predictions = logits[0, len(prompt) - 1 : -1]  # [A, V], each position predicts the next token
    targets = ids[0, len(prompt) :]  # [A]
    return predictions.log_softmax(dim=-1).gather(1, targets[:, None]).squeeze(1)  # [A]


# --- 3. Which pairs a step sees, and its learning rate --------------------------------------------------------------
# Both are functions of the step alone, so that a run that was killed goes on where it was.


def batch_of(step: int, num_pairs: int, batch_size: int, seed: int) -> list[int]:
    """Places of the pairs of step `step`, from 0. Every epoch is shuffled anew. As raydpo/batches/order.py."""
    steps_per_epoch = math.ceil(num_pairs / batch_size)
    epoch, place = divmod(step, steps_per_epoch)
    shuffled = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_pairs)  # [num_pairs]
    return shuffled[place * batch_size : (place + 1) * batch_size].tolist()  # the last of an epoch may hold fewer


def learning_rate_of(step: int, num_steps: int, peak: float, warmup_fraction: float) -> float:
    """Up in a straight line, then down along a cosine. As raydpo/train/schedule.py."""
    warmup = round(warmup_fraction * num_steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, num_steps - warmup)
    return peak * (1 + math.cos(math.pi * progress)) / 2


# --- 4. Training ----------------------------------------------------------------------------------------------------
# raydpo/train/trainer.py puts one rank's parts together, raydpo/train/loop.py goes from step to step (checkpoints,
# evaluations, when to stop), and raydpo/driver/training.py starts the ranks and keeps what they write.


class Step(NamedTuple):
    """What a step says: its number from 1, means over its pairs, and the norm of the gradient before it was clipped."""

    step: int
    loss: float
    margin: float
    grad_norm: float


def train(
    model: Any,
    pairs: list[Pair],
    *,
    beta: float = 0.1,
    learning_rate: float = 5e-7,
    warmup_fraction: float = 0.1,
    batch_size: int = 64,
    epochs: int = 1,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    seed: int = 0,
) -> Iterator[Step]:
    """Train `model` in place. The defaults are those of raydpo/config/sections.py."""

    # The reference is the model as it stands before the first step. It never changes, so every answer is scored once,
    # before training, and no second model is needed after that.
    # raydpo/reference/score.py does it in parallel, raydpo/artifacts/reference_cache.py keeps the values for later runs.
    with torch.no_grad():
        reference_chosen = [answer_nats(model, pair.prompt, pair.chosen) for pair in pairs]  # one [C] a pair
        reference_rejected = [answer_nats(model, pair.prompt, pair.rejected) for pair in pairs]  # one [R] a pair

    # raydpo/train/deepspeed_engine.py wraps the same optimizer, and shards it over ranks (ZeRO).
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.999), weight_decay=weight_decay)
    num_steps = epochs * math.ceil(len(pairs) / batch_size)

    for step in range(num_steps):
        batch = batch_of(step, len(pairs), batch_size, seed)
        loss_sum, margin_sum = 0.0, 0.0
        optimizer.zero_grad()

        # Forward and backward, pair by pair: gradients add up. raydpo/train/step.py does this with micro-batches, which
        # raydpo/batches/packing.py cuts by tokens; it too divides by the pairs of the *whole* batch, so that it makes no
        # difference to the update how the batch was cut or over how many ranks it was spread.
        for place in batch:
            pair = pairs[place]

            # How many nats likelier the answer has become since the reference: token by token, then summed.
            chosen = answer_nats(model, pair.prompt, pair.chosen) - reference_chosen[place]  # [C]
            rejected = answer_nats(model, pair.prompt, pair.rejected) - reference_rejected[place]  # [R]

            # The whole of DPO: the chosen answer should have gained more than the rejected one. With a margin of 0, as
            # before the first step, the loss is ln 2. raydpo/objectives/dpo.py; its neighbours are other objectives.
            margin = beta * (chosen.sum() - rejected.sum())  # [], a scalar
            loss = -logsigmoid(margin)  # []
            (loss / len(batch)).backward()

            loss_sum += loss.item()
            margin_sum += margin.item()

        # The update. raydpo/train/deepspeed_engine.py; it also refuses a gradient that is not finite.
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm or math.inf)  # of all weights
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_of(step, num_steps, learning_rate, warmup_fraction)
        if grad_norm.isfinite():
            optimizer.step()

        yield Step(step + 1, loss_sum / len(batch), margin_sum / len(batch), grad_norm.item())


# --- 5. The command -------------------------------------------------------------------------------------------------
# raydpo/cli.py; raydpo/models/pretrained.py loads the model, in bfloat16 too, and looks at what it has loaded.


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="DPO on one page.")
    parser.add_argument("model", help="transformers folder or hub id of the SFT model")
    parser.add_argument("pairs", type=Path, help="JSON lines with prompt, chosen, rejected")
    for name, default in train.__kwdefaults__.items():  # --beta and the others
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"default {default}"
        )
    options = vars(parser.parse_args(arguments))

    folder, file = options.pop("model"), options.pop("pairs")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()  # eval: no dropout
    pairs = read_pairs(AutoTokenizer.from_pretrained(folder), file)
    for step, loss, margin, grad_norm in train(model, pairs, **options):
        print(f"step {step}  loss {loss:.6f}  margin {margin:+.6f}  grad norm {grad_norm:.4f}", flush=True)


if __name__ == "__main__":
    main()
