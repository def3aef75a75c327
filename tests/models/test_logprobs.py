"""The one log-prob function against a plain forward with log_softmax, over model families, in float64."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from raydpo.batches import collate_rows
from raydpo.errors import ConfigError
from raydpo.models.logprobs import AnswerLogProbs, check_head
from raydpo.models.pretrained import load_model, switch_dropout_off

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 61, "intermediate_size": 48}
FAMILIES = {
    "llama": {**SMALL, "num_key_value_heads": 2},
    "mistral": {**SMALL, "num_key_value_heads": 2, "sliding_window": 4},
    "qwen2": {**SMALL, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {**SMALL, "num_key_value_heads": 2, "head_dim": 8},
    "gemma2": {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 3.0, "sliding_window": 4},
    "gpt_neox": SMALL,
    "granite": {**SMALL, "num_key_value_heads": 2, "logits_scaling": 4.0},
    "cohere": {**SMALL, "num_key_value_heads": 2, "logit_scale": 0.25},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 61, "n_positions": 64},
}
PARTLY_FLOAT32 = {"cohere": torch.float64, "gemma2": torch.float32}
"""Families that compute in float32 inside whatever their dtype, and the dtype they are tried in. (Gemma 2 turns the mask's
lowest float64 into -inf in float32, and a padded row into NaN.)"""
ROWS = [
    ([1, 5, 7], [8, 9, 2]),
    ([1], [4]),
    ([1, 3, 3, 9, 11, 12, 20], [21, 2]),
    ([1, 2, 3, 4, 5, 6], list(range(10, 31))),
]


def make_model(family, dtype=torch.float64):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **FAMILIES[family], pad_token_id=0, bos_token_id=1, eos_token_id=2)
    attention = "eager" if family == "gemma2" else "sdpa"  # transformers offers no sdpa with soft-capped attention
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(dtype)
    return switch_dropout_off(model)


def plain(model, prompt, answer):
    """Log-probs of the answer by one unpadded forward."""
    ids = torch.tensor([prompt + answer])
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
    return logits.gather(1, ids[0, 1:, None]).squeeze(1)[len(prompt) - 1 :]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk_tokens", [1024, 5])
def test_values_and_gradients_equal_plain_forwards(family, chunk_tokens):
    dtype = PARTLY_FLOAT32.get(family, torch.float64)
    model = make_model(family, dtype)
    scoring = AnswerLogProbs(model, chunk_tokens)
    weights = torch.randn(sum(len(a) for _, a in ROWS), dtype=dtype, generator=torch.Generator().manual_seed(1))
    ours = scoring(collate_rows(ROWS))
    (ours * weights).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    theirs = torch.cat([plain(model, *row) for row in ROWS])
    (theirs * weights).sum().backward()
    tolerance = 1e-5 if family in PARTLY_FLOAT32 else 1e-9
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=10 * tolerance, atol=tolerance, msg=name)


def test_low_precision_logits_are_reduced_in_float32():
    model = make_model("llama", torch.bfloat16)
    assert AnswerLogProbs(model)(collate_rows(ROWS)).dtype == torch.float32


def test_the_head_runs_on_answer_positions_only_and_in_chunks():
    model, sizes = make_model("llama"), []
    model.get_output_embeddings().register_forward_hook(lambda _m, inputs, _o: sizes.append(len(inputs[0])))
    with torch.no_grad():
        AnswerLogProbs(model, 5)(collate_rows(ROWS))
    assert sum(sizes) == sum(len(answer) for _, answer in ROWS)
    assert max(sizes) == 5


@torch.no_grad()
def test_idle_calls_of_the_head_change_no_value_and_no_chunk():
    model, sizes = make_model("llama"), []
    scoring, batch = AnswerLogProbs(model, 5), collate_rows(ROWS)
    model.get_output_embeddings().register_forward_hook(lambda _m, inputs, _o: sizes.append(len(inputs[0])))
    plainly, calls = scoring(batch), list(sizes)
    sizes.clear()
    assert torch.equal(scoring(replace(batch, num_idle_chunks=3)), plainly)
    assert sizes == [0, 0, 0, *calls]
    assert scoring(replace(batch, num_idle_chunks=2), "collisions").shape == (2, len(plainly))


def test_check_head_refuses_an_architecture_with_an_unknown_adjustment():
    model = make_model("granite", torch.float32)
    scoring = AnswerLogProbs(model)
    check_head(scoring)
    scoring._adjust = lambda logits: logits  # as if logits_scaling were unknown
    with pytest.raises(ConfigError, match="changes its logits"):
        check_head(scoring)


def test_dropout_is_off_in_training_mode(tmp_path):
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt2", **FAMILIES["gpt2"], attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    scoring = AnswerLogProbs(load_model(tmp_path, "float32", "sdpa")).train()
    batch = collate_rows(ROWS)
    assert torch.equal(scoring(batch), scoring(batch))
