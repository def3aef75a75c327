"""Which models have a balancing loss of experts, with which coefficient, by config.json; and whether it is their own."""

import ast
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from raydpo.errors import ConfigError
from raydpo.models.balancing import OWN_LOSS, balancing
from raydpo.models.logprobs import AnswerLogProbs
from raydpo.models.router_probe import check_routing
from raydpo.models.routing import experts_per_token
from tests.models.test_attention import GROUPED

MODELS = Path(transformers.__file__).parent / "models"
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}


def own_losses():
    """Family -> source of `load_balancing_loss_func` in transformers, without its docstring."""
    found = {}
    for path in sorted(MODELS.glob("*/modeling_*.py")):
        if "def load_balancing_loss_func" in (text := path.read_text()):
            parts = {part.name: part for part in ast.parse(text).body if isinstance(part, ast.FunctionDef)}
            found[path.parent.name] = ast.dump(ast.Module(parts["load_balancing_loss_func"].body[1:], []))
    return found


def test_the_table_names_every_family_of_transformers_with_this_loss():
    losses = own_losses()
    assert {family for family, loss in losses.items() if loss == losses["mixtral"]} == OWN_LOSS.keys()


@pytest.mark.parametrize("family", OWN_LOSS)
def test_the_table_holds_the_defaults_of_transformers(family):
    config = AutoConfig.for_model(family)
    text, names = config.get_text_config(), ("router_aux_loss_coef", "aux_loss_coef")
    found = next((getattr(text, name) for name in names if hasattr(text, name)), None)
    assert OWN_LOSS[family] == (config.ffn_config.moe_loss_weight if family == "dbrx" else found)


@pytest.mark.parametrize(
    ("described", "asked", "coefficient", "said"),
    [
        (
            {"model_type": "mixtral", "router_aux_loss_coef": 0.02},
            "auto",
            0.02,
            "own coefficient 0.02 (router_aux_loss",
        ),
        ({"model_type": "mixtral"}, "auto", 0.001, "own coefficient 0.001 (the family's default"),
        ({"model_type": "mixtral", "router_aux_loss_coef": 0.02}, "off", 0.0, "is off (train.router_aux_loss: off)"),
        ({"model_type": "mixtral", "router_aux_loss_coef": 0.02}, 0.5, 0.5, "coefficient 0.5 (train.router_aux_loss)"),
        ({"model_type": "phimoe", "router_aux_loss_coef": 0.0}, "auto", 0.0, "its coefficient is 0"),
        ({"model_type": "olmoe", "output_router_logits": False}, "auto", 0.01, "is on"),
        ({"model_type": "jetmoe", "aux_loss_coef": 0.3}, "auto", 0.3, "aux_loss_coef"),
        ({"model_type": "dbrx", "ffn_config": {"moe_loss_weight": 0.05, "moe_num_experts": 4}}, "auto", 0.05, "is on"),
        (
            {
                "model_type": "qwen3_vl_moe",
                "text_config": {"model_type": "qwen3_vl_moe_text", "router_aux_loss_coef": 0.4},
            },
            "auto",
            0.4,
            "of qwen3_vl_moe is on",
        ),
        ({"model_type": "granitemoehybrid", "num_local_experts": 0}, "auto", 0.0, ""),
        ({"model_type": "llama"}, "auto", 0.0, ""),
        ({"model_type": "llama"}, "off", 0.0, ""),
        (
            {"model_type": "deepseek_v3", "n_routed_experts": 8, "aux_loss_alpha": 0.1},
            "auto",
            0.0,
            "aux_loss_alpha: 0.1 of",
        ),
        (
            {"model_type": "llama4_text", "num_local_experts": 4, "router_aux_loss_coef": 0.1},
            "auto",
            0.0,
            "computes none",
        ),
    ],
)
def test_what_a_config_gets(described, asked, coefficient, said):
    found = balancing(described, asked)
    assert found.coefficient == coefficient
    assert said in found.said
    assert bool(said) == bool(found.said)


@pytest.mark.parametrize("described", [{"model_type": "llama"}, {"model_type": "deepseek_v3", "n_routed_experts": 8}])
def test_a_coefficient_without_such_a_loss_is_refused(described):
    with pytest.raises(ConfigError, match=r"train\.router_aux_loss: 0\.1, but there is no balancing loss"):
        balancing(described, 0.1)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "qwen2_moe", "olmoe", "phimoe", "granitemoe", "jamba"])
def test_it_is_the_models_own(family):
    torch.manual_seed(0)
    more = {"use_mamba_kernels": False, "mamba_d_state": 4, "mamba_dt_rank": 4} if family == "jamba" else {}
    config = AutoConfig.for_model(family, **GROUPED, **EXPERTS, **more)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert experts_per_token(model) == 2
    check_routing(AnswerLogProbs(model), 2)
    with pytest.raises(ConfigError, match="in a way that raydpo does not know"):
        check_routing(AnswerLogProbs(model), 1)


def test_a_model_without_routers_is_refused():
    config = AutoConfig.for_model("llama", **GROUPED)
    with pytest.raises(ConfigError, match="LlamaForCausalLM gives no router logits"):
        check_routing(AnswerLogProbs(AutoModelForCausalLM.from_config(config).eval()), 2)
