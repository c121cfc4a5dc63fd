"""The spec sections ``[data]`` and ``[train]``."""

from __future__ import annotations

from attrs import frozen

from fastsnn_core import param


@frozen
class DataConfig:
    """What to train on: a source, how it becomes tokens, and how tokens become sequences."""

    name = "data"
    dataset: str = param(
        "builtin:pydoc", doc="Hugging Face name, text/JSON-lines/parquet file or folder, or builtin:pydoc"
    )
    tokenizer: str = param("byte", doc="'byte', or the path of a tokenizer.json (or its folder)")
    seq_len: int = param(512, ge=1, unit="tokens", doc="T, tokens of one training sequence")
    text_field: str = param("text", doc="field of JSON lines, parquet or datasets that holds the text")
    holdout: float = param(0.05, ge=0.0, lt=1.0, doc="share of the tokens, at the end, kept for evaluation")
    documents: bool = param(True, doc="attention state and window end with a document, even inside a sequence")
    cache: str = param("", doc="folder for tokenised corpora; empty keeps them in memory")


@frozen
class TrainConfig:
    """How to train: steps, batch, optimiser, schedule, precision, and what to write down when."""

    name = "train"
    max_steps: int = param(1000, ge=0, unit="steps", doc="optimiser steps in all")
    batch_size: int = param(8, ge=1, unit="sequences", doc="sequences per optimiser step")
    accumulate: int = param(1, ge=1, doc="pieces a batch is cut into, to save memory")
    lr: float = param(3e-3, gt=0.0, doc="peak learning rate")
    warmup: float = param(0.05, ge=0.0, le=1.0, doc="share of the steps with a rising rate")
    schedule: str = param("cosine", choices=("cosine", "wsd", "constant"), doc="what follows warm-up")
    final: float = param(0.1, ge=0.0, le=1.0, doc="last learning rate as a share of the peak")
    weight_decay: float = param(0.1, ge=0.0, doc="decoupled, on matrices only")
    beta1: float = param(0.9, ge=0.0, lt=1.0, doc="AdamW's first moment")
    beta2: float = param(0.95, ge=0.0, lt=1.0, doc="AdamW's second moment")
    clip: float = param(1.0, ge=0.0, doc="largest gradient norm; 0 leaves gradients alone")
    precision: str = param(
        "auto", choices=("auto", "fp32", "bf16", "fp16"), doc="auto: bf16 on a GPU that has it, else fp32"
    )
    seed: int = param(0, ge=0, doc="of data order")
    log_every: int = param(10, ge=1, unit="steps", doc="between log lines")
    eval_every: int = param(0, ge=0, unit="steps", doc="between evaluations; 0: only at the end")
    eval_sequences: int = param(32, ge=1, unit="sequences", doc="held-out sequences per evaluation")
    checkpoint_every: int = param(0, ge=0, unit="steps", doc="between checkpoints; 0: only at the end")
