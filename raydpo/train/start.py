"""What a rank trains, before DeepSpeed has it: the model, how it reads sequences, and where its weights come from.

Comes in: a `TrainSpec`. Goes out: a model that was tried out, with its adapter. Decision: what depends on the code of a model
alone is tried on a small copy, so that a start costs the same at any depth; under ZeRO-3 the model has no weights until each
rank reads its own part. Price: where a model cannot be made small or read in parts, every rank reads all of it, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raydpo.errors import ConfigError
from raydpo.models.adapted import said
from raydpo.models.attention import register
from raydpo.models.balancing import balancing_in
from raydpo.models.hollow import HollowModel, WholeNeeded, hollow_model
from raydpo.models.layout import Layout, choose_layout
from raydpo.models.logprobs import AnswerLogProbs, check_head
from raydpo.models.lora import add_lora
from raydpo.models.memory import Scale
from raydpo.models.packed import packed_said
from raydpo.models.pretrained import load_model
from raydpo.models.router_probe import check_routing
from raydpo.models.routing import experts_per_token
from raydpo.models.sequence_parallel import check_shareable
from raydpo.models.slices import refuse_not_finite
from raydpo.models.small_copy import NoSmallCopy, scale_between, small_copy
from raydpo.models.text_part import freeze_what_text_does_not_reach
from raydpo.models.training_mode import check_training_mode
from raydpo.models.work import Work, work_of
from raydpo.train.balance import Experts
from raydpo.train.spec import TrainSpec


@dataclass(frozen=True)
class Start:
    """A model in training mode, ready for an engine.

    model: with its adapter. source: where its weights are read from; None: they are in it.
    small: a small copy with such an adapter, and what it stands for; None: there is none.
    layout: how it reads sequences. work: what a sequence costs. experts: how their balance enters the loss.
    notes: what a person should know.
    """

    model: Any
    source: HollowModel | None
    small: tuple[Any, Scale] | None
    layout: Layout
    work: Work
    experts: Experts | None
    notes: tuple[str, ...]


def start_of(spec: TrainSpec) -> Start:
    """Make and try out the model of `spec`. Raises ConfigError for one that cannot be trained."""
    config, lora = spec.config, spec.config.train.lora
    model, source, copy, notes = _model_of(spec)
    tried = model if copy is None else copy
    if config.model.attention != "flash_attention_2":  # which does not run on the CPU, where the model still is
        check_head(AnswerLogProbs(tried))
    check_training_mode(tried)
    experts = find_experts(tried, spec)
    layout, why = choose_layout(tried, config.model.attention)
    if layout == "packed":
        model.set_attn_implementation(register())
    elif why:
        notes.append(f"answers do not share their prompt, rows are padded: {why}")
    if config.train.sequence_parallel_size > 1:
        check_shareable(model, layout, why, config.train.sequence_parallel_size)
    work = work_of(model)
    if towers := freeze_what_text_does_not_reach(model):
        notes.append(towers)
    if spec.model.four_bit is not None:
        notes.append(packed_said(model))
    if lora is not None:
        model = add_lora(model, seed=config.run.seed, **lora.placed())
        notes.append(said(model))
    model.train()  # every dropout is 0; gradient checkpointing works in training mode only
    return Start(model, source, _small(copy, model, spec), layout, work, experts, tuple(notes))


def _model_of(spec: TrainSpec) -> tuple[Any, HollowModel | None, Any, list[str]]:
    """(model, where its weights are if they are not in it, small copy if there is one, notes)."""
    train = spec.config.train
    notes: list[str] = []
    if train.zero_stage == 3:
        try:
            if spec.model.four_bit is not None:
                raise WholeNeeded("its matrices are packed while it is loaded")
            hollow = hollow_model(spec.model.here(), spec.dtype, spec.config.model.attention)
            return hollow.model, hollow, small_copy(hollow.model), notes
        except (WholeNeeded, NoSmallCopy) as why:
            notes.append(f"every rank reads the whole model instead of its own part: {why}")
    model = load_model(spec.model, spec.dtype, spec.config.model.attention)
    refuse_not_finite(model)
    try:
        return model, None, small_copy(model), notes
    except NoSmallCopy as why:
        return model, None, None, [*notes, f"the whole model was tried out, not a small copy: {why}"]


def _small(copy: Any, model: Any, spec: TrainSpec) -> tuple[Any, Scale] | None:
    """The copy with an adapter like that of `model`; None where it would have another one."""
    if copy is None:
        return None
    lora = spec.config.train.lora
    freeze_what_text_does_not_reach(copy)
    try:
        adapted = copy if lora is None else add_lora(copy, seed=spec.config.run.seed, **lora.placed())
        return adapted.train(), scale_between(adapted, model)
    except (ConfigError, NoSmallCopy):
        return None


def find_experts(model: Any, spec: TrainSpec) -> Experts | None:
    """How the balance of the experts enters the loss, None: it does not. Raises ConfigError."""
    found = balancing_in(spec.model.here(), spec.config.train.router_aux_loss)
    experts = Experts(found.coefficient, experts_per_token(model)) if found.coefficient else None
    if experts is not None and spec.config.model.attention != "flash_attention_2":
        check_routing(AnswerLogProbs(model), experts.top_k)
    return experts
