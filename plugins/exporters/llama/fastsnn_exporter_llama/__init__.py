"""A decoder as an ordinary dense Llama, Mistral, Qwen2 or Qwen3: spikes off, what balancing moved folded back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from attrs import frozen

from fastsnn_core import Exporter, hookimpl, param, targets
from fastsnn_core.errors import FileError
from fastsnn_core.files import beside
from fastsnn_exporter_llama import config, fold

__version__ = "0.1.0"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@frozen
class Llama(Exporter):
    """y = W x + (b − W μ): every site hands on its numbers, and its centre μ goes into the bias behind it.

    Writes a Hugging Face directory (config.json, model.safetensors, the tokenizer's files, a card) that transformers,
    llama.cpp's converter and others read as a Llama, Mistral, Qwen2 or Qwen3; which one follows from the model. Of a
    converted model that was not trained since, logits are the original's up to rounding: balancing divides channels
    and moves constants without changing the function, and biases that cancel are left out. What it computes is the
    model *without* spikes; of one that was trained with spikes the two differ. Errors: attentions other than softmax
    and sliding windows, quantised weights, layers that those families do not have; each reason is named.
    """

    name = "llama"
    writes = "folder"
    tolerance = 1e-4
    dtype: str = param("float32", choices=tuple(DTYPES), doc="of the stored weights", draw=("float32",))

    def unsupported(self, model: Any) -> list[str]:
        """Reasons why `model` is no Llama."""
        return config.llama_obstacles(model)

    def export(self, model: Any, path: Any) -> Path:
        """Write the directory, whole or not at all."""
        from safetensors.torch import save_file

        path = Path(path)
        if path.exists() and not replaceable(path):
            raise FileError(
                f"{path} exists and is no Hugging Face directory of weights; it is left alone. Choose another name"
            )
        dense, spec = fold.dense(model)
        table = config.config_of(spec, dense, getattr(model, "meta", {}), self.dtype)
        tensors = config.hf_tensors(dense, table, DTYPES[self.dtype])
        with beside(path) as scratch:
            scratch.mkdir()
            save_file(tensors, scratch / "model.safetensors", metadata={"format": "pt"})
            says = config.write_tokenizer(model, scratch)
            (scratch / "config.json").write_text(json.dumps(table | says, indent=2) + "\n", encoding="utf-8")
            generation = {k: v for k, v in says.items() if k.endswith("_token_id")}
            (scratch / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
            (scratch / "README.md").write_text(config.card(model, table), encoding="utf-8")
        return path

    def load(self, path: Any) -> Any:
        """The dense decoder of the directory."""
        from fastsnn_convert.language.families import import_dense

        return import_dense(path)

    def expected(self, model: Any) -> Any:
        """The model without spikes."""
        return fold.Dense(model)


def replaceable(path: Path) -> bool:
    """Is here a Hugging Face directory of a dense model (or an empty folder)?"""
    if not path.is_dir() or targets.is_bundle(path):
        return False
    names = {p.name for p in path.iterdir()}
    return not names or {"config.json", "model.safetensors"} <= names


@hookimpl
def fastsnn_exporters() -> list[type[Exporter]]:
    """This plugin's exporters."""
    return [Llama]
