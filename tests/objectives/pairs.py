"""Two pairs with round sums, spread over tokens: the inputs of the golden values."""

from dataclasses import replace

import torch

from raydpo.objectives import ObjectiveInput

# (policy sum, reference sum, tokens) of chosen and rejected.
GOLDEN = (((-20.0, -21.0, 10), (-24.0, -23.0, 12)), ((-35.0, -34.0, 20), (-30.0, -31.5, 15)))


def inputs(pairs, dtype=torch.float64, requires_grad=False) -> ObjectiveInput:
    """ObjectiveInput of pairs ((policy, reference, tokens) chosen, the same rejected), evenly spread over the tokens."""
    policy, reference, sequences, answers = [], [], [], []
    for chosen, rejected in pairs:
        row = []
        for policy_sum, reference_sum, tokens in (chosen, rejected):
            row.append(len(answers) * 2 + len(row))
            policy += [policy_sum / tokens] * tokens
            reference += [reference_sum / tokens] * tokens
            sequences += [row[-1]] * tokens
        answers.append(row)
    return ObjectiveInput(
        policy_nats=torch.tensor(policy, dtype=dtype, requires_grad=requires_grad),
        reference_nats=torch.tensor(reference, dtype=dtype),
        sequences=torch.tensor(sequences),
        answers=torch.tensor(answers),
        num_sequences=2 * len(answers),
    )


def golden_inputs(**options) -> ObjectiveInput:
    return inputs(GOLDEN, **options)


def labelled(answers, labels, dtype=torch.float64, requires_grad=False) -> ObjectiveInput:
    """ObjectiveInput of single answers (policy, reference, tokens), evenly spread over the tokens, with their labels."""
    spread = [(p / n, r / n, i) for i, (p, r, n) in enumerate(answers) for _ in range(n)]
    policy, reference, sequences = (list(column) for column in zip(*spread, strict=True))
    return ObjectiveInput(
        policy_nats=torch.tensor(policy, dtype=dtype, requires_grad=requires_grad),
        reference_nats=torch.tensor(reference, dtype=dtype),
        sequences=torch.tensor(sequences),
        answers=torch.arange(len(answers))[:, None],
        num_sequences=len(answers),
        labels=torch.tensor(labels, dtype=torch.bool),
    )


def part(given: ObjectiveInput, examples: list[int]) -> ObjectiveInput:
    """The micro-batch of some examples of a batch, with their positions in it; sequences are numbered anew."""
    kept = given.answers[examples].flatten()
    number = torch.full((given.num_sequences,), -1)
    number[kept] = torch.arange(len(kept))
    tokens = number[given.sequences] >= 0
    order = number[given.sequences[tokens]].argsort(stable=True)

    def of_tokens(values):
        return None if values is None else values[tokens][order]

    def of_examples(values):
        return None if values is None else values[examples]

    return replace(
        given,
        policy_nats=of_tokens(given.policy_nats),
        reference_nats=of_tokens(given.reference_nats),
        log_collisions=of_tokens(given.log_collisions),
        sequences=number[given.sequences[tokens]][order],
        answers=number[given.answers[examples]],
        num_sequences=len(kept),
        labels=of_examples(given.labels),
        example_weights=of_examples(given.example_weights),
        positions=torch.tensor(examples),
    )
