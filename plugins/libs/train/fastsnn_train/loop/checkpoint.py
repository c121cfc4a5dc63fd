"""Checkpoints: everything needed to resume a run bit for bit, written atomically (temporary folder, then rename).

checkpoints/step-000100/
    model.safetensors        parameters and buffers         (or shards/: the same tensors, sharded by process,
    optimizer.safetensors    AdamW's moments and step counts written by torch.distributed.checkpoint as safetensors)
    ema.safetensors          moving average of the weights, if enabled
    history.jsonl            the rows of the log so far
    state.json               step, configuration, RNG states, data position, size and SHA-256 of every file, seal

No pickle. `pick` returns the newest checkpoint whose files all verify; damaged newer ones are renamed and reported.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastsnn_core.errors import FastSNNError
from fastsnn_core.files import beside, reading_tensors
from fastsnn_core.sealed_folder import BundleError, check_listed, digest, dump, read_json, sealed
from fastsnn_train.loop.parallel import World, is_sharded

log = logging.getLogger("fastsnn")
STATE, HISTORY, SHARDS = "state.json", "history.jsonl", "shards"
Tensors = dict[str, Tensor]
"""``model/layers.0.…``, ``optimizer/exp_avg/layers.0.…``, ``ema/…``, ``feed/…`` to tensor."""


class CheckpointError(FastSNNError):
    """The checkpoint is damaged or belongs to another model; the message names the file."""


def save(
    folder: Path,
    tensors: Tensors,
    state: dict[str, Any],
    history: list[dict[str, Any]],
    world: World,
    spare: set[int],
    keep: int,
) -> Path:
    """Write the checkpoint of ``state["step"]``; then delete all but the newest `keep` and the steps in `spare`."""
    path = folder / step_folder(state["step"])
    if any(is_sharded(t) for t in tensors.values()):
        shards = Path(world.first(str(folder / f".{path.name}.shards.part")))
        save_shards(shards, tensors, world)
    else:
        shards = None
    if world.leader:
        with beside(path) as scratch:
            scratch.mkdir()
            if shards is not None:
                shards.rename(scratch / SHARDS)
            else:
                save_whole(scratch, tensors)
            (scratch / HISTORY).write_text("".join(json.dumps(row) + "\n" for row in history), encoding="utf-8")
            files = sorted(p for p in scratch.rglob("*") if p.is_file())
            listed = {p.relative_to(scratch).as_posix(): digest(p) for p in files}
            (scratch / STATE).write_text(dump(sealed(state | {"files": listed})), encoding="utf-8")
            flush(scratch)
        flush(folder)
        for old in found(folder)[:-keep]:
            if step_of(old) not in spare:
                shutil.rmtree(old)
    world.wait()
    return path


def save_whole(scratch: Path, tensors: Tensors) -> None:
    """Write one safetensors file per part (model, optimizer, ema, feed)."""
    for part in sorted({name.partition("/")[0] for name in tensors}):
        mine = {n.partition("/")[2]: t for n, t in tensors.items() if n.startswith(f"{part}/")}
        save_file({n: t.detach().cpu().contiguous() for n, t in mine.items()}, scratch / f"{part}.safetensors")


def save_shards(folder: Path, tensors: Tensors, world: World) -> None:
    """Write this process's shards; a collective, so every process must call it."""
    import torch.distributed.checkpoint as dcp

    if world.leader:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    world.wait()
    rows = {name: t.reshape(1) if t.ndim == 0 else t for name, t in tensors.items()}
    dcp.save(rows, storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True))
    world.wait()


def read_tensors(path: Path, like: Tensors) -> Tensors:
    """Load a checkpoint's tensors, sharded like those of the same name in `like`, however they were saved."""
    files = read_json(path / STATE)["files"]
    if not any(name.startswith(f"{SHARDS}/") for name in files):
        with reading_tensors():
            tensors = {
                f"{file.stem}/{name}": t
                for file in sorted(path / n for n in files if n.endswith(".safetensors") and "/" not in n)
                for name, t in load_file(file).items()
            }
        return {name: shard_like(t, like.get(name)) for name, t in tensors.items()}
    import torch.distributed.checkpoint as dcp

    reader = dcp.HuggingFaceStorageReader(str(path / SHARDS))
    rows: Tensors = {}
    table: dict[str, Any] = reader.read_metadata().state_dict_metadata
    for name, meta in table.items():
        wanted = like.get(name)
        if wanted is not None and wanted.shape == meta.size:
            rows[name] = torch.zeros_like(wanted)
        else:
            rows[name] = torch.zeros(meta.size, dtype=meta.properties.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # a single process reads all shards
        alone = not torch.distributed.is_initialized()
        dcp.load(rows, storage_reader=dcp.HuggingFaceStorageReader(str(path / SHARDS)), no_dist=alone)
    return {
        name: t.reshape(like[name].shape) if name in like and like[name].ndim == 0 else t for name, t in rows.items()
    }


def shard_like(tensor: Tensor, like: Tensor | None) -> Tensor:
    """`tensor`, sharded like `like` if that is a DTensor of the same shape."""
    if like is None or not is_sharded(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)  # type: ignore[attr-defined]


def step_folder(step: int) -> str:
    """Folder name of a step, such as ``step-000100``."""
    return f"step-{step:06d}"


def step_of(path: Path) -> int:
    """The step of a checkpoint folder: 100 for ``step-000100``."""
    return int(path.name.rpartition("-")[2])


def found(folder: Path) -> list[Path]:
    """Checkpoints under `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if re.fullmatch(r"step-\d{6,}", p.name)), key=step_of)


def tidy(folder: Path) -> None:
    """Clean up after a killed process: delete incomplete folders, restore one whose replacement was interrupted."""
    for path in folder.glob(".step-*") if folder.is_dir() else ():
        target = folder / path.name[1:].split(".")[0]
        if path.name.endswith(".old") and not target.exists():
            path.rename(target)
        else:
            shutil.rmtree(path)


def verify(path: Path) -> dict[str, Any]:
    """Check size and SHA-256 of every file; returns state.json, or raises `CheckpointError` for the first bad file."""
    try:
        check_listed(path, path / STATE)
        state = read_json(path / STATE)
    except (OSError, BundleError) as error:
        raise CheckpointError(str(error)) from None
    return state


def pick(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest intact checkpoint and its state; None if there is no checkpoint at all.

    Damaged newer ones are renamed to ``damaged-step-…`` with a warning; raises `CheckpointError` if all are damaged.
    """
    bad: list[str] = []
    for path in reversed(found(folder)):
        try:
            state = verify(path)
        except CheckpointError as error:
            bad.append(str(error))
            continue
        for other in found(folder):
            if step_of(other) > step_of(path):
                other.rename(free_path(other.with_name(f"damaged-{other.name}")))
        for text in bad:
            log.warning("%s; it is set aside, and %s, which is whole, is taken instead", text, path.name)
        return path, state
    if bad:
        raise CheckpointError("no whole checkpoint is left: " + "; ".join(bad))
    return None


def free_path(path: Path) -> Path:
    """`path`, or the first of ``path-1``, ``path-2``, … that does not exist."""
    if not path.exists():
        return path
    stem = re.sub(r"-1$", "", path.name)
    return next(p for n in range(1, 1 << 30) if not (p := path.with_name(f"{stem}-{n}")).exists())


def history(path: Path) -> list[dict[str, Any]]:
    """The log rows stored in a checkpoint."""
    return [json.loads(line) for line in (path / HISTORY).read_text(encoding="utf-8").splitlines()]


def flush(path: Path) -> None:
    """fsync a file, or a folder and everything in it: a rename alone does not survive a power failure."""
    for item in (*path.rglob("*"), path) if path.is_dir() else (path,):
        if item.is_dir() and os.name == "nt":
            continue
        handle = os.open(item, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
