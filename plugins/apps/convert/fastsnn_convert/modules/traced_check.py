"""Is the traced network the module? Both run on the example, and on other samples; and where the batch went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn_conversion.context import ConversionError
from fastsnn_convert.modules.functional_form import does_not_run
from fastsnn_convert.modules.inputs import HALF, Call, to_float32
from fastsnn_convert.output_distance import output_tensors
from fastsnn_model_graph import Network, Step
from fastsnn_model_graph.steps import run_all


@torch.no_grad()
def reference_output(model: nn.Module, call: Call, example: Sequence[Tensor]) -> Any:
    """What the model itself gives in evaluation mode, on copies of the inputs (it may change them in place)."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        return call(model, [x.clone() for x in example])
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in example)
        raise ConversionError(f"the model does not run on an example of shape {shapes}: {error}") from error
    finally:
        for module, mode in modes.items():
            module.training = mode


def run_dense(dense: Network, inputs: tuple[Tensor, ...], samples: dict[str, Any], opaque: Mapping[str, str]) -> Any:
    """One pass over the traced network, every value put into `samples`."""
    at = [""]

    def see(step: Step, value: Any) -> None:
        samples[step.name], at[0] = value, step.name

    try:
        return run_all(dense, tuple(x.clone() for x in inputs), see)
    except Exception as error:
        raise does_not_run(f"behind {at[0]!r}", error, opaque) from error


def check_same(name: str, wanted: Any, got: Any, example: Sequence[Tensor]) -> None:
    """The traced network must give what the model gives; it does not where tracing froze something that varies."""
    half = any(a.dtype in HALF for a in output_tensors(wanted)) or any(x.dtype in HALF for x in example)
    relative = 0.05 if half else 1e-3
    mine, theirs = ([t for t in output_tensors(tree) if t.is_floating_point()] for tree in (got, wanted))
    good = len(mine) == len(theirs)
    for a, b in zip(theirs, mine):
        a, b = a.double(), b.double()
        top = float(a[a.isfinite()].abs().max()) if bool(a.isfinite().any()) else 0.0
        far = 0.1 * relative * (max(1e-6, top) if half else max(1.0, top))
        good = good and a.shape == b.shape and torch.allclose(a, b, rtol=relative, atol=far, equal_nan=True)
    if not good:
        raise ConversionError(
            f"the traced network gives another output than {name}: something in its forward is random, or depends on "
            "more than its inputs. Make it a module of its own, or use functional=False"
        )


def check_turned(
    model: nn.Module, call: Call, dense: Network, example: tuple[Tensor, ...], opaque: Mapping[str, str]
) -> None:
    """The same on other samples: a hook may have kept values of the first ones, and tracing takes them for constants.

    The samples come in the other order, at twice their size where they are numbers.
    """
    other = tuple(x.flip(0) * (2 if x.is_floating_point() else 1) for x in example)
    try:
        wanted = reference_output(model, call, other)
    except ConversionError:
        return  # not every module takes any numbers
    check_same(type(model).__name__, wanted, run_dense(dense, to_float32(other), {}, opaque), other)


def not_first(dense: Network, inputs: tuple[Tensor, ...], samples: Mapping[str, Any]) -> dict[str, str]:
    """Values whose dimension 0 is not the batch but another one is, with their shapes: seen by one sample more."""
    found: dict[str, str] = {}

    def see(step: Step, value: Any) -> None:
        before = samples.get(step.name)
        if isinstance(value, Tensor) and isinstance(before, Tensor) and value.ndim == before.ndim:
            moved = [i for i, (a, b) in enumerate(zip(before.shape, value.shape)) if a != b]
            if moved and moved[0]:
                found[step.name] = str(list(before.shape))

    try:
        run_all(dense, tuple(torch.cat([x, x[:1]]) for x in inputs), see)
    except Exception:
        return {}  # takes one size of batch only
    return found
