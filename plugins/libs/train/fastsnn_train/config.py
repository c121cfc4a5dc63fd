"""The spec sections ``[data]`` and ``[train]``."""

from __future__ import annotations

from typing import Any

from attrs import evolve, frozen

from fastsnn_core import Objective, Tracker, param, slot, slots
from fastsnn_core.errors import FastSNNError

BESIDE_QUALITY = (
    *(
        "max_steps",
        "epochs",
        "log_every",
        "eval_every",
        "eval_sequences",
        "checkpoint_every",
        "keep",
        "trackers",
        "bundle",
    ),
    *("accumulate", "checkpointing", "checkpoint_time", "compile", "parallel"),
)
"""Settings of a run that may change between a stop and its resumption without changing what is learnt."""
EARLIER = {"recurrent_lr": 1.0}
"""What runs did before there was a setting, where that is not its default."""


@frozen
class DataConfig:
    """What to train on: a source, how it becomes tokens, and how tokens become sequences."""

    name = "data"
    dataset: str = param(
        "builtin:pydoc",
        doc="Hugging Face name, file or folder (text, JSON, CSV, parquet, arrow), or builtin:pydoc; samples: .npz, "
        "IDX, class folders of images, CSV or parquet of series",
    )
    task: str = param(
        "language",
        choices=("language", "classification", "regression", "labelling"),
        doc="next token, or what the targets of samples are: a class, numbers, a class for every step",
    )
    input: str = param("", doc="column of the samples' inputs; empty: the one whose name says so")
    target: str = param("", doc="column of the targets; empty: the one whose name says so")
    held_out: str = param("", doc="samples to evaluate on; empty: the dataset's own, else a share (holdout)")
    class_weights: str = param("none", choices=("none", "balanced"), doc="weights of the classes in the loss")
    transforms: tuple[str, ...] = param(
        (), doc="of samples: pad, crop:64; in training shift:2, rotate:10, zoom:0.1, flip, noise:0.05, erase:0.25"
    )
    tokenizer: str = param(
        "byte", doc="'byte', a tokenizer.json (or its folder), a SentencePiece .model, or 'bpe:4096' to train one"
    )
    seq_len: int = param(512, ge=1, unit="tokens", doc="T, tokens of one training sequence")
    text_field: str = param("text", doc="column of the text, of messages, or prompt+completion")
    holdout: float = param(0.05, ge=0.0, lt=1.0, doc="share of the tokens (at the end) or samples kept for evaluation")
    documents: bool = param(True, doc="attention state and window end with a document, even inside a sequence")
    cache: str = param("", doc="folder for tokenised corpora; empty keeps them in memory")
    workers: int = param(1, ge=1, le=256, unit="processes", doc="that tokenise; 1 does it in this one")
    streaming: bool = param(False, doc="read documents as they are needed: for corpora larger than memory")
    shuffle_buffer: int = param(256, ge=1, unit="sequences", doc="held to shuffle among when streaming")


@frozen
class TrainConfig:
    """How to train: steps, batch, optimiser, schedule, precision, spikes, processes, and what to write down when."""

    name = "train"
    max_steps: int = param(1000, ge=0, unit="steps", doc="optimiser steps in all")
    epochs: float = param(0.0, ge=0.0, unit="passes over the samples", doc="instead of max_steps; 0: max_steps holds")
    batch_size: int = param(8, ge=1, unit="sequences", doc="sequences or samples per step, over all processes")
    objective: Objective | None = slot(
        Objective, doc="the loss on samples; left out: cross_entropy, or mean_squared for numbers"
    )
    accumulate: int = param(1, ge=1, doc="pieces a process cuts its batch into, to save memory")
    lr: float = param(0.0, ge=0.0, doc="peak learning rate; 0: 3e-3 up to a width of 256, 3e-3 · 256 / width beyond")
    warmup: float = param(0.1, ge=0.0, le=1.0, doc="share of the steps with a rising rate")
    schedule: str = param("cosine", choices=("cosine", "wsd", "constant"), doc="what follows warm-up")
    final: float = param(0.1, ge=0.0, le=1.0, doc="last learning rate as a share of the peak")
    weight_decay: float = param(0.1, ge=0.0, doc="decoupled, on matrices only")
    beta1: float = param(0.9, ge=0.0, lt=1.0, doc="AdamW's first moment")
    beta2: float = param(0.95, ge=0.0, lt=1.0, doc="AdamW's second moment")
    clip: float = param(1.0, ge=0.0, doc="largest gradient norm; 0 leaves gradients alone")
    ema: float = param(0.0, ge=0.0, lt=1.0, doc="decay of an average of the weights, evaluated too; 0: none")
    precision: str = param(
        "auto",
        choices=("auto", "fp32", "bf16", "fp16"),
        doc="auto: bf16 on a GPU that has it, else fp32; fp16 scales its loss on CUDA only",
    )
    checkpointing: bool = param(False, doc="recompute each block in the backward pass: less memory, a third more work")
    checkpoint_time: int = param(
        0, ge=0, unit="steps", doc="of samples over time kept at once, others run again: the same gradients; 0: all"
    )
    tbptt: int = param(0, ge=0, unit="steps", doc="after which gradients and losses are cut, states go on; 0: never")
    online: str = param(
        "none",
        choices=("none", "sltt", "ottt"),
        doc="every step learns for itself: from its input (sltt), or from its input's trace (ottt)",
    )
    compile: bool = param(False, doc="torch.compile: minutes at first, then faster steps; one process only")
    parallel: str = param(
        "none",
        choices=("none", "ddp", "fsdp", "sequence"),
        doc="what torchrun's processes share: the batch (ddp), weights too (fsdp), or each sequence's tokens",
    )
    neuron_lr: float = param(1.0, ge=0.0, doc="rate of learnt thresholds (learn_k, learn_threshold) as a share of lr")
    recurrent_lr: float = param(
        0.3,
        ge=0.0,
        doc="rate of weights inside neurons (recurrent_lif's R), which act again at every step: share of lr",
    )
    rate_low: float = param(0.0, ge=0.0, unit="mean |count|", doc="lower edge of the firing band of every site")
    rate_high: float = param(8.0, gt=0.0, unit="mean |count|", doc="upper edge of the firing band")
    rate_weight: float = param(0.0, ge=0.0, doc="of (distance from the band)² in the loss; 0 leaves firing alone")
    l1: float = param(0.0, ge=0.0, doc="of mean |x| in front of `l1_sites` in the loss: channels fall silent; 0: none")
    l1_sites: tuple[str, ...] = param(("ffn_hidden",), doc="sites that l1 makes silent", draw=(("ffn_hidden",),))
    l1_warmup: float = param(0.33, ge=0.0, le=1.0, doc="share of the steps over which l1 rises")
    l1_silent: float = param(0.0, ge=0.0, le=1.0, doc="sites with this share of silent channels feel no l1; 0: all do")
    spike_warmup: float = param(0.0, ge=0.0, le=1.0, doc="share of the steps in which dense values turn into spikes")
    rescue: int = param(
        0,
        ge=0,
        unit="log steps",
        doc="a site may be silent or saturated before its threshold is set anew; 0: only warn",
    )
    seed: int = param(0, ge=0, doc="of initial weights and data order")
    log_every: int = param(10, ge=1, unit="steps", doc="between log lines")
    eval_every: int = param(0, ge=0, unit="steps", doc="between evaluations; 0: only at the end")
    eval_sequences: int = param(32, ge=1, unit="sequences", doc="held-out sequences per evaluation")
    checkpoint_every: int = param(0, ge=0, unit="steps", doc="between checkpoints; 0: only at the end")
    keep: int = param(2, ge=1, unit="checkpoints", doc="newest ones kept; the best evaluated one is kept besides")
    bundle: str = param("last", choices=("last", "best", "ema"), doc="which weights the trained model ends with")
    trackers: tuple[Tracker, ...] = slots(Tracker, "jsonl", doc="what follows the run (fastsnn plugins --kind tracker)")

    def __attrs_post_init__(self) -> None:
        if self.rate_low > self.rate_high:
            raise FastSNNError(
                f"the firing band is empty: rate_low {self.rate_low} is above rate_high {self.rate_high}"
            )
        if self.bundle == "ema" and not self.ema:
            raise FastSNNError("bundle = 'ema' needs an average of the weights; set ema, such as ema = 0.999")
        over_time = [n for n in ("checkpoint_time", "tbptt") if getattr(self, n)] + ["online"] * (self.online != "none")
        if len(over_time) > 1:
            raise FastSNNError(f"{' and '.join(over_time)} cut time in ways that exclude each other; take one")
        if over_time and (self.compile or self.parallel != "none"):
            raise FastSNNError(f"{over_time[0]} works on one process and without compile")
        if self.checkpoint_time and (self.rate_weight or self.l1):
            raise FastSNNError("checkpoint_time runs steps again and works without rate_weight and l1; tbptt has both")
        if self.compile and (self.parallel != "none" or self.rate_weight or self.l1):
            raise FastSNNError("compile works on one process and without a firing band (rate_weight) or l1")


def section_table(config: Any) -> dict[str, Any]:
    """A section as plain data, for state.json and meta.json."""
    from fastsnn_core.spec import to_table

    return to_table(config)


def with_epochs(config: TrainConfig, samples: int) -> TrainConfig:
    """`config` with the steps that its epochs take."""
    if not config.epochs:
        return config
    if config.epochs == float("inf"):
        raise FastSNNError("epochs is a number of passes over the samples, got inf")
    return evolve(config, max_steps=max(1, round(config.epochs * samples / config.batch_size)))
