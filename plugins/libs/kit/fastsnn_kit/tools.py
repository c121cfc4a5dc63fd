"""What exporters, scopes, trackers and objectives promise."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from fastsnn_core import build
from fastsnn_core.component import Component
from fastsnn_core.errors import FastSNNError
from fastsnn_core.testing.conformance import check, each
from fastsnn_kit import checks
from fastsnn_kit.models import generic, varied


def smallest_model() -> Any:
    """A language model from whatever is installed, or None."""
    from fastsnn_core.plugins import registry

    for name in registry().names("model"):
        cls: Any = registry().find("model", name)[1]
        try:
            model = cls(d_model=16, n_layers=2, n_heads=2, vocab_size=17)
        except (TypeError, ValueError, LookupError):
            continue
        return model
    return None


@torch.no_grad()
def check_exporter(exporter: Any) -> None:
    """What `export` writes is there, alone, loads, and computes what `expected` does; needs a language model."""
    import pytest

    spec = smallest_model()
    if spec is None:
        pytest.skip("no language model is installed to export")
    torch.manual_seed(0)
    model, who = generic(build(spec)).eval(), checks.label(exporter)
    reasons = exporter.unsupported(model)
    assert isinstance(reasons, list), f"{who}: unsupported() returned {type(reasons).__name__}, not a list of reasons"
    assert all(isinstance(reason, str) and reason for reason in reasons), f"{who}: a reason is no text"
    if reasons:
        return
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokens = varied(spec.example(2), spec.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder, "out.snn")
        try:
            written = Path(exporter.export(model, wanted) or wanted)
        except FastSNNError as error:
            raise AssertionError(f"{who}: export failed ({error}), and unsupported() gave no reason") from error
        assert written.exists(), f"{who} wrote nothing to {written.name}"
        left = sorted(p.name for p in Path(folder).iterdir() if p != written)
        assert not left, f"{who} left {', '.join(left)} beside what it wrote"
        try:
            again = exporter.load(written)
        except Exception as error:
            raise AssertionError(f"{who}: what it wrote does not load ({error})") from error
        checks.check_close(again(tokens), exporter.expected(model)(tokens), f"{who}: what it wrote", exporter.tolerance)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert not changed, f"{who} changed the model it was given: {', '.join(changed)}"


def check_scope(cls: Any) -> None:
    """`measure` gives JSON data, `draw` needs nothing else. Skipped without an installed language model."""
    import pytest

    from fastsnn_core.subject import observe

    figures = pytest.importorskip("matplotlib.figure")
    model = smallest_model()
    if model is None:
        pytest.skip("no language model is installed to look at")
    scope = cls()
    data = scope.measure(observe(build(model), model.example(1)))
    again = json.loads(json.dumps(data, allow_nan=False))
    figure = figures.Figure()
    scope.draw(again, figure)
    assert figure.axes or figure.texts, f"{scope.name} drew nothing"


def check_tracker(cls: Any) -> None:
    """A run with a folder, the same resumed from its second row, one without a folder, one that fails."""
    from fastsnn_core.training_run import Run

    rows = [{"step": n, "loss": 1.0 / n, "tokens_per_second": 10.0, "gradient": {"layers.0": 0.5}} for n in (1, 2, 3)]
    rows[1]["held_out"] = 2.0
    model = torch.nn.Linear(1, 1)
    with tempfile.TemporaryDirectory() as folder:
        out, elsewhere = Path(folder, "run"), Path(folder, "elsewhere")
        elsewhere.mkdir()
        before = Path.cwd()
        os.chdir(elsewhere)
        try:
            for past, where, error in ((0, out, None), (2, out, None), (0, None, None), (0, out, RuntimeError("bad"))):
                run = Run(model, where, {"max_steps": 3}, 3, [dict(row) for row in rows[:past]])
                session = cls().start(run)
                for row in rows[past:]:
                    run.history.append(dict(row))
                    session.log(dict(row))
                    session.saved(out / "checkpoints")
                session.end(error)
                assert not run.stopping, f"{cls.name} stopped a run whose loss falls: {run.stopping}"
            strays = [p.name for p in (*elsewhere.iterdir(), *Path(folder).iterdir()) if p not in (out, elsewhere)]
            assert not strays, f"{cls.name} wrote outside the run's folder: {', '.join(strays)}"
        finally:
            os.chdir(before)


@check("scope")
def measures(name: str, cls: type[Component]) -> None:
    """Measures plain JSON data on the smallest model there is, and draws from that data alone."""
    check_scope(cls)


@check("exporter")
def export_agrees(name: str, cls: type[Component]) -> None:
    """What it writes loads, and computes what the model does (or what the exporter says it does to it)."""
    seen: list[Any] = []

    def once(exporter: Any, _: Any) -> None:
        if exporter not in seen:  # of parameters with one draw all examples are the same
            check_exporter(exporter)
            seen.append(exporter)

    each(name, cls, once, examples=4)


@check("tracker")
def follows(name: str, cls: type[Component]) -> None:
    """Follows a run from start to end, resumed in the middle, and writes nowhere but into the run's folder."""
    check_tracker(cls)


def check_objective(objective: Any) -> None:
    """One loss a sample, finite, of that sample alone; scores of its shape; a gradient that makes the loss smaller."""
    who = checks.label(objective)
    draw = torch.Generator().manual_seed(3)
    outputs = torch.rand(6, 5, 3, generator=draw, dtype=torch.float64)
    outputs = (outputs > 0.6).double() if objective.counts else outputs * 4 - 2
    classes = torch.tensor([0, 1, 2, 2, 1, 0])
    targets = torch.rand(6, 3, generator=draw, dtype=torch.float64) if objective.task == "regression" else classes
    outputs.requires_grad_()
    loss = objective.loss(outputs, targets)
    assert loss.shape == (6,), f"{who}: the loss of 6 samples has the shape {tuple(loss.shape)}"
    assert bool(torch.isfinite(loss).all()), f"{who}: the loss is not finite"
    assert len(objective.read(outputs)) == 6, f"{who}: read gives {len(objective.read(outputs))} rows for 6 samples"
    alone = torch.cat([objective.loss(outputs[i : i + 1], targets[i : i + 1]) for i in range(6)])
    checks.check_close(alone, loss, f"{who} mixes samples")
    (grad,) = torch.autograd.grad(loss.sum(), outputs)
    assert bool(torch.isfinite(grad).all()), f"{who} has no finite gradient"
    assert bool((grad != 0).any()), f"{who} has no gradient"
    one = objective.loss(outputs[:, :1], targets)
    assert one.shape == (6,), f"{who} does not take one step"
    if objective.task == "classification":
        right = torch.zeros(6, 5, 3, dtype=torch.float64)
        right[torch.arange(6), :, classes] = 1.0
        found = objective.read(right).argmax(1)
        assert torch.equal(found, classes), f"{who}: where only the right class speaks, it reads {found.tolist()}"
        wrong = objective.loss(right.roll(1, 2), classes).sum()
        assert objective.loss(right, classes).sum() < wrong, f"{who}: a wrong answer costs no more than the right one"


@check("objective")
def teaches(name: str, cls: type[Component]) -> None:
    """One finite loss for every sample alone, with a gradient; the right answer is read, and costs least."""
    each(name, cls, lambda objective, data: check_objective(objective))
