"""What networks promise: shapes, causality, streaming, training; and their bundles."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from fastsnn_core import build
from fastsnn_core.bundle import load, save
from fastsnn_core.component import Component, Surrogate, contract, parts
from fastsnn_core.site import sites
from fastsnn_core.testing.conformance import check, each, libraries
from fastsnn_kit import checks
from fastsnn_kit.draws import cuts

LOUD = 1e6  # times: what is silent on so much more input than it gets, lets nothing through


def check_network(model: Any, data: st.DataObject) -> None:
    """What the composition promises: shapes, determinism, causality, streaming, resets, batch, gradients."""
    module = generic(build(model)).double().eval()
    x, who, promises = model.example(2), checks.label(model), contract(model)
    language = not x.is_floating_point()

    def run(tokens: Tensor, state: Any, reset: Tensor | None) -> tuple[Tensor, Any]:
        return module(tokens, state, reset=reset, return_state=True)

    if not language:
        y = module(x.double())
        assert bool(torch.isfinite(y).all()), f"{who}: output is not finite"
        checks.check_close(module(x[:1].double()), y[:1], f"{who} mixes the inputs of a batch")
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
            checks.check_close(other, past, f"{who} is not causal: token {t} changed the past")
        if promises["streaming"]:
            checks.check_streaming(run, x, data.draw(cuts(x.shape[1])), who)
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
    `tries` initialisations, each of twice the weights of the one before, though something came in and no surrogate
    ends: what small fresh weights leave below a threshold, larger ones bring above it. Vectors are let off: behind a
    coarse neuron a norm may have none on so little data.
    """
    ends, dead = any(vanishes(part) for part in parts(model)), None
    for number in range(tries):
        found = without_gradient(larger(build(model).double(), 2.0**number), tokens, who, ends)
        dead = found if dead is None else dead & found
        if not dead:
            return
    assert not dead, f"{who} has dead gradients: {', '.join(sorted(dead or ()))}"


@torch.no_grad()
def larger(module: torch.nn.Module, times: float) -> torch.nn.Module:
    """`module` with `times` its weight matrices."""
    for p in module.parameters():
        if p.ndim > 1:
            p.mul_(times)
    return module


def without_gradient(module: Any, tokens: Tensor, who: str, ends: bool) -> set[str]:
    """Weight matrices that get no gradient, or one of zeros where no surrogate `ends` and their input is not all 0.

    A site that would be silent on much larger input, too, swallows it: its silence excuses nobody.
    """
    fed: dict[str, bool] = {}
    swallowed: list[str] = []
    asked: list[str] = []  # the site that is being asked on larger input: what it feeds meanwhile does not count

    def note(name: str) -> Any:
        def hook(_: Any, args: Any) -> None:  # once a token in a recurrent cell
            if not asked:
                fed[name] = fed.get(name, False) or bool((checks.dense_value(args[0]) != 0).any())

        return hook

    def watch(name: str) -> Any:
        @torch.no_grad()
        def hook(site: Any, args: Any, kwargs: Any, out: Any) -> None:
            if bool((args[0] != 0).any()) and not bool((checks.dense_value(out[0]) != 0).any()):
                asked.append(name)
                found, *_ = site.forward(LOUD * args[0], *args[1:], **kwargs)  # past the site's own hooks
                asked.clear()
                if not bool((checks.dense_value(found) != 0).any()):
                    swallowed.append(name)

        return hook

    for name, part in module.named_modules():
        if isinstance(part, torch.nn.Linear):
            part.register_forward_pre_hook(note(f"{name}.weight"))
    for name, site in sites(module).items():
        site.register_forward_hook(watch(name), with_kwargs=True)
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


@check("model")
def network(name: str, cls: type[Component]) -> None:
    """The whole network: what its composition promises (see `check_network`)."""
    each(name, cls, lambda model, data: check_network(model, data))


@check("model")
def bundle(name: str, cls: type[Component]) -> None:
    """Save, load, save: outputs and bytes equal."""
    each(name, cls, lambda model, data: check_bundle(model))
