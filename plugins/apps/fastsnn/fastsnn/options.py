"""Keyword arguments of `FastSNN`'s methods as typed dicts: editors complete the names, type checkers find typos.

The methods pass them on to functions of other distributions, which say what each means and refuse what they do not
know; a test compares the names. Nothing imports this module when a program runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from torch import Tensor


class ConvertOptions(TypedDict, total=False):
    """Of `fastsnn_convert.convert`: language models, networks of layers, networks that spike already."""

    to: str | Path | None
    neuron: Any
    steps: int | None
    code: str
    coverage: str | Sequence[str]
    calibration: Any
    heal: Any
    heal_steps: int | None
    measure: bool
    quiet: bool
    # language models
    k: float | None
    burst: int | None
    centred: Sequence[str] | None
    spread: bool
    balance: bool
    window: int
    windows: int | None
    attention: Any
    place: str
    attention_window: int | None
    heal_minutes: float | None
    healing: dict[str, Any]
    out: str | Path | None
    resume: bool
    thorough: bool
    seed: int
    # networks of layers
    spec: Any
    example: Any
    steps_per_site: Mapping[str, int] | float | None
    functional: bool
    refine: bool
    validation: Any
    d_model_fallback: int
    rules: Sequence[Any] | None
    options: Mapping[str, Any] | None
    # NIR graphs
    dt: float


class ScopeOptions(TypedDict, total=False):
    """Of `fastsnn_scope.scope`."""

    text: str | None
    tokens: Tensor | None
    data: Any
    samples: int | None
    scopes: Sequence[Any] | None
    limit: int


class ServeOptions(TypedDict, total=False):
    """Of `fastsnn_serve.serve`, its application and its engine."""

    host: str
    block: bool
    name: str | None
    device: str
    max_body: int
    body_seconds: float
    cors: Sequence[str]
    log: bool
    api_keys: Sequence[str]
    sessions: str | Path | None
    draft: Any
    max_streams: int
    max_waiting: int
    chunk: int
    cache_bytes: int
    state_bytes: int | None
    max_model_len: int | None
    max_seconds: float
    speculate: int


class GenerateOptions(TypedDict, total=False):
    """Of `fastsnn_text.Sampling`, and texts that end the answer."""

    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stop: str | Sequence[str]


class ExtendOptions(TypedDict, total=False):
    """Of `fastsnn_train.extend_context`."""

    mode: str
    data: Any
    lr: float | None
    short_share: float
    gate: float | None
    on_gate: str
    rope: str
    window: int
    recall: Sequence[Any]
    recall_samples: int
    filler: str | None
    eval_sequences: int
    resume: bool
    quiet: bool | None


class TrainOptions(TypedDict, total=False):
    """Of `fastsnn_train.TrainConfig`."""

    epochs: float
    batch_size: int
    objective: Any
    accumulate: int
    lr: float
    warmup: float
    schedule: str
    final: float
    weight_decay: float
    beta1: float
    beta2: float
    clip: float
    ema: float
    precision: str
    checkpointing: bool
    checkpoint_time: int
    tbptt: int
    online: str
    compile: bool
    parallel: str
    neuron_lr: float
    recurrent_lr: float
    rate_low: float
    rate_high: float
    rate_weight: float
    l1: float
    l1_sites: Sequence[str]
    l1_warmup: float
    l1_silent: float
    spike_warmup: float
    rescue: int
    seed: int
    log_every: int
    eval_every: int
    eval_sequences: int
    checkpoint_every: int
    keep: int
    bundle: str
    trackers: Sequence[Any]
