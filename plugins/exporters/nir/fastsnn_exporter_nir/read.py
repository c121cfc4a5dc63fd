"""A .nir file as a network: `network(path, dt)`; what is wrong with a file is said before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastsnn_core import build
from fastsnn_core.errors import FastSNNError
from fastsnn_exporter_nir.convention import nodes_of
from fastsnn_exporter_nir.readers import WRITERS, as_meant
from fastsnn_model_nir_graph import NirGraph, NirNode
from fastsnn_model_nir_graph.units import CONSTANTS, WEIGHTED

NODES, BYTES, PLAIN, SWOLLEN = 20_000, 1 << 33, 1 << 28, 1000
"""The most nodes and bytes that a file may hold: beyond them it is a mistake, or meant to exhaust the machine. So is
more than 256 MiB that is a thousand times as large as the file."""


class NirError(FastSNNError):
    """A file that is no NIR graph, or a graph that has no meaning here; names the file and the node."""


def survey(path: Path) -> None:
    """Refuse what is no NIR file, or too large, from the file's directory alone."""
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise NirError(
            f"{path} is no HDF5 file, which a .nir is: {str(error).partition('(')[2].rstrip(')') or error}"
        ) from None
    with file:
        link = file.get("node", getlink=True) if "node" in file else None
        if not isinstance(link, h5py.HardLink) or not isinstance(file["node"], h5py.Group):
            held = ", ".join(list(file)[:5]) or "nothing"
            raise NirError(f"{path} is an HDF5 file, but no NIR graph: it has no group 'node' (it holds {held})")
        count, size, stack = 0, 0, [(file["node"], 0)]
        while stack:
            group, depth = stack.pop()
            if depth > 64:
                raise NirError(f"{path}: subgraphs lie more than 32 deep in one another")
            count += len(group)
            if count > 16 * NODES:
                raise NirError(f"{path} holds more than {NODES} nodes' worth of entries ({count} and more)")
            if "nodes" in group and len(group["nodes"]) > NODES:
                raise NirError(f"{path}: a graph of {len(group['nodes'])} nodes; at most {NODES} are read")
            for name in group:
                link = group.get(name, getlink=True)
                if not isinstance(link, h5py.HardLink):
                    raise NirError(f"{path}: {group.name}/{name} is a link to somewhere else, which is not followed")
                item = group[name]
                if isinstance(item, h5py.Group):
                    stack.append((item, depth + 1))
                else:
                    size += item.nbytes if item.dtype.kind in "fiub" else 0
                    if size > BYTES:
                        raise NirError(f"{path} declares more than {BYTES >> 30} GiB of numbers")
                    if size > PLAIN and size > SWOLLEN * path.stat().st_size:
                        raise NirError(f"{path} declares {size >> 20} MiB of numbers in {path.stat().st_size} bytes")


def read_graph(path: str | Path) -> Any:
    """The ``nir.NIRGraph`` of a file, its structure checked."""
    import nir

    path = Path(path)
    if not path.is_file():
        raise NirError(f"{path}: there is no such file")
    survey(path)
    try:
        graph = nir.read(path, type_check=False)
    except NirError:
        raise
    except Exception as error:  # assertions, missing keys, wrong types: whatever the reader met
        raise NirError(f"{path} cannot be read as NIR: {type(error).__name__}: {error}") from None
    if not isinstance(graph, nir.NIRGraph):
        raise NirError(f"{path} holds a single {type(graph).__name__}, and a graph is wanted")
    return graph


def network(source: Any, dt: float = 1e-4, writer: str = "") -> Any:
    """The `NirGraph` model of a graph or of a file, its numbers in place; `dt` is the length of a step in seconds.

    `writer` ("norse", "sinabs") is the toolkit that wrote the file, where it runs its own neurons otherwise than it
    writes them: put right, or refused.
    """
    if writer not in WRITERS:
        raise NirError(f"writer is one of {', '.join(map(repr, WRITERS))}, not {writer!r}")
    where = str(source) if isinstance(source, str | Path) else "the graph"
    graph = read_graph(source) if isinstance(source, str | Path) else source
    try:
        rows, values, shape, output = nodes_of(graph)
        nodes = tuple(NirNode(**row) for row in rows)
        try:
            spec = NirGraph(input=shape, nodes=nodes, output=output, dt=float(dt))
        except FastSNNError:
            if len(shape) < 2 or shape[0] != 1:
                raise
            spec = NirGraph(input=shape[1:], nodes=nodes, output=output, dt=float(dt))  # nirtorch counts the batch
    except NirError:
        raise
    except FastSNNError as error:
        raise NirError(f"{where}: {error}") from None
    odd = [as_meant(n.name, n.kind, values.get(n.name, {}), writer, float(dt)) for n in nodes]
    if reasons := [reason for reason in odd if reason]:
        raise NirError(f"{where}: {'; '.join(reasons)}")
    model: Any = build(spec)
    with torch.no_grad():
        for unit in model.units:
            node = unit.spec
            for name in (*CONSTANTS.get(node.kind, ()), *(("weight", "bias") if node.kind in WEIGHTED else ())):
                target = getattr(unit, name)
                if target is None:
                    continue
                given = np.asarray(values[node.name][name], dtype=np.float64)
                if node.kind in ("I", "IF") and name == "r" and np.allclose(given * dt, 1.0, rtol=1e-5):
                    given = given * dt  # SpikingJelly writes r = 1/dt where others write 1
                check_numbers(where, node, name, given, float(dt))
                target.copy_(torch.from_numpy(given.astype(np.float32)).reshape(target.shape))
    model.meta = {"milestones": [{"what": "convert", "source": Path(where).name, "dt": float(dt)}]}
    return model.eval()


def check_numbers(where: str, node: Any, name: str, given: np.ndarray, dt: float) -> None:
    """Numbers that can be run: finite, time constants of at least a step, delays of whole steps."""
    who = f"{where}: {name} of node {node.name!r} ({node.kind})"
    if not np.isfinite(given).all():
        raise NirError(f"{who} holds values that are NaN or infinite")
    if name.startswith("tau") and given.size and given.min() < dt * (1 - 1e-9):
        raise NirError(
            f"{who} is {given.min():g} s at least somewhere, shorter than a step of {dt:g} s: give a smaller dt"
        )
    if name == "delay":
        if given.size and given.min() < 0:
            raise NirError(f"{who} is negative")
        steps = given / dt
        if given.size and np.abs(steps - np.round(steps)).max() > 1e-3:
            raise NirError(
                f"{who} is no whole number of steps of {dt:g} s: {given.ravel()[0]:g} s is {steps.ravel()[0]:.4g}; "
                "give a dt that divides it"
            )
        if given.size and steps.max() > 100_000:
            raise NirError(f"{who} is {steps.max():.0f} steps of {dt:g} s; at most 100000 are kept")


def convert_nir(path: str | Path, dt: float = 1e-4, writer: str = "") -> Any:
    """What ``fastsnn convert x.nir`` calls: ``(model, rows of the report)``."""
    model = network(path, dt, writer)
    rows = [
        {
            "name": unit.spec.name,
            "class": unit.kind,
            "status": "converted",
            "note": f"{list(unit.spec.shape) or ''}".strip(),
        }
        for unit in model.units
    ]
    return model, rows
