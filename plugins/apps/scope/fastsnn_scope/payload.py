"""What the page's script is given: the report's map as JSON, and the arrays behind its cells, deflated, in base64."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import torch

from fastsnn_core.subject import Data
from fastsnn_scope.cells import Arrays

LEAST = 4  # channels below which a raster says nothing


def packed_arrays(arrays: Arrays, channels: int) -> tuple[str, list[Data]]:
    """``(base64, where each site's arrays lie)`` with at most so many channels of every site.

    Per site: thresholds bfloat16 ``[X]``, counts int8 ``[C, X]``, membranes int8 ``[3, X]`` in sixteenths of a
    threshold. Deflate shrinks what is silent to next to nothing.
    """
    raw, places = bytearray(), []
    for counts, ids, u, traced, threshold in zip(
        arrays.counts, arrays.channels, arrays.membrane, arrays.traced, arrays.threshold
    ):
        keep = torch.linspace(0, len(ids) - 1, min(channels, len(ids))).round().long()
        levels = (16 * u).nan_to_num(0.0).round().clamp(-127, 127).to(torch.int8)
        half = threshold.to(torch.bfloat16).view(torch.int16)
        places.append({"at": len(raw), "channels": [ids[i] for i in keep.tolist()], "traced": traced})
        for part in (half, counts[keep].contiguous(), levels.contiguous()):
            raw += part.numpy().tobytes()
        raw += b"\0" * (len(raw) % 2)  # the next site's thresholds are read as 16-bit numbers
    return base64.b64encode(zlib.compress(bytes(raw), 9)).decode(), places


def script_view(found: Data) -> Data:
    """The part of a report that the script reads."""
    keys = ("saved", "cells", "divergence", "speed", "confusion")
    return {"name": found["model"].get("name") or found["model"]["kind"]} | {k: found[k] for k in keys if found.get(k)}


def payload(found: Data, arrays: Arrays | None, room: int, beside: Data | None = None) -> str:
    """The JSON text, at most about `room` bytes long: rasters get fewer channels until it fits, none if need be."""
    told: dict[str, Any] = {"a": script_view(found)}
    if beside is not None:
        told["b"] = script_view(beside)
    if arrays is not None and arrays.counts:
        channels = max(len(c) for c in arrays.channels)
        left = room - len(script_safe_json(told))
        while channels >= LEAST:
            blob, places = packed_arrays(arrays, channels)
            if len(blob) + len(json.dumps(places)) <= left:
                told |= {"blob": blob, "places": places}
                break
            channels //= 2
    return script_safe_json(told)


def script_safe_json(told: Data) -> str:
    """JSON that can stand inside a script element: ``<`` would end it."""
    text = json.dumps(told, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
