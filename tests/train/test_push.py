"""What a push holds: every weight of the model in memory, once; of an adapter what merging it changes."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3MoeConfig

from raydpo.artifacts import shared_files
from raydpo.generate.arrived import arrived
from raydpo.generate.mapped_weights import mapped
from raydpo.models.lora import add_lora
from raydpo.models.tensor_bytes import num_bytes_of
from raydpo.schema.shared_weights import SharedWeights
from raydpo.train import shared_push
from raydpo.train.push import parts
from raydpo.train.shared_push import share

pytestmark = pytest.mark.slow

SHAPE = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE, **HEADS),
    "gpt2": GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16),
    "qwen3_moe": Qwen3MoeConfig(
        **SHAPE, **HEADS, head_dim=8, moe_intermediate_size=8, num_experts=3, num_experts_per_tok=2
    ),
}


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(CONFIGS[request.param])


@torch.no_grad()
def whole(model: Any) -> dict[str, torch.Tensor]:
    events = list(parts(model, 0, True, 1000))
    assert [event.is_last for event in events] == [False] * (len(events) - 1) + [True]
    assert len(events) > 2
    found = {name: weight for event in events for name, weight in event.weights.items()}
    assert len(found) == sum(len(event.weights) for event in events)
    return found


def test_every_weight_comes_once_as_it_is_in_memory(model: Any) -> None:
    found, held = whole(model), dict(model.named_parameters())
    assert found.keys() == held.keys()
    assert all(torch.equal(weight, held[name]) for name, weight in found.items())


@pytest.mark.filterwarnings("ignore")
def test_of_an_adapter_comes_what_merging_changes_and_nothing_else(model: Any) -> None:
    """Experts are one tensor with adapters in one another; GPT-2's matrices stand the other way round."""
    check_adapter(model, "all-linear")


@pytest.mark.filterwarnings("ignore")
def test_an_adapted_embedding_and_an_adapted_head_come_too() -> None:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, **HEADS, tie_word_embeddings=False))
    found = check_adapter(model, ("embed_tokens", "lm_head", "q_proj"))
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= found.keys()


SETTINGS: dict[str, dict[str, Any]] = {
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "dora of an embedding": {"dora": True, "targets": ("q_proj", "embed_tokens", "lm_head")},
    "modules_to_save": {"modules_to_save": ("lm_head", "embed_tokens", "norm")},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", SETTINGS)
def test_every_kind_of_adapter_comes_as_it_is_merged(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, **HEADS, tie_word_embeddings=False)).to(dtype)
    settings = {"targets": "all-linear", **SETTINGS[kind]}
    found = check_adapter(model, settings.pop("targets"), **settings)
    assert {weight.dtype for weight in found.values()} == {dtype}


@pytest.mark.filterwarnings("ignore")
def test_experts_with_a_rank_stabilised_scale_come_as_they_are_merged() -> None:
    torch.manual_seed(3)
    found = check_adapter(AutoModelForCausalLM.from_config(CONFIGS["qwen3_moe"]), "all-linear", rslora=True)
    assert "model.layers.0.mlp.experts.gate_up_proj" in found
    assert not [name for name in found if ".gate.weight" in name], "routers are left alone"


def check_alone(adapted: Any, before: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """The adapter alone, merged by whoever has the folder it began from: the same bits on any number of threads."""
    threads = torch.get_num_threads()
    with TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_files, "folders", lambda: (Path(place),))
        start = Path(place) / "start"
        plain = AutoModelForCausalLM.from_config(adapted.get_base_model().config, dtype=adapted.dtype)
        plain.load_state_dict(before)
        plain.save_pretrained(start)
        shared = share(adapted, 0, 0, 1, start)
        assert isinstance(shared, SharedWeights)
        assert shared.is_partial
        trained = {id(weight): weight.nbytes for weight in adapted.parameters() if weight.requires_grad}
        assert sum(map(num_bytes_of, shared.tensors)) == sum(trained.values()), "what is trained, and nothing else"
        for num in (threads, 3):
            torch.set_num_threads(num)
            weights = mapped(shared)
            assert weights is not None
            came = {name: weight for part in arrived(weights) for name, weight in part.items()}
            assert came.keys() == expected.keys()
            assert all(torch.equal(weight, expected[name]) for name, weight in came.items())
            assert {weight.dtype for weight in came.values()} == {weight.dtype for weight in expected.values()}
        torch.set_num_threads(threads)
        shared_push._forget()


def check_adapter(model: Any, targets: str | tuple[str, ...], **settings: Any) -> dict[str, torch.Tensor]:
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    adapted = add_lora(model, rank=2, alpha=4, target_modules=targets, seed=0, **settings)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                parameter.normal_() if "lora_" in name else parameter.add_(1)
    found = whole(adapted)
    check_alone(adapted, before, found)
    merged = adapted.float().merge_and_unload().to(next(iter(found.values())).dtype).state_dict()
    assert found.keys() == {name for name, weight in merged.items() if not torch.equal(weight, before[name])}
    for name, weight in found.items():
        torch.testing.assert_close(weight, merged[name], rtol=0, atol=1e-5)
    return found
