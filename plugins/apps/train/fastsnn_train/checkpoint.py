"""Checkpoints: everything a run needs to go on bit for bit, as safetensors and JSON, written beside and renamed.

checkpoints/step-000100/
    model.safetensors        parameters and buffers
    optimizer.safetensors    AdamW's moments and step counts, by parameter name; the random state
    state.json               step, configuration, history, and the sha256 of the two files above
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fastsnn_core.bundle import tensors
from fastsnn_core.files import beside


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: names the file."""


def save(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep: int = 2
) -> Path:
    """Write a checkpoint for ``state["step"]`` under `folder`, then drop all but the newest `keep`."""
    path = folder / f"step-{state['step']:06d}"
    names = {id(p): n for n, p in model.named_parameters()}
    moments = {
        f"{what}/{names[id(p)]}": value
        for p, row in optimizer.state.items()
        for what, value in row.items()
        if isinstance(value, torch.Tensor)
    }
    moments["rng"] = torch.get_rng_state()
    if torch.cuda.is_available():
        moments["rng_cuda"] = torch.cuda.get_rng_state()
    with beside(path) as scratch:
        scratch.mkdir()
        save_file(tensors(model)[0], scratch / "model.safetensors")
        save_file({k: v.detach().cpu().contiguous() for k, v in moments.items()}, scratch / "optimizer.safetensors")
        sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in scratch.glob("*.safetensors")}
        (scratch / "state.json").write_text(json.dumps(state | {"sha256": sums}, indent=1), encoding="utf-8")
    for old in found(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def found(folder: Path) -> list[Path]:
    """Whole checkpoints under `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if re.fullmatch(r"step-\d{6,}", p.name) and (p / "state.json").is_file())


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a checkpoint back into model, optimiser and random state; returns its state.json."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / 'state.json'} cannot be read: {error}") from None
    for name, wanted in state["sha256"].items():
        file = path / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != wanted:
            raise CheckpointError(f"{file} is missing or altered; resume from another checkpoint of {path.parent}")
    weights = load_file(path / "model.safetensors")
    wanted_names = tensors(model)[0]
    if odd := sorted(set(weights) ^ set(wanted_names)) or [
        n for n, t in weights.items() if t.shape != wanted_names[n].shape
    ]:
        raise CheckpointError(f"{path} is of another model: {', '.join(odd[:3])} differ")
    model.load_state_dict(weights, strict=False)
    moments = load_file(path / "optimizer.safetensors")
    for name, parameter in model.named_parameters():
        row = {
            key.split("/", 1)[0]: t
            for key, t in moments.items()
            if key.endswith("/" + name) and key.split("/", 1)[1] == name
        }
        if row:
            optimizer.state[parameter] = {
                what: t if what == "step" and t.ndim == 0 else t.to(parameter.device) for what, t in row.items()
            }
    torch.set_rng_state(moments["rng"])
    if "rng_cuda" in moments and torch.cuda.is_available():
        torch.cuda.set_rng_state(moments["rng_cuda"])
    return state
