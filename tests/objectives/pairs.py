"""Two pairs with round sums, spread over tokens: the inputs of the golden values."""

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
