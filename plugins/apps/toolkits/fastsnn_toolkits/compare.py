"""The original run beside what was read: every spike of a random stimulus, or an error that says where they part."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_conversion.context import ConversionError
from fastsnn_toolkits.rows import BOXES, toolkit_of

STEPS, STREAMS, LEVELS = 24, 2, (1.0, 4.0, 16.0, 0.25, 64.0)
ALLOWED = 1e-3
"""Share of outputs that may differ: membranes within a rounding of their threshold."""


@torch.no_grad()
def same(source: nn.Module, parts: list[nn.Module], model: Any, carries: bool, given: Tensor | None = None) -> str:
    """A sentence for the report; `carries`: cells take their state and give it back (Norse).

    A module with a forward of its own is run itself, otherwise its layers one after the other. `given` ``[B, T, …]`` is
    a stimulus more. The others are of several
    sizes, from such that hardly a neuron spikes to such that most do: all must agree.
    """
    try:
        fresh = copy.deepcopy((source, parts))
    except RuntimeError as error:
        raise ConversionError(
            f"it cannot be copied to be run ({str(error).splitlines()[0]}); reset its states first, as after training"
        ) from None
    own = type(source).__name__ not in BOXES
    alike, counted, rates = 1.0, 0, list[float]()
    noise = torch.rand(STREAMS, STEPS, *model.spec.input, generator=torch.Generator().manual_seed(5))
    for x in [*(noise * level for level in LEVELS), *([] if given is None else [given])]:
        wanted, x = own_run(fresh[0], x, model) if own else (by_hand(fresh[1], x, carries), x)
        found = model(x)
        if wanted.shape != found.shape:
            shapes = f"{list(wanted.shape[2:])} a step, those of its layers {list(found.shape[2:])}"
            raise ConversionError(f"its outputs are {shapes}")
        close = torch.isclose(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()) + 1e-6)
        share = float(close.float().mean())
        if share < 1 - ALLOWED:
            step = int((~close).flatten(2).any(2).any(0).nonzero()[0])
            what = (
                "its own forward computes something else than its layers in their order" if own else "it runs otherwise"
            )
            raise ConversionError(
                f"{what}: {1 - share:.1%} of its outputs differ, the first at step {step}. Give it as an nn.Sequential "
                "of its layers and neurons, pools and Flatten among them"
            )
        alike, counted = min(alike, share), counted + wanted.numel()
        rates.append(float((wanted != 0).float().mean()))
    what = "inputs of five sizes" + ("" if given is None else " and on calibration")
    if not any(rates):
        return f"run beside the original on {what}: both silent at all of {counted} outputs"
    return (
        f"run beside the original: {alike:.2%} of {counted} outputs equal, on {what}; "
        f"{min(rates):.0%} to {max(rates):.0%} of them not 0"
    )


def over_steps(inputs: Tensor, model: Any) -> Tensor:
    """The first of `inputs` ``[B, …]``, held for all steps: a stimulus ``[B, T, …]`` in the weights' type.

    Errors: `ConversionError` where a sample has another shape than the network reads.
    """
    if tuple(inputs.shape[1:]) != tuple(model.spec.input) or not len(inputs):
        raise ConversionError(
            f"calibration must be inputs {['B', *model.spec.input]} of one step, got {list(inputs.shape)}"
        )
    some = inputs[:STREAMS].detach().cpu().to(next(model.parameters()).dtype)
    return some[:, None].expand(-1, STEPS, *some.shape[1:]).contiguous()


def cleared(modules: Any) -> None:
    """Silent membranes in the copies."""
    module: Any
    for module in modules:
        tool = toolkit_of(module)
        if tool == "snntorch" and hasattr(module, "reset_mem"):
            module.reset_mem()
            if isinstance(getattr(module, "spk", None), Tensor):
                module.spk = torch.zeros_like(module.spk)
            for name in ("syn",):
                if isinstance(getattr(module, name, None), Tensor):
                    setattr(module, name, torch.zeros_like(getattr(module, name)))
        elif tool == "spikingjelly" and hasattr(module, "reset"):
            module.reset()


def by_hand(parts: list[nn.Module], x: Tensor, carries: bool) -> Tensor:
    """Outputs ``[B,T,…]`` of layers that are called one after the other at every step."""
    part: Any
    for part in parts:
        part.eval()
        if toolkit_of(part) == "spikingjelly" and hasattr(part, "step_mode"):
            part.step_mode = "s"
    cleared(m for part in parts for m in part.modules())
    states: list[Any] = [None] * len(parts)
    rows = []
    for t in range(x.shape[1]):
        h = x[:, t]
        for i, module in enumerate(parts):
            timed = toolkit_of(module) == "norse" and not type(module).__name__.endswith("Cell")
            given = h[None] if timed else h
            y = module(given, states[i]) if carries and toolkit_of(module) == "norse" else module(given)
            if isinstance(y, tuple):
                y, states[i] = y[0], y[1]
            h = y[0] if timed else y
        rows.append(h)
    return torch.stack(rows, 1)


def own_run(source: nn.Module, x: Tensor, model: Any) -> tuple[Tensor, Tensor]:
    """``(outputs [B,T,…], the input that they belong to)`` of a module with a forward of its own.

    Called with all steps ``[T,B,…]``, step by step, or with one sample that it shows itself several times; whichever
    gives outputs of the right shape.
    """
    source.eval()
    shape = tuple(model(x[:, :1]).shape[2:])
    said = []
    for how in ("steps", "step", "loop"):
        cleared(source.modules())
        try:
            if how == "steps":
                y = first_tensor(source(x.transpose(0, 1)))
                good, out, given = y.shape == (x.shape[1], len(x), *shape), y.transpose(0, 1), x
            elif how == "step":
                rows = [first_tensor(source(x[:, t])) for t in range(x.shape[1])]
                good, out, given = rows[0].shape == (len(x), *shape), torch.stack(rows, 1), x
            else:
                y = first_tensor(source(x[:, 0]))
                good = y.ndim == len(shape) + 2 and y.shape[1:] == (len(x), *shape)
                out = y.transpose(0, 1)
                given = x[:, :1].expand(-1, len(y), *x.shape[2:]) if good else x
        except Exception as error:  # whatever a foreign forward raises when it is called another way
            said.append(f"{how}: {type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}")
            continue
        if good and (how != "steps" or agree(out, model(given))):
            return out, given
        said.append(f"{how}: outputs {list(out.shape)}")
    raise ConversionError(
        "its forward could not be run beside its layers (" + "; ".join(said) + "); give it as an nn.Sequential"
    )


def agree(wanted: Tensor, found: Tensor) -> bool:
    """Mostly the same?"""
    return bool(torch.isclose(wanted, found, rtol=1e-3, atol=1e-4).float().mean() > 1 - ALLOWED)


def first_tensor(y: Any) -> Tensor:
    """The spikes among what a forward gives."""
    y = y[0] if isinstance(y, tuple | list) else y
    if not isinstance(y, Tensor):
        raise TypeError(f"it gives {type(y).__name__}")
    return y
