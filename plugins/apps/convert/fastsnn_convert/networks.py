"""Files that hold a whole spiking network (NIR): a plugin reads them, nothing is left to convert.

Entry point group ``fastsnn1.networks``: the file's ending → ``reader(path, **options) -> (model, rows of the report)``.
"""

from __future__ import annotations

import inspect
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from fastsnn_conversion.context import ConversionError
from fastsnn_convert.report import Report, row
from fastsnn_convert.result import Conversion
from fastsnn_core.errors import FastSNNError, MissingError

GROUP = "fastsnn1.networks"
KNOWN = {".nir": "fastsnn-exporter-nir"}


def reader_of(source: Any) -> Any:
    """The plugin's reader of files like `source`, or None."""
    if not isinstance(source, str | Path) or not Path(source).is_file():
        return None
    ending = Path(source).suffix.lower()
    for found in entry_points(group=GROUP):
        if ending == f".{found.name}":
            return found.load()
    if ending in KNOWN:
        raise MissingError(f"{source} needs {KNOWN[ending]}: pip install {KNOWN[ending]}")
    return None


def read_network(source: str | Path, reader: Any, neuron: Any, options: dict[str, Any]) -> Conversion:
    """What `reader` makes of the file, as a conversion whose report has a row per node."""
    options = {key: value for key, value in options.items() if key != "quiet"}  # nothing here takes long
    known = [name for name in inspect.signature(reader).parameters if name != "path"]
    given = [*options, *(["neuron"] if neuron is not None else [])]
    if unknown := sorted(set(given) - set(known)):
        raise ConversionError(
            f"{source} holds a spiking network already, which is read without {', '.join(unknown)}; "
            f"options: {', '.join(known) or 'none'}"
        )
    try:
        model, rows = reader(source, **options)
    except ConversionError:
        raise
    except FastSNNError as error:
        raise ConversionError(str(error)) from None
    report = Report(
        source=Path(source).name, kind="network", model=f"{model.spec.name} of {len(rows)} nodes",
        neuron="as in the file",
        coverage="as in the file", steps=None, code=None, parameters=sum(p.numel() for p in model.parameters()),
        calibration=0, modules=[row(r["name"], r["class"], r["status"], "", r["note"]) for r in rows], quality={},
        obstacles=[],
    )  # fmt: skip
    return Conversion(model, report)
