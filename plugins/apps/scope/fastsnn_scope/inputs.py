"""What a model is run on, and what it is: text, tokens or samples, their labels, and the model in one table."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_core import parts
from fastsnn_core.errors import FastSNNError
from fastsnn_core.subject import Data

SENTENCE = "A neuron keeps what it hears, leaks a little, and speaks only when it must; most of the time it is silent."


def inputs_of(
    model: nn.Module, text: str | None, tokens: Tensor | None, limit: int
) -> tuple[Tensor, tuple[str, ...], Data]:
    """``(inputs, labels, description)``."""
    if text is not None and tokens is not None:
        raise FastSNNError("give text or tokens, not both")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    language = getattr(getattr(model, "spec", None), "vocab_size", None) is not None
    if tokens is not None:
        if tokens.ndim < 2:
            raise FastSNNError(f"tokens come as [B, T] (images as [B, …]); got shape {tuple(tokens.shape)}")
        about: Data = {"kind": "values" if tokens.is_floating_point() else "tokens", "shape": list(tokens.shape)}
        return tokens.to(device), labels_of(model, tokens), about
    if not language:
        raise FastSNNError(
            f"{type(model).__name__} is no language model: give its input as tokens=, for one images "
            "[B, C, H, W]; on the command line, samples as --data"
        )
    from fastsnn_text import tokenizer_of

    try:
        tokenizer = tokenizer_of(model)
    except ValueError as error:
        raise FastSNNError(f"{error}; give token ids as tokens=[B, T] instead") from None
    if limit < 1:
        raise FastSNNError(f"limit must be at least one token, got {limit}")
    built_in = text is None
    text = SENTENCE if text is None else text
    ids = ([tokenizer.start] if tokenizer.start is not None else []) + tokenizer.encode(text)
    if not ids:
        raise FastSNNError("the text is empty; give at least one character")
    about = {
        "kind": "text",
        "text": text[:2000],
        "built_in": built_in,
        "tokens": len(ids),
        "used": min(len(ids), limit),
    }
    inputs = torch.tensor([ids[:limit]], device=device)
    return inputs, labels_of(model, inputs), about


def labels_of(model: nn.Module, tokens: Tensor) -> tuple[str, ...]:
    """Text of each token of the first sequence; none where the model has no tokenizer."""
    if tokens.is_floating_point():
        return ()
    from fastsnn_text import tokenizer_of

    try:
        tokenizer = tokenizer_of(model)
    except ValueError:  # a vocabulary of bare numbers: tokens are not text
        return ()
    return tuple(tokenizer.decode([i]) for i in tokens[0].tolist())


def model_facts(model: nn.Module) -> Data:
    """What the model is: kind, filled spec, parameters, and what its bundle says of it."""
    from fastsnn_core.spec import to_table

    spec: Any = getattr(model, "spec", None)
    meta = {k: v for k, v in getattr(model, "meta", {}).items() if k not in ("files", "seal")}
    return {
        "kind": getattr(spec, "name", type(model).__name__),
        "name": source.name if (source := getattr(model, "loaded_from", None)) else "",
        "spec": to_table(spec) if spec is not None else {},
        "components": sorted({f"{p.kind} {p.name}" for p in parts(spec)}) if spec is not None else [],
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameter_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "meta": json.loads(json.dumps(meta, default=str)),
    }
