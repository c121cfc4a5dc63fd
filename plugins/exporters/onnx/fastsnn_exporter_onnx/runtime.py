"""A written file in ONNX Runtime, with the calls of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastsnn_core.errors import FastSNNError
from fastsnn_core.state import belongs
from fastsnn_core.targets import existing_file
from fastsnn_exporter_onnx.graph import STATE


class OnnxNetwork(nn.Module):
    """``(x [B,T,…], state) -> y`` or ``(y, state)`` as of a model, computed by ONNX Runtime on the CPU.

    Errors: a file that is no ONNX, that was not written here, or whose external data is missing.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        super().__init__()
        import onnxruntime

        path, options = existing_file(path), onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime has an error class for each of its codes
            first = str(error).strip().splitlines()[0]
            raise FastSNNError(f"{path} cannot be run by ONNX Runtime: {first[:300]}") from None
        table = self.session.get_modelmeta().custom_metadata_map.get(STATE)
        if table is None:
            raise FastSNNError(f"{path} was not written by fastsnn export --to onnx: it has no metadata {STATE!r}")
        self.rows: list[dict[str, Any]] = json.loads(table)
        self.names = [i.name for i in self.session.get_inputs()]

    def begin(self, streams: int) -> tuple[Tensor, ...]:
        """The state of `streams` streams before their first token."""
        return tuple(torch.zeros(streams, *r["shape"], dtype=getattr(torch, r["dtype"])) for r in self.rows)

    def forward(self, x: Tensor, state: tuple[Tensor, ...] | None = None, *, return_state: bool = False) -> Any:
        """One piece of a stream."""
        belongs("onnx", state, len(x))
        state = self.begin(len(x)) if state is None else state
        if len(state) != len(self.rows):
            raise FastSNNError(f"onnx: the state has {len(state)} tensors, this network's {len(self.rows)}")
        values = [np.ascontiguousarray(t.detach().cpu().numpy()) for t in (x, *state)]
        feeds = dict(zip([self.names[0], *(f"past.{r['name']}" for r in self.rows)], values))
        try:
            y, *present = self.session.run(None, {name: feeds[name] for name in self.names if name in feeds})
        except Exception as error:
            first = str(error).strip().splitlines()[0]
            raise FastSNNError(f"onnx: ONNX Runtime: {first[:300]}") from None
        return (torch.from_numpy(y), tuple(map(torch.from_numpy, present))) if return_state else torch.from_numpy(y)
