"""What config.json alone says of a model: facts, refusals, and that a check of a hub id asks for no weights."""

import json

import pytest

from raydpo.errors import ConfigError
from raydpo.models import resolve
from raydpo.models.before_loading import facts, refuse_shares, refuse_training
from raydpo.models.resolve import describe_model, resolve_model


def written(folder, **described):
    (folder / "config.json").write_text(json.dumps(described))
    return folder


def said(folder, *, has_adapter=False, **described):
    return facts(written(folder, **described), "auto", has_adapter=has_adapter)


def test_a_plain_model_needs_no_word(tmp_path):
    assert said(tmp_path, model_type="llama", max_position_embeddings=64) == []


@pytest.mark.parametrize(
    ("described", "words"),
    [
        ({"model_type": "cohere", "logit_scale": 0.0625, "max_position_embeddings": 64}, ["logit_scale: 0.0625"]),
        (
            {"model_type": "falcon_h1", "lm_head_multiplier": 0.02, "max_position_embeddings": 64},
            ["lm_head_multiplier"],
        ),
        ({"model_type": "mamba2"}, ["mamba2 names no limit of positions"]),
        ({"model_type": "bloom"}, ["bloom names no limit of positions"]),
        (
            {
                "model_type": "qwen3_vl_moe",
                "text_config": {"model_type": "qwen3_vl_moe_text", "max_position_embeddings": 64},
                "vision_config": {},
            },
            ["only the text part of qwen3_vl_moe is trained; its vision part stays", "balancing loss of the experts"],
        ),
    ],
)
def test_one_sentence_each(tmp_path, described, words):
    found = said(tmp_path, **described)
    assert len(found) == len(words)
    assert all(word in sentence for word, sentence in zip(words, found, strict=True))


def test_an_adapter_is_counted_later(tmp_path):
    (found,) = said(tmp_path, has_adapter=True, model_type="llama", max_position_embeddings=64)
    assert "counted at the start of the run" in found


@pytest.mark.parametrize(
    ("described", "match"),
    [
        ({"model_type": "phimoe"}, "phimoe draw their experts"),
        ({"model_type": "mixtral", "router_jitter_noise": 0.1}, r"router_jitter_noise: 0\.1.*Set it to 0"),
    ],
)
def test_a_forward_that_is_random_in_training_is_refused(tmp_path, described, match):
    with pytest.raises(ConfigError, match=match):
        refuse_training(written(tmp_path, **described))


def test_noise_of_nothing_is_none(tmp_path):
    refuse_training(written(tmp_path, model_type="mixtral", router_jitter_noise=0.0))


def test_a_description_of_a_hub_id_leaves_the_weights_there(tmp_path, monkeypatch):
    asked = []

    def snapshot(name, revision, allow_patterns):
        asked.append(allow_patterns)
        return written(tmp_path, model_type="llama")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    describe_model("model.path", "owner/name")
    resolve_model("model.path", "owner/name")
    assert asked == [list(resolve.DESCRIPTION), list(resolve.WEIGHTS)]
    assert "*.safetensors" not in resolve.DESCRIPTION


@pytest.mark.parametrize("name", ["num_attention_heads", "n_head"])
def test_ranks_that_cannot_share_the_heads_are_refused(tmp_path, name):
    folder = written(tmp_path, model_type="any", **{name: 12})
    for num_ranks in (1, 2, 4, 12):
        refuse_shares(folder, num_ranks)
    with pytest.raises(ConfigError, match=r"sequence_parallel_size: 8 needs .* that 8 divides, and the model has 12"):
        refuse_shares(folder, 8)
