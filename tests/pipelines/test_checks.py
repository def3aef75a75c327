"""Options that would do nothing, and models that do not fit, are refused before anything is started."""

import json
import math
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from raydpo.config import Config
from raydpo.config.cross_checks import cross_checks
from raydpo.errors import ConfigError, DataError, StorageError
from raydpo.models.config_file import num_embeddings
from raydpo.pipelines import check, evaluate, train
from raydpo.rundir.positions import fit_to_model
from raydpo.rundir.workspace import find_workspace, open_workspace
from tests.pipelines.toy import Notes, Toy, config, read_pairs, write_pairs


def make(folder, **sections):
    values = {"run": {"dir": str(folder / "run")}, "model": {"path": str(folder)}, "data": {"train": ["a.jsonl"]}}
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return Config.model_validate(values)


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 128}))
    return tmp_path


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"train": {"early_stopping_patience": 2}}, ["early_stopping_patience: 2", "data.eval", "train.eval_every"]),
        ({"train": {"export": "best"}, "data": {"eval": ["b"]}}, ["train.export: best", "train.eval_every"]),
        ({"reference": {"revision": "main"}}, ["reference.revision"]),
        ({"model": {"attention": "flash_attention_2"}}, ["flash_attention_2 needs"]),
        ({"objective": {"name": "sft"}, "train": {"best_metric": "eval/rewards/margins"}}, ["has no pairs"]),
        ({"data": {"train": []}}, ["data.train and data.eval are both empty"]),
        ({"reference": {"sync_alpha": 1.0}}, ["reference.sync_alpha: 1.0", "set reference.sync_every"]),
        ({"reference": {"sync_every": 5}, "objective": {"name": "simpo"}}, ["sync_every: 5", "simpo has no reference"]),
        ({"reference": {"sync_every": 5}, "train": {"lora": {}}}, ["sync_every: 5 with train.lora", "all weights"]),
    ],
)
def test_options_without_effect_are_named(model, sections, words):
    text = "\n".join(cross_checks(make(model, **sections), "train"))
    assert all(word in text for word in words), text


def test_a_plain_config_has_no_problems(model):
    good = {"data": {"eval": ["b"]}, "train": {"eval_every": 5, "early_stopping_patience": 2, "export": "best"}}
    assert cross_checks(make(model, **good), "train") == []


@pytest.mark.parametrize("reference", [{"sync_every": 5, "sync_alpha": 1.0}, {"sync_every": None, "sync_alpha": 0.6}])
def test_a_moving_reference_and_what_a_resolved_config_says_of_a_still_one(model, reference):
    stopping = {"train": {"eval_every": 5, "early_stopping_patience": 2}, "data": {"eval": ["b"]}}
    assert cross_checks(make(model, reference=reference, **stopping), "train") == []


@pytest.mark.parametrize("wrong", [{"sync_every": 0}, {"sync_alpha": 0}, {"sync_alpha": 1.5}])
def test_values_outside_their_range(model, wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        make(model, reference={"sync_every": 5} | wrong)


def test_max_length_follows_the_model_unless_it_was_set(model):
    fitted, notes = fit_to_model(make(model), model)
    assert fitted.data.max_length == 128
    assert "128" in notes[0]
    assert fit_to_model(make(model, data={"max_length": 100}), model) == (make(model, data={"max_length": 100}), ())
    with pytest.raises(ConfigError, match=r"data\.max_length: 129, but the model .* has 128 positions"):
        fit_to_model(make(model, data={"max_length": 129}), model)


@pytest.mark.parametrize(
    ("described", "words"),
    [
        ({}, "names no base model"),
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING, which cannot be merged"),
        ({"base_model_name_or_path": "./nowhere"}, "base of the adapter .*nowhere does not exist"),
        ({"base_model_name_or_path": "itself"}, "its own folder as its base"),
    ],
)
def test_an_adapter_that_is_no_model_says_why(model, described, words):
    (model / "adapter_model.safetensors").write_bytes(b"")
    if described.get("base_model_name_or_path") == "itself":
        described = {"base_model_name_or_path": str(model)}
    (model / "adapter_config.json").write_text(json.dumps(described))
    with pytest.raises(ConfigError, match=words):
        find_workspace(make(model), "train")


def test_an_adapter_without_weights_in_safetensors_is_refused(model):
    (model / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"no adapter_model\.safetensors"):
        find_workspace(make(model), "train")


def test_a_folder_has_no_revisions(model):
    with pytest.raises(ConfigError, match=r"model\.revision is set, but model\.path is a folder"):
        find_workspace(make(model, model={"revision": "main"}), "train")


def test_problems_of_several_places_come_together(model):
    config = make(
        model, model={"path": str(model / "nowhere")}, reference={"model": "no/such/model"}, data={"train": []}
    )
    with pytest.raises(ConfigError) as caught:
        find_workspace(config, "train")
    assert len(caught.value.problems) == 3


def test_a_run_dir_below_a_file_is_a_clear_error(model):
    (model / "file").write_text("")
    with (
        pytest.raises(StorageError, match=r"run\.dir: .* cannot be made"),
        open_workspace(make(model, run={"dir": str(model / "file/run")}), "train"),
    ):
        pass


@pytest.fixture
def grown(toy: Toy, tmp_path):
    """The toy model with a tokenizer that has two more tokens than the embedding has rows. The weights are garbage."""
    folder = shutil.copytree(toy.model, tmp_path / "grown")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["@one@", "@two@"])
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"not a model")
    return folder


@pytest.mark.parametrize("verb", [check, train])
def test_tokens_beyond_the_embedding_are_named_before_any_worker(toy: Toy, machine: None, grown, tmp_path, verb):
    pairs = read_pairs(toy.train)
    pairs[4]["chosen"] += "@two@"
    data = write_pairs(tmp_path / "pairs.jsonl", pairs)
    changes = {"model.path": str(grown), "data.train": [str(data)]}
    with pytest.raises(DataError, match=r"pairs\.jsonl:5: token '@two@' \(id \d+\) .* embedding of model\.path"):
        verb(config(toy, tmp_path / "run", changes))


def test_extra_tokens_that_do_not_occur_are_a_note(toy: Toy, grown, tmp_path):
    notes = Notes()
    check(config(toy, tmp_path / "run", {"model.path": str(grown)}), notes)
    assert [text for text in notes.info if "none of the ids beyond occurs" in text]


def test_a_smaller_embedding_of_the_reference_counts(toy: Toy, tmp_path):
    smaller = shutil.copytree(toy.other, tmp_path / "smaller")
    described = json.loads((smaller / "config.json").read_text())
    (smaller / "config.json").write_text(json.dumps({**described, "vocab_size": 100}))
    with pytest.raises(DataError, match=r"beyond the embedding of reference\.model"):
        check(config(toy, tmp_path / "run", {"reference.model": str(smaller)}))


@pytest.mark.parametrize(
    ("described", "rows"),
    [
        ({"vocab_size": 7}, 7),
        ({"vocab_size": 9, "text_config": {"vocab_size": 7}}, 7),
        ({"vocab_size": 9, "text_config": {"hidden_size": 7}}, 9),
        ({"hidden_size": 4}, None),
    ],
)
def test_rows_of_the_embedding_by_the_config(tmp_path, described, rows):
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert num_embeddings("model.path", tmp_path) == rows


NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
QUANTISED = {
    "nf4": ({"quantization_config": NF4}, "bitsandbytes, 4 bit"),
    "int8": ({"quantization_config": {"load_in_8bit": True}}, "8 bit"),
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq, 4 bit"),
    "awq": ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq, 4 bit"),
    "fp8": ({"quantization_config": {"quant_method": "fp8"}}, "fp8: quantization_config"),
    "mxfp4": ({"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4: quantization_config"),
    "in its text part": ({"text_config": {"quantization_config": NF4}}, "bitsandbytes, 4 bit"),
    "compressed": (
        {"compression_config": {"quant_method": "compressed-tensors"}},
        "compressed-tensors: compression_config",
    ),
}


@pytest.mark.parametrize(
    "lora", [{"target_modules": ["q_proj", "lm_head"]}, {"target_modules": ["embed_tokens"], "merge": True}]
)
def test_an_adapter_on_a_tied_head_is_refused_before_anything_is_scored(toy: Toy, machine: None, tmp_path, lora):
    assert json.loads((toy.model / "config.json").read_text())["tie_word_embeddings"]
    changes = {"train.lora": lora, "reference.cache_dir": str(tmp_path / "cache")}
    with pytest.raises(ConfigError, match=r"train\.lora\.target_modules: .*a tied module .*all-linear"):
        train(config(toy, tmp_path / "run", changes))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["full", "lora"])
def test_a_forward_that_is_random_in_training_mode_is_refused_with_the_cause(toy: Toy, machine: None, tmp_path, lora):
    folder = model_like(toy, tmp_path / "model", "phimoe", num_local_experts=4, num_key_value_heads=4)
    changes = {"model.path": str(folder), "train.lora": lora, "reference.cache_dir": str(tmp_path / "cache")}
    with pytest.raises(ConfigError, match=r"routers of phimoe draw their experts .* in training mode"):
        train(config(toy, tmp_path / "run", changes))


NO_POSITIONS = {
    "mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 2, "chunk_size": 16},
    "bloom": {},
    "mpt": {"max_seq_len": 64},
}


@pytest.mark.parametrize("family", NO_POSITIONS)
def test_a_model_without_a_limit_of_positions_trains_in_padded_rows(toy: Toy, machine: None, tmp_path, family):
    folder = model_like(toy, tmp_path / "model", family, **NO_POSITIONS[family])
    own = {"model.path": str(folder), "reference.cache_dir": str(tmp_path / "cache")}
    notes = Notes()
    summary = train(config(toy, tmp_path / "run", {**own, "train.max_steps": 1, "train.eval_every": 1}), notes)
    assert [text for text in notes.info if "rows are padded" in text]
    assert summary["train"]["probe"]["max_difference_nats"] < 1e-4
    assert summary["eval"]["first"]["eval/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert summary["eval"]["last"]["eval/loss"] < summary["eval"]["first"]["eval/loss"]


def model_like(toy: Toy, folder, family, **settings):
    """A random model of another family with the toy's tokenizer."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    rows = num_embeddings("model.path", toy.model)
    tokens = {"vocab_size": rows, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**shape, **tokens, **settings})).save_pretrained(
        folder
    )
    AutoTokenizer.from_pretrained(toy.model).save_pretrained(folder)
    return folder


def quantised(folder, model, settings):
    shutil.copytree(model, folder)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, **settings}))
    return str(folder)


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["full", "lora"])
@pytest.mark.parametrize("kind", QUANTISED)
def test_a_quantised_model_is_refused_by_check(toy: Toy, tmp_path, kind, lora):
    settings, words = QUANTISED[kind]
    changes = {"model.path": quantised(tmp_path / "model", toy.model, settings), "train.lora": lora}
    with pytest.raises(ConfigError, match=r"model\.path: .* is quantised .*dequantize\(\)") as caught:
        check(config(toy, tmp_path / "run", changes))
    assert words in str(caught.value)
    assert "embedding, norms and head alone" in str(caught.value)


def test_a_quantised_reference_and_a_quantised_model_to_evaluate_are_refused(toy: Toy, tmp_path):
    folder = quantised(tmp_path / "model", toy.other, QUANTISED["nf4"][0])
    with pytest.raises(ConfigError, match=r"reference\.model: .* is quantised"):
        check(config(toy, tmp_path / "run", {"reference.model": folder}))
    with pytest.raises(ConfigError, match=r"evaluate\.model: .* is quantised"):
        evaluate(config(toy, tmp_path / "run", {"evaluate.model": folder}))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": folder}))
    (tmp_path / "adapter/adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"evaluate\.model: .* is quantised"):
        evaluate(config(toy, tmp_path / "run", {"evaluate.model": str(tmp_path / "adapter")}))


def test_a_quantised_reference_of_rounds_is_refused(toy: Toy, tmp_path):
    folder = quantised(tmp_path / "model", toy.other, QUANTISED["awq"][0])
    changes = {"rounds.prompts": [str(toy.train)], "rounds.reference": folder}
    with pytest.raises(ConfigError, match=r"rounds\.reference: .* is quantised"):
        check(config(toy, tmp_path / "run", changes))


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"])
def test_a_quantised_model_is_told_by_the_files_of_older_tools(toy: Toy, tmp_path, name):
    folder = shutil.copytree(toy.model, tmp_path / "model")
    (folder / name).write_text(json.dumps({"quantization": {"quant_algo": "FP8"}, "bits": 4}))
    with pytest.raises(ConfigError, match=rf"is quantised \(.*{name}\)"):
        check(config(toy, tmp_path / "run", {"model.path": str(folder)}))


@pytest.mark.parametrize("settings", [{"quantization_config": None}, {"quantization_config": {}}])
def test_a_config_that_mentions_no_quantisation_is_whole(toy: Toy, tmp_path, settings):
    assert check(config(toy, tmp_path / "run", {"model.path": quantised(tmp_path / "model", toy.model, settings)}))
