"""Loading a model folder: whole, or not at all."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from raydpo.errors import ConfigError
from raydpo.models.pretrained import load_model
from tests.models.test_layout import model_of


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_folder_that_lacks_weights_is_refused(family, tmp_path):
    """transformers would draw them at random, and the reference would be another model."""
    model_of(family).save_pretrained(tmp_path)
    assert isinstance(load_model(tmp_path, "float32", "auto"), torch.nn.Module)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in sorted(weights) if "layers.1" in name)
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=f"the files lack .*{name}"):
        load_model(tmp_path, "float32", "auto")


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_a_tied_head_is_not_missing(family, tmp_path):
    model = model_of(family)
    assert model.config.tie_word_embeddings
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    torch.testing.assert_close(load_model(tmp_path, "float32", "auto").state_dict(), model.state_dict())
