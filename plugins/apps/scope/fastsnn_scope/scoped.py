"""Measuring: a model, an input, and every installed scope run alone over the spikes that the input made."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastsnn_console import targets
from fastsnn_core import Scope, create, parts
from fastsnn_core.errors import FastSNNError
from fastsnn_core.plugins import classes
from fastsnn_core.subject import Data, Subject, observe
from fastsnn_scope import quality

log = logging.getLogger("fastsnn")
SENTENCE = "A neuron keeps what it hears, leaks a little, and speaks only when it must; most of the time it is silent."
FORMAT = 1


def scope(
    model: nn.Module,
    *,
    text: str | None = None,
    tokens: Tensor | None = None,
    scopes: Sequence[str | Scope] | None = None,
    limit: int = 256,
) -> Scoped:
    """A look at `model` on `text`, or on `tokens` (ids ``[B,T]``; for other models their input, images for one).

    A language model without either reads a built-in sentence. `scopes` are names or components; all installed ones
    when left out. Text is cut after `limit` tokens. Raises ValueError where there is nothing to run the model on.
    """
    return Scoped(model, text=text, tokens=tokens, scopes=scopes, limit=limit)


def report(
    model: nn.Module,
    out: str | Path,
    *,
    text: str | None = None,
    tokens: Tensor | None = None,
    scopes: Sequence[str | Scope] | None = None,
    limit: int = 256,
) -> Path:
    """Write `out`/index.html, `out`/<scope>.png and `out`/report.json; returns `out`. Arguments as for `scope`."""
    return scope(model, text=text, tokens=tokens, scopes=scopes, limit=limit).report(out)


class Scoped:
    """A model under the scopes; nothing is run before the first question."""

    def __init__(
        self,
        model: nn.Module,
        *,
        text: str | None = None,
        tokens: Tensor | None = None,
        scopes: Sequence[str | Scope] | None = None,
        limit: int = 256,
    ) -> None:
        self.model = model
        self.scopes = chosen(scopes)
        self.inputs, self.labels, self.about = inputs_of(model, text, tokens, limit)
        self.found: Data | None = None

    @cached_property
    def subject(self) -> Subject:
        """The model, its input and its spikes: what scopes are given."""
        return observe(self.model, self.inputs, self.labels)

    def data(self) -> Data:
        """Everything measured, once: ``{"format", "created", "model", "input", "scopes", "environment"}``."""
        if self.found is None:
            from fastsnn_core.bundle import environment

            subject = self.subject
            self.found = {
                "format": FORMAT,
                "created": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
                "model": summary(self.model),
                "input": self.about,
                "quality": quality.headline(self.model, self.inputs, self.about),
                "scopes": {s.name: measured(s, subject) for s in self.scopes},
                "environment": environment() | {"threads": torch.get_num_threads()},
            }
            self.found |= {"lost": quality.lost(self.model), "advice": quality.advice(self.model, self.found["scopes"])}
        return self.found

    def report(self, path: str | Path) -> Path:
        """Write the report into the folder `path`, leaving other files there as they are; returns the folder.

        A bundle that is saved of this model afterwards gets the report as its spike.report/.
        """
        from fastsnn_core.bundle import fingerprint
        from fastsnn_scope.write import FILES, write

        model: Any = self.model
        folder = write(self.scopes, self.data(), targets.folder(path))
        kept = quality.keep_conversion(getattr(model, "report_path", None), folder)
        model.report_path, model.report_of = folder.resolve(), fingerprint(model)
        model.report_files = (*FILES, *(f"{s.name}.png" for s in self.scopes), *kept)
        return folder

    def __repr__(self) -> str:
        spec = getattr(self.model, "spec", None)
        return (
            f"Scoped({getattr(spec, 'name', type(self.model).__name__)}, input {list(self.inputs.shape)}, scopes "
            f"{', '.join(s.name for s in self.scopes)}; .report(folder) writes the page)"
        )

    def _repr_html_(self) -> str:
        """The report inside a notebook, in a frame of its own."""
        from html import escape

        from fastsnn_scope.page import page
        from fastsnn_scope.write import pictures

        whole = escape(page(self.data(), pictures(self.scopes, self.data())), quote=True)
        return (
            f'<iframe srcdoc="{whole}" sandbox="" style="width:100%;height:48rem;border:0" title="SpikeScope"></iframe>'
        )


def chosen(scopes: Sequence[str | Scope] | None) -> list[Scope]:
    """Scope components: those given by name or as they are, or one of every installed class, by their `order`."""
    if scopes is not None:
        found = [create("scope", s) if isinstance(s, str) else s for s in scopes]
        if len({s.name for s in found}) < len(found):
            raise FastSNNError(f"each scope once; got {', '.join(s.name for s in found)}")
        return found
    made: dict[str, Scope] = {}
    for plugin, cls in classes("scope"):
        if cls.name in made:
            log.warning(
                "scope %r is offered twice; that of %s is left out (name it %s/%s)", cls.name, plugin, plugin, cls.name
            )
            continue
        try:
            made[cls.name] = cast(Scope, cls())
        except Exception as error:
            log.warning("scope %s/%s cannot be made without parameters: %s", plugin, cls.name, error)
    return sorted(made.values(), key=lambda s: (getattr(s, "order", 100), s.name))


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


def summary(model: nn.Module) -> Data:
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


def measured(one: Scope, subject: Subject) -> Data:
    """``{"title", "seconds", "data"}`` of a scope, or ``"error"``: one failing scope costs its own panel, no more."""
    start = time.perf_counter()
    try:
        data = one.measure(subject)
        if not isinstance(data, dict):
            raise TypeError(f"measure returned {type(data).__name__}, a dict of plain data is expected")
        found = {"data": json.loads(json.dumps(data, allow_nan=False))}
        if wrong := malformed(found["data"]):
            raise TypeError(f"measure returned {wrong}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may call sys.exit: SystemExit must not end the report
        log.warning("scope %s failed: %s: %s", one.name, type(error).__name__, error)
        found = {"error": f"measure: {type(error).__name__}: {error}"}
    return {
        "title": one.title or one.name,
        "reading": reading(one),
        "seconds": round(time.perf_counter() - start, 3),
        **found,
    }


def malformed(data: Data) -> str:
    """What is wrong with the keys that the page itself reads (see README.md), or the empty string."""

    def texts(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(v, str) for v in value)

    def is_table(t: Any) -> bool:
        known = isinstance(t, dict) and isinstance(t.get("title"), str) and texts(t.get("columns"))
        rows = t.get("rows") if known else None
        return isinstance(rows, list) and all(texts(r) and len(r) == len(t["columns"]) for r in rows)

    def listed(value: Any, good: Callable[[Any], bool]) -> bool:
        return isinstance(value, list) and all(map(good, value))

    if not isinstance(data.get("reason", ""), str):
        return "a 'reason' that is no text"
    for key in ("notes", "assumptions"):
        if not texts(data.get(key, [])):
            return f"{key!r} that is no list of texts"
    if not listed(data.get("headline", []), lambda pair: texts(pair) and len(pair) == 2):
        return "a 'headline' that is no list of [label, text]"
    if not listed(data.get("tables", []), is_table):
        return "'tables' that are no list of {title, columns, rows} with texts in every cell"
    return ""


def reading(one: Scope) -> str:
    """How to read a scope's picture: its `reading`, or its docstring's first paragraph."""
    text = getattr(one, "reading", "") or (type(one).__doc__ or "").strip().split("\n\n")[0]
    return " ".join(text.split())
