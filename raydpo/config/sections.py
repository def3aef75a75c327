"""The configuration, one frozen pydantic model a section. `Config` at the end is the whole of it.

What comes in: plain nested dicts (from `load`). What goes out: validated values; unknown keys fail.
Decision: everything is validated when it is built and nothing is read from the environment, so that a resolved
`config.yaml` alone reproduces a run. The text under a field is its help in the JSON schema.
Imports nothing heavier than pydantic: a config check starts at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field

from raydpo.config import deepspeed_keys
from raydpo.config.byte_size import size_in_bytes
from raydpo.config.cross_checks import cross_checks
from raydpo.config.doors import FORMATS, SCHEDULES, SINKS
from raydpo.config.key_facts import FREE, FREE_IN_TRAINING
from raydpo.config.load_as import load_as
from raydpo.config.meanings import Meaning
from raydpo.config.mixture_entry import Entries, entry_problems
from raydpo.config.objective_section import ObjectiveSection
from raydpo.config.round_sections import GenerateSection, JudgeSection, RoundsSection
from raydpo.config.scheduling_section import SchedulingSection
from raydpo.config.section import OneOrMany, Section, one_or_many
from raydpo.config.worker_range import Workers, bounds, range_problems


def _off(value: Any) -> Any:
    """A coefficient of 0 is off."""
    return "off" if value == 0 and not isinstance(value, bool) else value


class RunSection(Section):
    dir: Annotated[str, FREE] = Field(min_length=1)
    """Run directory. Every node must see it. Under a Ray job it must be absolute."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of the data order (and of freshly created LoRA weights)."""
    resume: Annotated[Literal["auto", "never", "must"], FREE] = "auto"
    """auto: go on from the newest valid checkpoint if there is one. never: start over, the old outputs are set
    aside, not deleted. must: fail when there is nothing to go on from."""
    runtime: Annotated[Literal["ray", "local"], FREE] = "ray"
    """What runs the workers. ray: actors, on the cluster of RAY_ADDRESS or a private Ray on this machine. local: processes of
    this machine without Ray, and a role of one worker in this process, so that a breakpoint works; the same files and
    numbers. `--local` is short for it."""
    runtime_in_process: Annotated[bool, FREE] = True
    """Of `runtime: local`: false runs a role of one worker in a process of its own too, which can be killed alone."""
    wait_for_nodes_s: Annotated[float, FREE] = Field(default=0, ge=0)
    """Seconds that a role waits for nodes that are not there when its turn comes, for instance because an autoscaler starts
    them when they are asked for. 0: a run that the nodes of now can never hold is refused at its start. Of Ray alone."""
    stop_grace_s: Annotated[float, FREE] = Field(default=25, gt=0)
    """Seconds that a run has, after SIGTERM or Ctrl-C, to reach the next boundary of its work and commit it. What takes
    longer, and a second signal, ends it at once; what was committed before is safe. Less than what your scheduler waits
    before it kills (Kubernetes 30 s, Slurm 30 s)."""


class ModelSection(Section):
    path: Annotated[str, FREE] = Field(min_length=1)
    """Folder or hub id of the SFT checkpoint that training starts from."""
    revision: Annotated[str | None, FREE] = None
    """Branch, tag or commit of a hub id. Resolved to a commit, which is recorded."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype of policy and reference. auto: bfloat16 on a GPU, float32 on a CPU."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention of policy and reference. auto: answers share their prompt in one packed stream, where the model can; else
    padded rows with sdpa. The others: padded rows with that backend."""


OURS = frozenset({"messages", "tools", "tokenize", "add_generation_prompt", "continue_final_message", "chat_template"})
"""Arguments of apply_chat_template that are not settings of a template."""


class DataSection(Section):
    train: Annotated[Entries, FREE] = ()
    """Files, folders, globs, or hub ids (`hub:owner/name@revision:split`) of training examples. A folder, glob or hub id
    without a split is split by name where files or splits are called train, validation (valid, val, dev, eval) or test:
    the training part is trained on, the validation part (without one the test part) is held out unless `eval` or
    `eval_fraction` is set, and the log says so. A test part is trained on only where it is named itself.
    A mixture: an entry may be {path: ..., passes: 2, count: 5000, seed: 1, name: chat}. count: at most so many examples, a
    seeded sample (all where there are fewer). passes: how often each of them is used in an epoch (2.5: twice, and a third
    time with a chance of a half). seed: default run.seed. name: in reports and metrics, default the path's own."""
    eval: Annotated[Entries, FREE] = ()
    """The same for held-out examples. Of a folder, glob or hub id with a training part, the held-out part alone is read.
    An entry may have path, count, seed and name. Where several entries are held out, evaluations have the metrics of each,
    too, as `eval/<name>/loss`."""
    deduplicate: Literal["none", "prompt", "pair"] = "none"
    """Leave out examples that were there before in the same split, in the order of the entries, and count them. prompt: of
    equal prompts the first. pair: of examples with equal prompt, answers and label the first. Before anything is drawn or
    repeated."""
    format: Annotated[str, FORMATS] = "auto"
    """Layout of the rows. auto: detected from the first good rows of each file, and named in the log.
    labelled (prompt, completion, label) serves objectives on labels, text (a prompt and one completion, or chosen
    alone) sft and nll. tokenized (prompt_ids, chosen_ids, rejected_ids, tokenizer), which rounds write: the ids are used
    as they are; standard or conversational reads the text of such a file instead. package.module:name is a format of your
    own (docs/extend.md)."""
    columns: dict[Meaning, str] = Field(default={})
    """What columns of other names mean: {prompt: question, system: instructions}; dots reach into nested fields. Meanings:
    prompt, system, messages, chosen, rejected, completion, label, answers, scores, text, tools. docs/data.md has the names
    that are known without it."""
    ignore: OneOrMany = ()
    """Columns that are not read, whatever their names say. A column whose name says that it matters, and which no layout
    reads, stops the run otherwise."""
    eval_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of prompts moved from train to eval when `eval` is empty. Rows of one prompt stay together."""
    max_length: int = Field(default=2048, ge=2)
    """Longest prompt + answer in tokens; `overlong` says what happens beyond."""
    overlong: Literal["drop", "truncate_prompt", "error"] = "drop"
    """drop: leave the example out and count it. truncate_prompt: cut the prompt's oldest tokens, the same cut for
    both answers. error: stop. An answer is never cut."""
    max_bad_fraction: float = Field(default=0.02, ge=0.0, le=1.0)
    """Stop with the table of reasons when more than this share of the lines is quarantined (overlong rows are
    counted separately)."""
    control_tokens: Literal["plain", "quarantine", "allow"] = "plain"
    """The tokenizer's control tokens inside the text. plain: read as ordinary text. quarantine: leave the row out.
    allow: read as control tokens (for text that is already templated)."""
    bos: Literal["auto", "always", "never"] = "auto"
    """BOS in front of a row. auto: as the tokenizer itself writes one, in conversations as the chat template does. always:
    one in every row. never: none. An empty prompt gets one with auto, since something has to predict its answer."""
    eos: str = Field(default="auto", min_length=1)
    """The token that ends an answer. auto: in conversations the first behind the answer that the chat template writes and
    that the model's generation_config.json (or config.json) or its tokenizer names as an end; in plain text, and where a
    template writes none, the tokenizer's EOS. Otherwise the text of one token, which then ends every answer."""
    confidence_column: str | None = None
    """Column with annotator confidence or agreement; dots reach into nested fields."""
    min_confidence: float | None = None
    """Rows whose `confidence_column` is below this are left out and counted."""
    unpair: bool = False
    """For objectives on labels (kto, bco, apo_zero_unpaired): read each pair as a desirable and an undesirable answer."""
    weight_column: str | None = None
    """Column with a weight of the example, 0 to 1e6; dots reach into nested fields. Its loss is multiplied by it, the
    denominator stays the number of examples."""
    chat_template: Annotated[str | None, FREE] = None
    """Path of a Jinja chat template that replaces the tokenizer's own."""
    chat_template_kwargs: dict[str, Any] = Field(default={})
    """Settings of the chat template: {enable_thinking: false}. A column chat_template_kwargs of a row wins over them."""
    num_workers: Annotated[int, FREE] = Field(default=1, ge=1)
    """Processes of one CPU each that read and encode large files, in parts of 4,096 rows. 1: the driver itself. What is written
    does not depend on it. A preparation that was ended goes on behind its last part. How often a part is given to another
    worker, and after which silence, say `reference.max_retries` and `reference.hang_timeout_s`."""

    def clashes(self) -> Iterator[str]:
        if (self.confidence_column is None) != (self.min_confidence is None):
            yield "confidence_column and min_confidence go together: set both or neither"
        yield from (*entry_problems("train", self.train), *entry_problems("eval", self.eval))
        if empty := [meaning for meaning, column in self.columns.items() if not column.strip(". ")]:
            yield f"columns: no column is named for {', '.join(empty)}"
        if taken := sorted(OURS & self.chat_template_kwargs.keys()):
            yield f"chat_template_kwargs names {', '.join(taken)}, which the program sets itself"
        if twice := sorted({column for column in self.columns.values() if column in self.ignore}):
            yield f"columns and ignore both name {', '.join(twice)}, which can be read or left out"


class ReferenceSection(Section):
    cache_dir: Annotated[str, FREE] = Field(default="~/.cache/raydpo", min_length=1)
    """Where reference log-probs live, shared by all runs. Every node must see it."""
    model: Annotated[str | None, FREE] = None
    """Reference model when it is not the model that training starts from."""
    revision: Annotated[str | None, FREE] = None
    """Branch, tag or commit when `reference.model` is a hub id."""
    num_workers: Annotated[Workers, FREE] = 1
    """Ray actors that score; each holds one copy of the reference. {min: 1, max: 8}: work begins with min of them, the others
    take part as soon as there is room, on nodes that join later, too."""
    cpus_per_worker: Annotated[float, FREE] = Field(default=1, gt=0)
    """CPUs reserved for one reference worker; also its number of threads."""
    gpus_per_worker: Annotated[float, FREE] = Field(default=0, ge=0)
    """GPUs reserved for one reference worker, 1 at most. Below 1 it shares a GPU with others."""
    weights: Annotated[Literal["auto", "whole", "streamed", "trainers"], FREE] = "auto"
    """Who holds the reference, and how. whole: workers load it once. streamed: a worker holds one decoder layer at a time, read
    from its files once for `stream_tokens` tokens, so that a model far larger than the device can be the reference. auto: whole
    where it fits, else streamed, and the log says so. trainers: the ranks that train score every row before their first step,
    sharded as they are, where the policy starts as the reference; no second model is loaded. Shards and cache are the same. In
    rounds with `reference: previous_round` auto is trainers, where they can, have as many threads, and `tokens_per_batch` is
    not above `train.tokens_per_microbatch`. A LoRA adapter is merged layer by layer, others are whole, and so is a base in 4
    bits (train.lora.quantize_base). A policy that is evaluated and an export that is proven are held as auto would hold them,
    with whole they are whole."""
    stream_tokens: Annotated[int, FREE] = Field(default=65536, ge=1)
    """Of a streamed model, tokens that go through a layer while it is there, padding included. Their hidden states are in
    memory meanwhile: 2 x hidden size x bytes of a number each. More tokens: weights are read less often."""
    scheduling: Annotated[SchedulingSection, FREE] = SchedulingSection()
    """On which nodes reference workers run. Of Ray alone."""
    tokens_per_batch: Annotated[int, FREE] = Field(default=8192, ge=1)
    """Tokens of one forward, padding included. A longer row gets a forward of its own; what does not fit into memory is done
    in halves."""
    rows_per_shard: Annotated[int, FREE] = Field(default=512, ge=1)
    """Rows of one shard: what a killed run loses at most, per worker."""
    hang_timeout_s: Annotated[float, FREE] = Field(default=1800, gt=0)
    """End a worker that finished no batch for this long, and give its shard to another one."""
    max_retries: Annotated[int, FREE] = Field(default=2, ge=0)
    """How often a shard is given to another worker after its worker died or hung."""
    sync_every: int | None = Field(default=None, ge=1)
    """Optimizer steps between two updates of the reference from the policy (TR-DPO; 512 in the paper). At each there is
    a checkpoint, and the rows of the steps up to the next one are scored again. Rewards are measured from the current
    reference, so margins fall back at every update, which early stopping and the choice of the best checkpoint by
    margins see too. Each reference leaves a cache in `cache_dir`. None: the reference never moves."""
    sync_alpha: float = Field(default=0.6, gt=0, le=1)
    """Share of the policy in an updated reference; the rest is the reference before. 1: the policy itself."""

    @property
    def workers(self) -> tuple[int, int]:
        """Fewest and most workers."""
        return bounds(self.num_workers)

    def clashes(self) -> Iterator[str]:
        yield from range_problems(self.num_workers)
        if self.gpus_per_worker > 1:
            yield (
                f"gpus_per_worker is {self.gpus_per_worker:g}; at most 1 is allowed. A reference worker computes on one GPU, "
                "and the others would stand idle. Set num_workers to the number of GPUs; a model that does not fit into one is "
                "streamed through it layer by layer (reference.weights)"
            )


class LoraSection(Section):
    rank: int = Field(default=16, ge=1)
    """Rank of the adapter matrices."""
    alpha: float = Field(default=32, gt=0)
    """Scale: the update is multiplied by alpha / rank, with `rslora` by alpha / sqrt(rank)."""
    rslora: bool = False
    """Rank-stabilised scale (arXiv 2312.03732): alpha / sqrt(rank)."""
    dora: bool = False
    """DoRA (arXiv 2402.09353): magnitudes of the outputs are trained beside their directions. Not for experts."""
    init: str = "default"
    """How the first matrix is drawn: default (uniform) or gaussian. The second one is 0, so that the policy starts at the
    reference; initialisations that change the base are refused."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Module names, or all-linear: every linear layer but the head, routers of experts and towers of images and sound. A head
    that is tied to the embedding is refused."""
    experts: bool = True
    """With all-linear, adapt also the matrices of experts, each with factors of its own. With module names: never."""
    modules_to_save: tuple[str, ...] = ()
    """Names of modules that are trained whole beside the adapter and stored with it, such as embed_tokens and lm_head of an
    untied model."""
    dropout: float = 0.0
    """0 alone is allowed: log-ratios compare a policy with its reference, and one that is random has no log-probs."""
    quantize_base: Literal["none", "nf4"] = "none"
    """QLoRA (arXiv 2305.14314). nf4: the linear layers of the base are packed in 4 bits when it is loaded (bitsandbytes, double
    quantisation), but for the head and `modules_to_save`; policy and reference are the packed model alike. `model/` then says
    how its base is packed (`base_quantization.json`), and `model_merged/` is the adapter in what the base unpacks to. Needs
    the extra `qlora`; ZeRO 0 to 2."""
    merge: bool = False
    """Also write the merged model to `model_merged/`."""

    def clashes(self) -> Iterator[str]:
        if self.dropout:
            yield (
                f"dropout: {self.dropout:g}; 0 is allowed. Log-ratios compare policy and reference token by token, and "
                "with dropout the policy would be another at every forward: step 0 would not be at ln 2, and no export "
                "would say what was trained. Leave it out; weight_decay or fewer epochs work against overfitting"
            )
        if self.init not in ("default", "gaussian"):
            yield (
                f"init: {self.init}; default and gaussian are allowed. An initialisation that changes the base or starts with "
                "an update (pissa, olora, loftq, corda, eva, orthogonal) would start the policy away from its reference. "
                "Leave it out"
            )

    def placed(self) -> dict[str, Any]:
        """What decides the adapter, by the names that `raydpo.models.lora` has for it."""
        return self.model_dump(exclude={"merge", "dropout", "quantize_base"})


class TrainSection(Section):
    num_workers: Annotated[Workers, FREE] = 1
    """Trainer ranks. A run may go on with another number of them. {min: 1, max: 4}: as many as there is room for, at a start
    and after each loss of one; where a node joins later, more from the next checkpoint on. The examples of each step are the
    same."""
    cpus_per_worker: Annotated[float, FREE] = Field(default=1, gt=0)
    """CPUs reserved for one rank; also its number of threads. 1 beside a GPU: the node's cores are divided by its ranks."""
    gpus_per_worker: float = Field(default=0, ge=0)
    """GPUs reserved for one rank. 0: train on the CPU with gloo."""
    scheduling: Annotated[SchedulingSection, FREE] = SchedulingSection()
    """On which nodes ranks run. Of Ray alone."""
    learning_rate: float = Field(default=5e-7, gt=0)
    """Peak learning rate."""
    schedule: Annotated[str, SCHEDULES] = "cosine"
    """Decay after the warm-up, to 0 one step after the last (constant: no decay; cosine_to_tenth: to a tenth of the
    peak). package.module:name is a schedule of your
    own (docs/extend.md)."""
    warmup_fraction: float = Field(default=0.1, ge=0, le=1)
    """Share of all steps over which the learning rate rises linearly from 0."""
    global_batch_pairs: int = Field(default=64, ge=1)
    """Examples of one optimizer step over all ranks. The last, partial batch is trained with its true count."""
    tokens_per_microbatch: Annotated[int, FREE] = Field(default=8192, ge=1)
    """Tokens of one forward on one rank, padding included. Changes speed and memory, never the update. Where a micro-batch
    does not fit, training goes on from the newest checkpoint with smaller ones, and says so."""
    epochs: float = Field(default=1, gt=0)
    """Passes over the training examples."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimizer steps, whatever `epochs` says."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW weight decay."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW beta1."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """AdamW beta2."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Clip the global gradient norm to this. 0: no clipping."""
    zero_stage: Annotated[Literal[0, 1, 2, 3], FREE] = 2
    """DeepSpeed ZeRO stage. In bfloat16, 0 and 1 run as 2: the same update, without a whole gradient in float32 on every rank.
    A run may go on with another one."""
    offload_optimizer: Annotated[bool, FREE] = False
    """Keep the optimizer state in CPU memory (ZeRO 1, 2, 3), and update it there: beside GPUs with DeepSpeed's CPU Adam where
    it builds (a C++ compiler, half a minute once a machine), else with torch's. `zero_force_ds_cpu_optimizer` in `deepspeed`
    decides otherwise: true, DeepSpeed's or an error; false, torch's."""
    offload_parameters: Annotated[bool, FREE] = False
    """Keep the parameters in CPU memory between uses (ZeRO 3)."""
    deepspeed: deepspeed_keys.Settings = Field(default={})
    """Further settings of DeepSpeed, as its JSON has them, or the path of such a file: ZeRO++, NVMe offload, sizes of buffers.
    What another key here decides (batches, dtype, optimizer, stage) is refused."""
    sequence_parallel_size: Annotated[int, FREE] = Field(default=1, ge=1)
    """Ranks that share every sequence (DeepSpeed Ulysses), for prompts too long for one: each computes a stretch of the tokens,
    and attention for its part of the heads. Divides `num_workers` and the model's attention heads. A micro-batch of
    `tokens_per_microbatch` is then one of so many ranks together."""
    gradient_checkpointing: bool = False
    """Recompute the activations of every layer in the backward pass: less memory, about a third more time."""
    activation_memory_gb: Annotated[float | None, FREE] = Field(default=None, gt=0)
    """Memory for the activations of one rank, in 10^9 bytes. As few layers are recomputed as it takes for
    `tokens_per_microbatch` tokens, and for the longest example, to fit; where all are not enough, micro-batches get fewer
    tokens. Measured on a few tokens before the start. Weights, gradients and optimizer state are not in it. Changes speed
    and memory, never the update."""
    compile: bool = False
    """Compile every decoder layer with torch.compile (ZeRO 0 to 2; needs a C++ compiler on a CPU). A slower first step,
    faster later ones; log-probs change in their last digits."""
    lora: LoraSection | None = None
    """Train a LoRA adapter instead of all weights. The reference is then the model with the adapter off."""
    router_aux_loss: Annotated[Literal["auto", "off"] | float, BeforeValidator(_off)] = "auto"
    """Balancing loss of a mixture of experts, added to the objective's. auto: on with the coefficient of the model's config
    (`router_aux_loss_coef`) where transformers computes it for the family; the log says which. off, or a coefficient. Token
    shares are those of the global batch, counted as in padded rows, so it costs a second forward."""
    eval_every: Annotated[int | None, FREE] = Field(default=None, ge=1)
    """Steps between evaluations; there is always one before the first and one after the last step."""
    save_every: Annotated[int | None, FREE] = Field(default=None, ge=1)
    """Steps between checkpoints, besides those by time; there is always one after the last step."""
    save_every_minutes: Annotated[float | None, FREE] = Field(default=15, gt=0)
    """Minutes between checkpoints: so much work is lost at most when a machine dies. null: by steps alone."""
    save: Annotated[Literal["all", "weights"], FREE] = "all"
    """What a checkpoint holds. weights: the model alone, a quarter of the bytes in float32; nothing goes on from it: a run that
    was interrupted starts over."""
    keep_checkpoints: Annotated[int, FREE] = Field(default=2, ge=1)
    """Newest checkpoints kept; the best one is kept as well."""
    best_metric: Annotated[Literal["eval/rewards/margins", "eval/rewards/accuracies", "eval/loss"] | None, FREE] = None
    """Metric that names the best checkpoint among those that were evaluated. Default: `eval/rewards/margins` for
    objectives with pairs, else `eval/loss`. Higher is better, except for `eval/loss`."""
    export: Annotated[Literal["last", "best"], FREE] = "last"
    """Which checkpoint becomes `model/`. best: a checkpoint is written at every evaluation."""
    max_shard_size: Annotated[int | str, FREE] = "5GB"
    """Largest safetensors file of `model/` and `model_merged/`, in bytes or as 300MB, 5GB, 2GiB; a larger tensor has a file
    of its own. A model of more is written to several files and their index, tensor by tensor while ranks gather it: rank 0
    holds no copy of it, and training waits for the disk."""
    verify_export: Annotated[bool, FREE] = True
    """Load `model/` and `model_merged/` again with plain transformers before they are published, and compare log-probs of a few
    rows with the trainers'. A model larger than what is free is held one layer at a time there (`reference.weights`), the base
    of an adapter whole."""
    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Stop after this many evaluations without a better `eval/rewards/margins`."""
    max_nonfinite_steps: Annotated[int, FREE] = Field(default=3, ge=1)
    """Stop after this many skipped non-finite steps in a row."""
    log_every: Annotated[int, FREE] = Field(default=1, ge=1)
    """Steps between two lines of `metrics.jsonl`."""
    sinks: Annotated[tuple[str, ...], BeforeValidator(one_or_many), SINKS, FREE] = ("jsonl", "tensorboard")
    """Where metrics go. jsonl: `metrics.jsonl`, always there, because a run that goes on reads it. tensorboard: events in
    `tensorboard/`. package.module:name is a sink of your own (docs/extend.md)."""
    max_failures: Annotated[int, FREE] = Field(default=3, ge=0)
    """Deaths of ranks that the run survives since its last checkpoint: ranks start anew and go on from there. The same
    step that dies twice of the same cause ends the run. 0: the first death ends it."""
    max_preemptions: Annotated[int | None, FREE] = Field(default=None, ge=0)
    """The same for machines that were taken away with notice (preempted, drained). null: any number."""
    hang_timeout_s: Annotated[float, FREE] = Field(default=1800, gt=0)
    """Stop and name the ranks that reported nothing for this long."""

    @property
    def ranks(self) -> tuple[int, int]:
        """Fewest and most ranks."""
        return bounds(self.num_workers)

    @property
    def max_shard_bytes(self) -> int:
        """`max_shard_size` in bytes."""
        return size_in_bytes(self.max_shard_size)

    def clashes(self) -> Iterator[str]:
        yield from range_problems(self.num_workers)
        try:
            size_in_bytes(self.max_shard_size)
        except ValueError as error:
            yield f"max_shard_size: {error}"
        if "jsonl" not in self.sinks:
            yield (
                "sinks without jsonl: metrics.jsonl is written in any case, because a run that goes on reads it; "
                "add jsonl to the list"
            )
        if len(set(self.sinks)) < len(self.sinks):
            yield "sinks names one of them twice; it would write everything twice"
        if self.offload_parameters and self.zero_stage != 3:
            yield "offload_parameters needs zero_stage: 3"
        if self.gpus_per_worker not in (0, 1):
            yield "gpus_per_worker is 0 (train on the CPU) or 1 (a rank drives one GPU)"
        if self.offload_optimizer and self.zero_stage == 0:
            yield "offload_optimizer needs zero_stage: 1, 2 or 3"
        yield from deepspeed_keys.problems(self.deepspeed, self)
        if self.compile and self.zero_stage == 3:
            yield "compile needs zero_stage: 0, 1 or 2: ZeRO 3 gathers weights where a compiled graph would break"
        if self.lora is not None and self.lora.quantize_base != "none" and self.zero_stage == 3:
            yield (
                f"lora.quantize_base: {self.lora.quantize_base} with zero_stage: 3, which takes packed matrices apart; DoRA on "
                "them was seen to fail. Use zero_stage: 0, 1 or 2: each rank then holds the packed base, half a byte a weight"
            )
        if isinstance(self.router_aux_loss, float) and not 0 < self.router_aux_loss < math.inf:
            yield f"router_aux_loss is auto, off or a coefficient above 0, not {self.router_aux_loss:g}"
        yield from self._shared_sequences()
        if self.gradient_checkpointing and self.activation_memory_gb is not None:
            yield "gradient_checkpointing recomputes every layer, activation_memory_gb chooses how many: set one of the two"

    def _shared_sequences(self) -> Iterator[str]:
        size, (least, most) = self.sequence_parallel_size, self.ranks
        if size == 1:
            return
        if least != most or least % size:
            asked = f"{{min: {least}, max: {most}}}" if least != most else str(least)
            yield (
                f"sequence_parallel_size: {size} with num_workers: {asked}; a multiple of {size} is allowed, and no range. "
                "Ranks would have been left over"
            )
        for key, used in (("compile", self.compile), ("activation_memory_gb", self.activation_memory_gb)):
            if used:
                yield f"sequence_parallel_size: {size} with {key}, which is for sequences of one rank: leave one of them out"


class EvaluateSection(Section):
    model: Annotated[str | None, FREE] = None
    """What `raydpo evaluate` looks at: a model folder, a checkpoint folder or a hub id. Default: the run's `model/`."""
    tie_tolerance_nats: Annotated[float | None, FREE] = Field(default=None, ge=0)
    """A pair whose log-ratio margin is within this of 0 is a tie and counts half. Default: 1e-3 in float32, 0.1 in
    bfloat16, which is the noise of the arithmetic."""
    kept_pairs: Annotated[int, FREE] = Field(default=500, ge=0)
    """Of so many held-out examples, at equal distances, the run keeps the log-probs by token of its newest evaluation, in
    `evaluation.arrow`, for its report. 0: of none."""


class Config(Section):
    """A whole run. `Config.load(path, overrides)` reads one from a YAML file."""

    run: RunSection
    model: ModelSection
    data: DataSection = DataSection()
    objective: ObjectiveSection = ObjectiveSection()
    reference: ReferenceSection = ReferenceSection()
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()
    generate: Annotated[GenerateSection, FREE_IN_TRAINING] = GenerateSection()
    judge: Annotated[JudgeSection | None, FREE] = None
    rounds: Annotated[RoundsSection | None, FREE_IN_TRAINING] = None
    profile: Annotated[bool, FREE] = False
    """Record three steps of rank 0 of `raydpo train` (after the first one, up to the next evaluation or checkpoint):
    a trace for a viewer and a table of where the time went, in `profile/`. Changes no number."""

    @classmethod
    def load(cls, path: Any, overrides: Sequence[str] = ()) -> Self:
        """Read `path` (YAML) and apply `overrides` ("section.key=value"). All problems at once as ConfigError."""
        return load_as(cls, path, overrides, cross_checks).config
