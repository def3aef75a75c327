"""Options of Megatron that ms-swift hands on: one table, and batch, schedule and precision of ours from them.

Comes in: a draft. Goes out: the same with lines of ours. Decision: how a model is spread over devices changes no number here.
"""

from __future__ import annotations

from typing import Any

from raydpo.importing import training_arguments
from raydpo.importing.draft import Draft
from raydpo.importing.fates import Only, Row, To, idle, number, off, together

DEFAULTS: dict[str, Any] = {
    "tuner_type": "full",
    "micro_batch_size": 1,
    "global_batch_size": 16,
    "weight_decay": 0.1,
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "clip_grad": 1.0,
    "lr_decay_style": "cosine",
    "min_lr": 0,
    "lr_warmup_iters": 0,
}
TABLE: dict[str, Row] = {
    "lr": To("train.learning_rate", number),
    "global_batch_size": To("train.global_batch_pairs", int),
    "clip_grad": To("train.max_grad_norm", number),
    "adam_eps": Only((1e-8,), "AdamW's epsilon is 1e-8 here"),
    "optimizer": Only(("adam",), "the optimizer here is AdamW"),
    "moe_aux_loss_coeff": To("train.router_aux_loss", float),
    **off("it changes the loss", "moe_z_loss_coeff mtp_num_layers"),
    **off("numbers in 8 bits", "fp8_format fp4_format"),
    **together("lr_decay_style min_lr lr_warmup_fraction lr_warmup_iters train_iters recompute_granularity"),
    **idle(
        "how the model is spread, speed and memory",
        "micro_batch_size tensor_model_parallel_size pipeline_model_parallel_size expert_model_parallel_size "
        "expert_tensor_parallel_size context_parallel_size sequence_parallel decoder_first_pipeline_num_layers "
        "decoder_last_pipeline_num_layers virtual_pipeline_model_parallel_size moe_permute_fusion moe_grouped_gemm "
        "moe_shared_expert_overlap moe_token_dispatcher_type moe_enable_deepep recompute_method recompute_num_layers "
        "recompute_modules cross_entropy_loss_fusion cross_entropy_fusion_impl attention_backend optimizer_cpu_offload "
        "optimizer_offload_fraction use_precision_aware_optimizer overlap_grad_reduce overlap_param_gather "
        "tp_comm_overlap "
        "use_distributed_optimizer manual_gc manual_gc_steps",
    ),
    **idle(
        "saving and loading",
        "save_safetensors finetune no_save_optim no_save_rng no_load_optim no_load_rng async_save bridge_backend "
        "load_safetensors",
    ),
}


def compose(draft: Draft) -> None:
    """Length, schedule, precision and checkpoints."""
    if draft.get("lr") is None:
        draft.add_default("lr", 1e-5 if draft.get("tuner_type") == "full" else 1e-4)
    draft.add_default("num_train_epochs", 1)
    steps = training_arguments.length_of_run(draft, steps="train_iters")
    peak, low = draft.get("lr"), draft.get("min_lr") or 0
    floor = low / peak if isinstance(peak, int | float) and peak else None
    training_arguments.put_schedule(draft, str(draft.get("lr_decay_style")), floor, "lr_decay_style", "min_lr")
    share, iterations = draft.get("lr_warmup_fraction"), draft.get("lr_warmup_iters", 0)
    if share is not None:
        draft.put("train.warmup_fraction", number(share), "lr_warmup_fraction")
    elif not iterations or steps:
        draft.put("train.warmup_fraction", round(iterations / steps, 9) if steps else 0.0, "lr_warmup_iters")
    else:
        draft.lose("lr_warmup_iters", "the run's number of steps is not in the file", "train.warmup_fraction")
    draft.same("lr_warmup_iters", "lr_warmup_fraction decides") if "lr_warmup_iters" not in draft.fates else None
    is_recomputed = draft.get("recompute_granularity") == "full"
    draft.put("train.gradient_checkpointing", is_recomputed, "recompute_granularity")
    draft.add_default("eval_strategy", "steps" if draft.get("eval_steps") else "no")
    training_arguments.evaluations(draft)
    training_arguments.precision(draft, "bfloat16", "torch_dtype")
