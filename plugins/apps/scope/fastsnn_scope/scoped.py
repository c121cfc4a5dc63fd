"""Measuring: a model, an input, and every installed scope run alone over the spikes that the input made."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import attrs
import torch
from torch import Tensor, nn

from fastsnn_console import targets
from fastsnn_console.progress import Progress
from fastsnn_console.typed import typed
from fastsnn_core import Scope, create
from fastsnn_core.errors import FastSNNError
from fastsnn_core.plugins import classes
from fastsnn_core.subject import Data, Subject, observe
from fastsnn_scope import cells, curve, exports, quality
from fastsnn_scope.cells import Arrays, divergence
from fastsnn_scope.inputs import inputs_of, model_facts
from fastsnn_scope.labelled import labelled_samples
from fastsnn_scope.measured import isolated, measured
from fastsnn_scope.saved import tiles
from fastsnn_scope.speed import decoding, probe_cost

log = logging.getLogger("fastsnn")
FORMAT = 2


@typed
def scope(
    model: nn.Module,
    *,
    text: str | None = None,
    tokens: Tensor | None = None,
    data: Any = None,
    samples: int | None = None,
    scopes: Sequence[str | Scope] | None = None,
    limit: int = 256,
) -> Scoped:
    """A look at `model` on `text`, or on `tokens` (ids ``[B,T]``; for other models their input, images for one).

    A language model without either reads a built-in sentence. `data` are labelled samples, all that `FastSNN.fit` takes
    for them (their test samples, where they have some): the first `samples` are looked at (16), with what is taken for
    what, and where the network gives an output at every step, accuracy and spikes after each (of the first 256, or
    `samples`). `scopes` are names or components; all installed ones when left out. Text is cut after `limit` tokens.
    Raises ValueError where there is nothing to run the model on.
    """
    return Scoped(model, text=text, tokens=tokens, data=data, samples=samples, scopes=scopes, limit=limit)


@typed
def report(
    model: nn.Module,
    out: str | Path,
    *,
    text: str | None = None,
    tokens: Tensor | None = None,
    data: Any = None,
    samples: int | None = None,
    scopes: Sequence[str | Scope] | None = None,
    limit: int = 256,
) -> Path:
    """Write `out`/index.html, `out`/<scope>.png and `out`/report.json; returns `out`.

    Arguments as for `scope` (`tokens` ``[B,T]``; `data`, `samples`), and its errors; `out` that is a file is refused.
    """
    return scope(model, text=text, tokens=tokens, data=data, samples=samples, scopes=scopes, limit=limit).report(out)


class Scoped:
    """A model under the scopes; nothing is run before the first question."""

    def __init__(
        self,
        model: nn.Module,
        *,
        text: str | None = None,
        tokens: Tensor | None = None,
        data: Any = None,
        samples: int | None = None,
        scopes: Sequence[str | Scope] | None = None,
        limit: int = 256,
    ) -> None:
        self.model = model
        self.scopes = choose_scopes(scopes)
        self.labelled = labelled_samples(model, data, samples, text is not None or tokens is not None)
        if self.labelled is not None:
            tokens = self.labelled.inputs
        self.inputs, self.labels, self.about = inputs_of(model, text, tokens, limit)
        self.about |= self.labelled.about if self.labelled is not None else {}
        self.found: Data | None = None
        self.arrays: Arrays | None = None
        self.timeline: list[Data] = []

    @cached_property
    def subject(self) -> Subject:
        """The model, its input and its spikes: what scopes are given."""
        found = observe(self.model, self.inputs, self.labels)
        return found if self.labelled is None else attrs.evolve(found, truth=self.labelled.truth_of(0))

    def data(self) -> Data:
        """Everything measured, once: ``{"format", "created", "model", "input", "scopes", "environment"}``."""
        if self.found is None:
            from fastsnn_core.bundle import training_environment

            model, faults, took = self.model, list[str](), dict[str, float]()
            with Progress("measuring", len(self.scopes) + 7, "parts") as progress:

                def part(what: str, call: Callable[[], Any]) -> Any:
                    """One part under a note in the bar."""
                    progress.update(progress.done, what)
                    began = time.perf_counter()
                    found = call()
                    took[what] = round(time.perf_counter() - began, 3)
                    progress.step(note=what)
                    return found

                def guarded(what: str, call: Callable[[], Any]) -> Any:
                    return part(what, lambda: isolated(what, call, faults))

                subject = part("the spikes", lambda: self.subject)
                self.found = {
                    "format": FORMAT,
                    "created": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
                    "model": model_facts(model),
                    "input": self.about,
                    "quality": quality.headline(model, self.inputs, self.about),
                    "cells": guarded("the map of sites", lambda: self.map_of(subject)) or {"reason": "see above"},
                    "divergence": guarded("the pass without spikes", lambda: divergence(model, self.inputs)),
                    "scopes": {s.name: part(s.name, partial(measured, s, subject)) for s in self.scopes},
                    "speed": guarded("timing layers", self.timed),
                    "probes": guarded("timing the probes", lambda: probe_cost(model, self.inputs)),
                    "confusion": guarded("the answers", lambda: self.asked("confusion")),
                    "decisions": guarded("accuracy over steps", lambda: self.asked("decisions")),
                    "parent": quality.conversion_of(model).get("quality"),
                    "conversion": quality.conversion_table(model),
                    "tuned": curve.tuned(model),
                    "environment": training_environment() | {"threads": torch.get_num_threads()},
                    "faults": faults,
                    "took": took,  # seconds by part
                }
            self.found |= {"lost": quality.lost(model), "advice": quality.advice(model, self.found["scopes"])}
            self.found["saved"] = tiles(self.found)
        return self.found

    def map_of(self, subject: Subject) -> Data:
        """The token × site map; its arrays are kept for the page."""
        found, self.arrays = cells.measure(subject)
        return found

    def asked(self, what: str) -> Data | None:
        """`confusion` or `decisions` of the labelled samples; None without any."""
        found: Data | None = None if self.labelled is None else getattr(self.labelled, what)(self.model)
        return found

    def timed(self) -> Data:
        """Milliseconds per token and layer; the events are kept for `perfetto`."""
        found, self.timeline = decoding(self.model, self.inputs, kernels=any(s.name == "paths" for s in self.scopes))
        return found

    def csv(self, path: str | Path) -> Path:
        """Write the table of sites as CSV."""
        return exports.write_file(path, exports.csv(self.data()))

    def svg(self, path: str | Path) -> Path:
        """Write the map of tokens and sites (silent share of every cell) as SVG."""
        return exports.write_file(path, exports.svg(self.data()))

    def perfetto(self, path: str | Path) -> Path:
        """Write a trace that Perfetto and chrome://tracing open: every layer of some tokens, and its silent inputs."""
        return exports.write_file(path, exports.perfetto(self.data(), self.timeline))

    def tensorboard(self, folder: str | Path) -> Path:
        """Write every site's figures as TensorBoard scalars into a folder, at the step the model was trained to."""
        return exports.tensorboard(self.data(), folder)

    def report(self, path: str | Path, *, beside: Scoped | None = None) -> Path:
        """Write the report into the folder `path`, leaving other files there as they are; returns the folder.

        `beside`: another model's look (another dial, another checkpoint), whose figures stand below this one's; on
        the same tokens its map is there, too, and the difference.

        A bundle that is saved of this model afterwards gets the report as its spike.report/.
        """
        from fastsnn_core.bundle import weights_checksum
        from fastsnn_scope.write import FILES, write_report

        model: Any = self.model
        other = None if beside is None else beside.data()
        folder = write_report(self.scopes, self.data(), targets.folder(path), self.arrays, other)
        kept = quality.keep_conversion(getattr(model, "report_path", None), folder)
        model.report_path, model.report_of = folder.resolve(), weights_checksum(model)
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

        whole = escape(page(self.data(), pictures(self.scopes, self.data()), self.arrays), quote=True)
        return (
            f'<iframe srcdoc="{whole}" sandbox="allow-scripts" style="width:100%;height:48rem;border:0" '
            'title="SpikeScope"></iframe>'
        )


def choose_scopes(scopes: Sequence[str | Scope] | None) -> list[Scope]:
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
