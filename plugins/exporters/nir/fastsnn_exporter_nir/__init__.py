"""NIR, the Neuromorphic Intermediate Representation: ``fastsnn export model.snn --to nir model.nir``, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attrs import frozen

from fastsnn_core import Exporter, hookimpl, param
from fastsnn_core.errors import FastSNNError
from fastsnn_core.files import beside
from fastsnn_exporter_nir.readers import READERS, misread

__version__ = "0.1.0"


@frozen
class NirFile(Exporter):
    """τ v' = v_leak − v + r x as a node of a graph: neurons, weights, pools and delays with their constants, in HDF5.

    Writes `nir_graph` models node by node, and `sequential` ones of linear layers, convolutions, average pools, flatten
    and lif neurons with a hard reset; everything else is refused with the layer's name and the reason. What is read
    back gives the same spikes. NIR keeps no dt: whoever reads the file has to be told (``fastsnn convert x.nir --dt``).
    Source: Pedersen et al. 2024, Nature Communications 15, 8122; written by the nir package.
    """

    name = "nir"
    writes = "file"
    tolerance = 1e-5
    dt: float = param(
        1e-4, gt=0.0, unit="seconds", doc="length of a step, for models that have none of their own", draw=(1e-4,)
    )

    portable: bool = param(True, doc="r of neurons goes into the weights in front (Norse ignores r); False: equal bits")
    reader: str = param("", choices=READERS, doc="refuse what this toolkit would run as something else", draw=("",))

    def unsupported(self, model: Any) -> list[str]:
        """Every layer that NIR has no word for."""
        from fastsnn_exporter_nir.write import Unsayable

        try:
            return misread(self.graph(model), self.reader)
        except Unsayable as refusal:
            return refusal.reasons

    def graph(self, model: Any) -> Any:
        """The ``nir.NIRGraph`` that `export` writes."""
        from fastsnn_exporter_nir.write import fold_r, graph_of

        graph = graph_of(model, self.dt)
        if self.portable:
            fold_r(graph)
        return graph

    def export(self, model: Any, path: Any) -> Path:
        """Write the graph, beside and renamed."""
        import nir

        graph = self.graph(model)
        if reasons := misread(graph, self.reader):
            raise FastSNNError("; ".join(reasons))
        path = Path(path)
        with beside(path) as scratch:
            nir.write(scratch, graph)
        return path

    def load(self, path: Any) -> Any:
        """The graph as a model."""
        from fastsnn_exporter_nir.read import network

        return network(path, self.dt)


@hookimpl
def fastsnn_exporters() -> list[type[Exporter]]:
    """This plugin's exporters."""
    return [NirFile]
