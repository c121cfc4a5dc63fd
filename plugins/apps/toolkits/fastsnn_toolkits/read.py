"""A module (or a state dict of snnTorch) as a FastSNN model: read, thresholds folded, built, and run beside it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastsnn_conversion.context import ConversionError
from fastsnn_core import Model, build
from fastsnn_core.errors import FastSNNError
from fastsnn_core.spec import Faults, SpecError, converter
from fastsnn_toolkits import compare, norse_cells, snntorch_neurons, spikingjelly_neurons
from fastsnn_toolkits.rows import SCALED, Row, chain, layer_of, toolkit_of, torch_name

FIRST = ("linear", "conv1d", "conv2d", "conv3d")


def read_toolkit_network(source: Any, example: Any = None, calibration: Any = None) -> tuple[Any, list[dict[str, str]]]:
    """``(model, rows of the report)`` of a module built of a toolkit's neurons, or of a state dict of snnTorch.

    `example` is an input ``[B, …]`` of one step; where a linear layer comes first it is not needed. Nothing is
    fitted: `calibration`, inputs of the same kind, is an example that both are run on, too. The layers are
    those that are registered, in that order; a module with a forward of its own is taken only if it computes what they
    compute. Input and output of the model are ``[B, T, …]``. snnTorch and SpikingJelly become a `sequential`, Norse a
    `nir_graph`. Thresholds become 1, and what is in front is divided by them: spikes are equal up to rounding of
    membranes that lie on their threshold. Errors: `ConversionError` names a layer or neuron without an equal here, or
    the first step at which the two differ.
    """
    example = calibration if example is None else example
    if isinstance(source, dict):
        rows = snntorch_neurons.rows_of_state(source)
        model = sequential(rows, shape_of(example, rows))
        return model, reported(rows)
    parts = list(chain(source))
    tools = {t for _, m in parts if (t := toolkit_of(m))}
    if len(tools) > 1:
        raise ConversionError(
            f"its neurons are of {' and '.join(sorted(tools))}; a network is read with one convention"
        )
    if tools == {"norse"}:
        model, said = norse_cells.norse_network(parts, first_shape(example, parts))
    else:
        rows = [toolkit_row(name, module) for name, module in parts]
        model, said = sequential(rows, shape_of(example, rows)), []
        said = reported(rows)
    given = None if calibration is None else compare.over_steps(calibration, model)
    rate = compare.same(source, [m for _, m in parts], model, "norse" in tools, given)
    said[-1]["note"] = f"{said[-1]['note']}; {rate}".removeprefix("; ")
    return model, said


def toolkit_row(name: str, module: nn.Module) -> Row:
    """A layer, or a neuron of snnTorch or SpikingJelly."""
    tool = toolkit_of(module)
    if tool == "snntorch":
        return snntorch_neurons.snntorch_neuron(name, module)
    if tool == "spikingjelly" and not torch_name(module) and not type(module).__name__.startswith("Dropout"):
        return spikingjelly_neurons.spikingjelly_neuron(name, module)
    return layer_of(name, module)


def reported(rows: list[Row]) -> list[dict[str, str]]:
    """Rows of the report."""
    return [{"name": r.name, "class": r.kind, "status": "converted", "note": r.note} for r in rows]


def example_shape(example: Any) -> tuple[int, ...] | None:
    """Of one sample."""
    if example is None:
        return None
    if not isinstance(example, Tensor) or example.ndim < 2:
        raise ConversionError("example (or calibration) must be inputs [B, …] of one step, as a tensor")
    return tuple(int(n) for n in example.shape[1:])


def shape_of(example: Any, rows: list[Row]) -> tuple[int, ...]:
    """Shape of one sample: of the example, or what the first linear layer reads."""
    if (found := example_shape(example)) is not None:
        return found
    first = next((r for r in rows if r.op not in SCALED), None)
    if first is None or first.op != "linear":
        raise ConversionError("the shape of its input is not known: give example= an input [B, …] of one step")
    return (first.tensors["weight"].shape[1],)


def first_shape(example: Any, parts: list[tuple[str, nn.Module]]) -> tuple[int, ...]:
    """The same of modules."""
    layers = [layer_of(name, m) for name, m in parts if not toolkit_of(m)]
    first: Any = parts[0][1] if parts else None
    if example is None and hasattr(first, "input_weights"):
        return (int(first.input_weights.shape[1]),)
    return shape_of(example, layers)


def sequential(rows: list[Row], shape: tuple[int, ...]) -> Any:
    """The network, its weights in place."""
    fold_thresholds(rows)
    table = {"kind": "sequential", "input": list(shape), "layers": [r.layer for r in rows]}
    try:
        model: Any = build(converter().structure(table, Model))
    except (Faults, SpecError, FastSNNError) as error:
        raise ConversionError(
            f"its layers, in the order in which they are registered, do not fit together: {error}; a network that "
            "calls them otherwise can be given as an nn.Sequential of what it computes"
        ) from None
    for row, layer in zip(rows, model.layers, strict=True):
        held = layer.state_dict()
        for name, tensor in row.tensors.items():
            if name not in held or held[name].shape != tensor.shape:
                wanted = list(held[name].shape) if name in held else "nothing"
                raise ConversionError(
                    f"{row.name}: {name} is {list(tensor.shape)}, and what stands in front of it asks for {wanted}: "
                    "its layers, in the order in which they are registered, do not fit together"
                )
        layer.load_state_dict(row.tensors, strict=False)
    return model.eval()


def fold_thresholds(rows: list[Row]) -> None:
    """Give every neuron the threshold 1: what stands in front of it is divided by its own.

    So spikes are ones, as in the toolkits. A neuron with nothing in front keeps its threshold, and what reads its
    spikes, which are as high, is divided instead.
    """
    for i, row in enumerate(rows):
        theta = row.theta
        if theta is None or bool((theta == 1).all()):
            continue
        j = i - 1
        while j >= 0 and rows[j].op in SCALED:
            j -= 1
        front = rows[j] if j >= 0 and rows[j].op in (*FIRST, "batch_norm") and "weight" in rows[j].tensors else None
        if front is not None and (theta.numel() == 1 or (j == i - 1 and theta.numel() == len(front.tensors["weight"]))):
            divide_weights(front, theta, ("weight", "bias"))
            divide_weights(row, theta, ("neuron.recurrent.weight", "neuron.recurrent.bias"))
            continue
        if theta.numel() != 1:
            raise ConversionError(f"{row.name}: thresholds per channel need a linear layer or a convolution in front")
        k = next((k for k in range(i + 1, len(rows)) if rows[k].op not in SCALED), None)
        if k is None or rows[k].op not in FIRST:
            raise ConversionError(
                f"{row.name}: its threshold {float(theta):g} has no weights in front or behind to go into"
            )
        row.layer["neuron"]["threshold"] = float(theta)
        divide_weights(rows[k], theta, ("weight",))


def divide_weights(row: Row, by: Tensor, names: tuple[str, ...]) -> None:
    """Tensors of a layer by a threshold, or by one for each of their rows."""
    for name in names:
        if name in row.tensors:
            t = row.tensors[name]
            row.tensors[name] = t / (by if by.numel() == 1 else by.reshape(-1, *[1] * (t.ndim - 1)))
