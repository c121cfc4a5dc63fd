"""Sources that are spiking networks already: files (NIR), and modules of other toolkits' neurons. A plugin reads them.

Entry point group ``fastsnn1.networks``: the file's ending → ``reader(path, **options) -> (model, rows of the report)``;
group ``fastsnn1.toolkits``: the package that neurons' classes come from → the same of a module.
"""

from __future__ import annotations

import inspect
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from torch import nn

from fastsnn_conversion.context import ConversionError
from fastsnn_convert.report import Report, row
from fastsnn_convert.result import Conversion
from fastsnn_core.errors import FastSNNError, MissingError

GROUP, TOOLKITS = "fastsnn1.networks", "fastsnn1.toolkits"
KNOWN = {".nir": "fastsnn-exporter-nir"}
NEURONS = {"snntorch": "_neurons", "spikingjelly": "neuron", "norse": "module"}
"""Packages of neurons, and the part of the path of every class that is one."""


def reader_of(source: Any) -> Any:
    """The plugin's reader of files like `source`, or of modules with neurons of the same toolkit; or None."""
    if (toolkit := toolkit_of_source(source)) is not None:
        for found in entry_points(group=TOOLKITS):
            if found.name == toolkit:
                return found.load()
        raise MissingError(f"neurons of {toolkit} need fastsnn-toolkits: pip install fastsnn-toolkits")
    if not isinstance(source, str | Path) or not Path(source).is_file():
        return None
    ending = Path(source).suffix.lower()
    for found in entry_points(group=GROUP):
        if ending == f".{found.name}":
            return found.load()
    if ending in KNOWN:
        raise MissingError(f"{source} needs {KNOWN[ending]}: pip install {KNOWN[ending]}")
    return None


def toolkit_of_source(source: Any) -> str | None:
    """The package that the neurons of a module come from; snnTorch's own where a state dict holds its constants."""
    if isinstance(source, dict):
        return "snntorch" if any(str(key).endswith(".reset_mechanism_val") for key in source) else None
    for module in source.modules() if isinstance(source, nn.Module) else ():
        top, *rest = type(module).__module__.split(".")
        if NEURONS.get(top) in rest:
            return top
    return None


def read_network(source: Any, reader: Any, neuron: Any, options: dict[str, Any]) -> Conversion:
    """What `reader` makes of the source, as a conversion whose report has a row per node."""
    label = Path(source).name if isinstance(source, str | Path) else type(source).__name__
    options = {key: value for key, value in options.items() if key != "quiet"}  # nothing here takes long
    known = list(inspect.signature(reader).parameters)[1:]
    given = [*options, *(["neuron"] if neuron is not None else [])]
    if unknown := sorted(set(given) - set(known)):
        raise ConversionError(
            f"{label} holds a spiking network already, which is read without {', '.join(unknown)}; "
            f"options: {', '.join(known) or 'none'}"
        )
    try:
        model, rows = reader(source, **options)
    except ConversionError:
        raise
    except FastSNNError as error:
        raise ConversionError(str(error)) from None
    report = Report(
        source=label, kind="network", model=f"{model.spec.name} of {len(rows)} nodes",
        neuron="as in the source",
        coverage="as in the source", steps=None, code=None, parameters=sum(p.numel() for p in model.parameters()),
        calibration=0, modules=[row(r["name"], r["class"], r["status"], "", r["note"]) for r in rows], quality={},
        obstacles=[],
    )  # fmt: skip
    return Conversion(model, report)
