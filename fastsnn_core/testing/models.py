"""Checks of whole things: networks and their bundles, scopes, kernels, README blocks."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from fastsnn_core import build
from fastsnn_core.bundle import load, save
from fastsnn_core.component import KINDS, Component, Model, Surrogate, contract, parts
from fastsnn_core.errors import FastSNNError
from fastsnn_core.site import sites
from fastsnn_core.testing import checks, strategies

FLOOR = 1e-5  # no threshold is smaller: what is far below it makes no spike


def sweep(b: int, t: int, d: int) -> Tensor:
    """Inputs of both signs over eight orders of magnitude, the same every time: some land near any threshold."""
    size = b * t * d
    order = torch.randperm(size, generator=torch.Generator().manual_seed(5))
    magnitude = torch.logspace(-4, 1.5, size, dtype=torch.float64)[order]
    return (magnitude * torch.where(torch.arange(size) % 3 == 0, -1.0, 1.0)).reshape(b, t, d)


def libraries(kind: str) -> list[Any]:
    """Further checks of a kind that installed libraries bring (entry points ``fastsnn1.checks``, named by kind)."""
    points = importlib.metadata.entry_points(group="fastsnn1.checks", name=kind)
    return [point.load() for point in points]


def check_model(model: Any, data: st.DataObject) -> None:
    """What the composition promises: shapes, determinism, causality, streaming, resets, batch, gradients."""
    module = generic(build(model)).double().eval()
    x, who, promises = model.example(2), checks.label(model), contract(model)
    language = not x.is_floating_point()

    def run(tokens: Tensor, state: Any, reset: Tensor | None) -> tuple[Tensor, Any]:
        return module(tokens, state, reset=reset, return_state=True)

    if not language:
        y = module(x.double())
        assert bool(torch.isfinite(y).all()), f"{who}: output is not finite"
        checks.same(module(x[:1].double()), y[:1], f"{who} mixes the inputs of a batch")
        if promises["deterministic"]:
            assert torch.equal(y, module(x.double())), f"{who} is not deterministic"
        return
    x = varied(x, model.vocab_size)
    checks.check_shapes(run, x, who, (*x.shape, model.vocab_size))
    if promises["deterministic"]:
        checks.check_deterministic(run, x, who)
        checks.check_batch(run, x, who)
        if promises["causal"]:
            t = data.draw(st.integers(1, x.shape[1] - 1))
            changed = torch.cat([x[:, :t], (x[:, t:] + 1) % model.vocab_size], 1)
            past, other = (run(z, None, None)[0][:, :t] for z in (x, changed))
            checks.same(other, past, f"{who} is not causal: token {t} changed the past")
        if promises["streaming"]:
            checks.check_streaming(run, x, data.draw(strategies.cuts(x.shape[1])), who)
            checks.check_reset(run, x, data.draw(st.integers(0, x.shape[1] - 1)), who)
    if promises["differentiable"]:
        check_training(model, x, who)
    if promises["deterministic"] and promises["streaming"]:
        module.eval().float()
        for further in libraries("model"):
            further(module, x, who, data)


@torch.no_grad()
def generic(module: torch.nn.Module) -> torch.nn.Module:
    """`module`, its vectors moved by up to 1 %: behind norms of ones many numbers are exactly between two counts."""
    for p in module.parameters():
        if p.ndim == 1:
            p.mul_(1 + 0.01 * torch.rand_like(p))
    return module


def varied(tokens: Tensor, vocab_size: int) -> Tensor:
    """`tokens`, none equal to the one before: where all that is seen is one token, heads that share v are equal."""
    tokens = tokens.clone()
    for t in range(1, tokens.shape[1]):
        tokens[:, t] = (tokens[:, t] + (tokens[:, t] == tokens[:, t - 1])) % vocab_size
    return tokens


def check_training(model: Any, tokens: Tensor, who: str, tries: int = 8) -> None:
    """The language-model loss has finite gradients everywhere, and no weight matrix without any.

    Zeros can be honest: sparse queries and keys may not meet, coarse counts may all be 0, inputs may lie beyond the end
    of a surrogate gradient. So a matrix is dead when its graph is cut, or when its gradient is zero for every one of
    `tries` initialisations though something came in and no surrogate ends. Vectors are let off: behind a coarse neuron
    a norm may have none on so little data.
    """
    ends, dead = any(vanishes(part) for part in parts(model)), None
    for _ in range(tries):
        found = without_gradient(build(model).double(), tokens, who, ends)
        dead = found if dead is None else dead & found
        if not dead:
            return
    assert not dead, f"{who} has dead gradients: {', '.join(sorted(dead or ()))}"


def without_gradient(module: Any, tokens: Tensor, who: str, ends: bool) -> set[str]:
    """Weight matrices that get no gradient, or one of zeros where no surrogate `ends` and their input is not all 0.

    A site that is silent though its input is not below the floor of thresholds (1e-5) excuses nobody.
    """
    fed: dict[str, bool] = {}
    swallowed: list[str] = []

    def note(name: str) -> Any:
        return lambda _, args: fed.update({name: bool((checks.value(args[0]) != 0).any())})

    def watch(name: str) -> Any:
        def hook(_: Any, args: Any, out: Any) -> None:
            if float(args[0].detach().abs().max()) >= FLOOR and not bool((checks.value(out[0]) != 0).any()):
                swallowed.append(name)

        return hook

    for name, part in module.named_modules():
        if isinstance(part, torch.nn.Linear):
            part.register_forward_pre_hook(note(f"{name}.weight"))
    for name, site in sites(module).items():
        site.register_forward_hook(watch(name))
    logits = module.train()(tokens[:, :-1])
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    found = set()
    for name, p in module.named_parameters():
        assert p.grad is None or bool(torch.isfinite(p.grad).all()), f"{who}: gradient of {name} is not finite"
        honest = ends or not (swallowed or fed.get(name, True))
        if p.ndim > 1 and (p.grad is None or not (honest or bool((p.grad != 0).any()))):
            found.add(name)
    return found


def vanishes(part: Component) -> bool:
    """Is it a surrogate gradient that is zero far from the threshold?"""
    far = torch.tensor([-1e3, 1e3])
    return isinstance(part, Surrogate) and not bool(part.derivative(far, 1.0, 1.0).any())


def check_bundle(model: Any) -> None:
    """Save, load and save again: equal outputs and equal bytes."""
    module = build(model).eval()
    x, who = model.example(2), checks.label(model)
    with tempfile.TemporaryDirectory() as folder:
        first, second = save(module, Path(folder, "a.snn")), Path(folder, "b.snn")
        again = load(first)
        assert again.spec == model, f"{who}: the bundle holds another spec"
        if contract(model)["deterministic"]:
            assert torch.equal(module(x), again(x)), f"{who}: a loaded bundle computes something else"
        save(again, second)
        files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
        for name in files:
            assert (first / name).read_bytes() == (second / name).read_bytes(), (
                f"{who}: {name} changed by load and save"
            )


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
        checks.same(again(tokens), exporter.expected(model)(tokens), f"{who}: what it wrote", exporter.tolerance)
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


def check_toml_blocks(text: str, who: str) -> None:
    """Each ```toml block: a spec (with a [model] table), or lines like ``neuron = { kind = … }``."""
    import tomli

    from fastsnn_core import spec

    for block in re.findall(r"```toml\n(.*?)```", text or "", re.DOTALL):
        table = tomli.loads(block)
        if "model" in table and isinstance(table["model"], dict):
            spec.from_table({"fastsnn": spec.FORMAT} | table, block, f"README of {who}")
            continue
        for key, value in table.items():
            kind = KINDS.get(key.removesuffix("s"), KINDS.get(key))
            assert kind is not None, f"README of {who}: {key!r} names no kind of component"
            for item in value if isinstance(value, list) else [value]:
                part: Component = spec.converter().structure(item, kind)
                assert not isinstance(part, Model) or part.name
