"""An export says of itself what its source said: config keys, tokenizer, processors; and it is the model that it was."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from raydpo.models.carried_files import add_ends
from raydpo.models.lora import add_lora
from raydpo.models.merging import merge_lora
from raydpo.models.pretrained import load_model
from raydpo.quickstart.bpe import train_bpe
from raydpo.train.export import write_model
from tests.models.test_attention import FAMILIES, SMALL

IDS = torch.arange(3, 19)[None]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
OTHER = "{% for m in messages %}übrigens {{ m['content'] }}{% endfor %}"
OLD = {
    "rope_theta": 500000,
    "rope_scaling": None,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.44.0",
    "use_cache": True,
}
OWN = {"custom_key": {"a": [1, None]}, "pretraining_tp": 1, "_name_or_path": "somebody/sft"}


def describe(folder, without=(), **changes):
    path = folder / "config.json"
    kept = {key: value for key, value in json.loads(path.read_text()).items() if key not in without}
    path.write_text(json.dumps({**kept, **changes}))


def config_in(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.fixture
def source(tmp_path):
    """A llama as it was published years ago, with a tokenizer of the same age."""
    folder = tmp_path / "source"
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", **FAMILIES["llama"], rope_parameters={"rope_type": "default", "rope_theta": 500000}
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    describe(folder, ("rope_parameters", "dtype"), **OLD, **OWN)
    train_bpe(["a few words to learn from"], 280).save_pretrained(folder)
    described = json.loads((folder / "tokenizer_config.json").read_text())
    old = {**described, "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, "own": "ü"}
    (folder / "tokenizer_config.json").write_text(json.dumps(old))
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": 1, "temperature": 0.6, "do_sample": True})
    )
    return folder


def export(model, source, folder, template=None):
    write_model(model, {name: weight.detach() for name, weight in model.named_parameters()}, source, folder, template)
    return folder


def log_probs(folder):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")(IDS).logits.float().log_softmax(-1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_key_of_the_source_is_there_with_its_value(source, tmp_path, dtype):
    folder = export(load_model(source, dtype, "auto"), source, tmp_path / "out")
    found = config_in(folder)
    assert {key: found[key] for key in config_in(source)} == config_in(source) | {"torch_dtype": dtype}
    assert found["rope_parameters"]["rope_theta"] == 500000
    read = AutoConfig.from_pretrained(folder)
    assert read.rope_parameters["rope_theta"] == 500000
    assert str(read.dtype).removeprefix("torch.") == dtype
    expected = load_model(source, dtype, "auto")(IDS).logits.float().log_softmax(-1)
    torch.testing.assert_close(log_probs(folder), expected, rtol=0, atol=0)


def test_files_of_the_tokenizer_are_the_sources(source, tmp_path):
    folder = export(load_model(source, "float32", "auto"), source, tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        assert (folder / name).read_bytes() == (source / name).read_bytes(), name
    text = "a few words"
    assert (
        AutoTokenizer.from_pretrained(folder)(text).input_ids == AutoTokenizer.from_pretrained(source)(text).input_ids
    )


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja"])
def test_another_chat_template_stands_wherever_one_is_read(source, tmp_path, place):
    if place == "chat_template.jinja":
        (source / place).write_text(TEMPLATE)
    folder = export(load_model(source, "float32", "auto"), source, tmp_path / "out", OTHER)
    assert (folder / "chat_template.jinja").read_text(encoding="utf-8") == OTHER
    described = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert described == {**json.loads((source / "tokenizer_config.json").read_text()), "chat_template": OTHER}
    said = AutoTokenizer.from_pretrained(folder).apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert said == "übrigens x"


def test_a_merged_adapter_says_what_its_base_said(source, tmp_path):
    adapted = add_lora(load_model(source, "float32", "auto"), rank=2, alpha=4, target_modules="all-linear", seed=0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                parameter.fill_(0.1)
    state = {name: weight.detach() for name, weight in adapted.named_parameters() if weight.requires_grad}
    write_model(adapted, state, source, tmp_path / "adapter", OTHER)
    assert not (tmp_path / "adapter/config.json").exists()
    merge_lora(source, tmp_path / "adapter", tmp_path / "merged", "float32")
    found = config_in(tmp_path / "merged")
    assert {key: found[key] for key in config_in(source)} == config_in(source) | {"torch_dtype": "float32"}
    assert json.loads((tmp_path / "merged/generation_config.json").read_text())["temperature"] == 0.6
    assert (tmp_path / "merged/chat_template.jinja").read_text(encoding="utf-8") == OTHER
    with torch.no_grad():
        expected = adapted(IDS).logits.log_softmax(-1)
    torch.testing.assert_close(log_probs(tmp_path / "merged"), expected, rtol=0, atol=1e-5)


def test_a_key_that_would_make_it_another_model_is_left_as_written(source, tmp_path):
    model = load_model(source, "float32", "auto")
    model.config.rms_norm_eps = 0.5
    folder = export(model, source, tmp_path / "out")
    assert AutoConfig.from_pretrained(folder).rms_norm_eps == 0.5
    assert config_in(folder)["custom_key"] == OWN["custom_key"]
    assert config_in(folder)["torch_dtype"] == "float32"


def test_a_model_without_a_tokenizer_stays_one(source, tmp_path):
    for path in (*source.glob("tokenizer*"), *source.glob("special*")):
        path.unlink()
    folder = export(load_model(source, "float32", "auto"), source, tmp_path / "out", OTHER)
    assert {path.name for path in folder.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}


def test_processors_of_a_model_that_also_sees_are_carried_over(tmp_path):
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
    }
    text = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 300}
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config={**vision, "patch_size": 14}, mm_tokens_per_image=4
    )
    source, out = tmp_path / "source", tmp_path / "out"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(source)
    train_bpe(["a few words to learn from"], 280).save_pretrained(source)
    described = config_in(source)
    described["text_config"] |= {"rope_theta": 1000000.0, "own": 3}
    (source / "config.json").write_text(json.dumps(described))
    for name in ("preprocessor_config.json", "processor_config.json", "chat_template.json"):
        (source / name).write_text(json.dumps({"name": name}))
    loaded = load_model(source, "float32", "auto")
    export(loaded, source, out)
    for name in ("preprocessor_config.json", "processor_config.json", "chat_template.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert config_in(out)["text_config"]["own"] == 3
    with torch.no_grad():
        expected = loaded(IDS).logits.log_softmax(-1)
    torch.testing.assert_close(log_probs(out), expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_that_was_written_by_the_same_version_stays_as_it_is(family, tmp_path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family])).save_pretrained(
        tmp_path / "source"
    )
    export(load_model(tmp_path / "source", "float32", "auto"), tmp_path / "source", tmp_path / "out")
    assert (tmp_path / "out/config.json").read_bytes() == (tmp_path / "source/config.json").read_bytes()


@pytest.mark.parametrize(
    ("generation", "config", "taught", "expected"),
    [
        ({"eos_token_id": 1, "top_p": 0.5}, {"eos_token_id": 9}, [7], [1, 7]),
        ({"eos_token_id": [1, 7]}, {}, [7, 1], [1, 7]),
        ({"top_p": 0.5}, {"eos_token_id": 9}, [7, 8], [9, 7, 8]),
        ({}, {"text_config": {"eos_token_id": [9, 7]}}, [7], None),
        ({}, {}, [7], [7]),
        ({"eos_token_id": 0}, {}, [7], [0, 7]),
        ({"eos_token_id": 1}, {}, [], 1),
    ],
)
def test_an_end_that_is_lacking_is_added_and_nothing_else_changes(tmp_path, generation, config, taught, expected):
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps(generation))
    (tmp_path / "config.json").write_text(json.dumps(config))
    add_ends(tmp_path, taught)
    assert json.loads(path.read_text()) == generation | ({} if expected is None else {"eos_token_id": expected})


def test_without_a_generation_config_none_is_written(tmp_path):
    add_ends(tmp_path, [7])
    assert not list(tmp_path.iterdir())


def test_a_reloaded_export_stops_at_the_end_that_was_taught(source, tmp_path):
    model = load_model(source, "float32", "auto")
    state = {name: weight.detach() for name, weight in model.named_parameters()}
    write_model(model, state, source, tmp_path / "out", end_ids=[7])

    def seven_after_three(ids, scores):
        wanted = 7 if ids.shape[1] == IDS.shape[1] + 3 else 5
        return torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor([wanted]), 0.0)

    for folder, num_new in ((tmp_path / "out", 4), (source, 6)):
        found = AutoModelForCausalLM.from_pretrained(folder)
        written = found.generate(IDS, max_new_tokens=6, do_sample=False, logits_processor=[seven_after_three])
        assert written.shape[1] - IDS.shape[1] == num_new
    assert json.loads((source / "generation_config.json").read_text())["eos_token_id"] == 1
