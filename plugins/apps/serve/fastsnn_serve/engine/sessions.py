"""Session files: the state after a text, saved by one server and restored by the same or another one.

``NAME.safetensors`` holds the token ids, every tensor of the state and, if known, the next token's logits. Its metadata
must match the restoring server: SHA-256 of the model's weights and spec, the arithmetic, the chat template and, for
float models, device type, torch version and chunk length. Files are written atomically (temporary file, then rename).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastsnn_core.errors import FastSNNError
from fastsnn_core.files import beside
from fastsnn_core.state import leaves, tree_map
from fastsnn_serve.engine.prefill_runner import PrefillRunner
from fastsnn_serve.engine.streams import Prompt

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
FORMAT = "fastsnn session 1"


class SessionError(FastSNNError):
    """The session cannot be saved or restored."""


class Sessions:
    """A server's folder of session files."""

    def __init__(self, folder: Path, model: Any, template: Any, chunk: int) -> None:
        self.folder, self.model, self.template, self.chunk = folder, model, template, chunk

    def path(self, name: str) -> Path:
        """The file of a session; raises `SessionError` for an invalid name."""
        if not NAME.fullmatch(name):
            raise SessionError("a session's name is 1 to 100 letters, digits, '.', '_' and '-', the first no '.'")
        return self.folder / f"{name}.safetensors"

    def names(self) -> list[str]:
        """Names of the saved sessions, sorted."""
        return sorted(p.stem for p in self.folder.glob("*.safetensors") if NAME.fullmatch(p.stem))

    @cached_property
    def weights(self) -> str:
        """SHA-256 of the model: its spec, and every tensor with name, dtype and shape."""
        digest = hashlib.sha256()
        if hasattr(self.model, "spec"):
            digest.update(repr(self.model.spec).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def key(self, exact: bool, device: torch.device) -> dict[str, str]:
        """Metadata that must be equal for the server that saves and the one that restores."""
        arithmetic = "integer" if exact else f"float on {device.type}, torch {torch.__version__}, cut at {self.chunk}"
        template = hashlib.sha256(json.dumps(self.template).encode()).hexdigest()
        return {"model": self.weights, "arithmetic": arithmetic, "template": template}

    def save(self, name: str, ids: list[int], runner: PrefillRunner) -> Iterator[Any]:
        """Engine job: prefill what is not cached, chunk by chunk, and write the file; yields name, tokens, bytes."""
        from safetensors.torch import save as to_bytes

        path, prompt = self.path(name), Prompt(ids)
        while not prompt.ready:
            runner.prefill(prompt, True)
            yield None
        found = {f"state.{where}": t.detach().cpu().clone().contiguous() for where, t in leaves(prompt.state)}
        found["ids"] = torch.tensor(ids)
        if prompt.logits is not None:
            found["logits"] = prompt.logits.detach().cpu().clone().contiguous()
        key = self.key(runner.exact, runner.device)
        self.folder.mkdir(parents=True, exist_ok=True)
        with beside(path) as scratch:
            scratch.write_bytes(to_bytes(found, {"format": FORMAT} | key))
        yield {"name": name, "tokens": len(ids), "bytes": path.stat().st_size}

    def restore(self, name: str, runner: PrefillRunner) -> Iterator[Any]:
        """Engine job: load a file's state into the prefix cache; yields name, tokens, bytes; raises `SessionError`."""
        path = self.path(name)
        if not path.is_file():
            raise SessionError(f"no session {name!r} here; there are: {', '.join(self.names()) or 'none'}")
        found, meta = read_session(path)
        for what, value in ({"format": FORMAT} | self.key(runner.exact, runner.device)).items():
            if meta.get(what) != value:
                raise SessionError(
                    f"session {name!r} is of another {what} ({str(meta.get(what))[:40]}; here: {value[:40]})"
                )
        _, like = runner.run([0], None)
        names = [f"state.{where}" for where, _ in leaves(like)]
        if {"ids", *names} != set(found) - {"logits"}:
            raise SessionError(f"session {name!r} is no state of this model")
        ids = [int(i) for i in found["ids"]]
        rows = iter([found[where].to(runner.device) for where in names])
        logits = found["logits"].to(runner.device) if "logits" in found else None
        if not runner.cache.put(ids, tree_map(lambda _: next(rows), like), logits):
            raise SessionError(f"session {name!r} does not fit the prefix cache ({runner.cache.budget} bytes)")
        yield {"name": name, "tokens": len(ids), "bytes": path.stat().st_size}


def read_session(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a session file; raises `SessionError` if it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise SessionError(f"{path.name} is damaged: {error}") from None
