"""A GGUF file as a source of conversions: its metadata as a config.json, its tensors by the names of transformers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import dequantize
from torch import Tensor

from fastsnn_convert.language.hf_checkpoint import SourceError
from fastsnn_gguf.container import Container, GgufTensor
from fastsnn_gguf.vocabulary import tokenizer_from_metadata

ARCHITECTURES = {"llama": "llama", "mistral": "mistral", "qwen2": "qwen2", "qwen3": "qwen3"}
PERMUTED = ("llama", "mistral")  # llama.cpp turns pairs of neighbours there, transformers halves
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
FACTORS = "rope_freqs.weight"
CHUNK = 1 << 22  # numbers dequantised at a time


def hf_name(name: str) -> str:
    """transformers' name of a tensor, or its own where transformers has none."""
    module, _, leaf = name.rpartition(".")
    for theirs, ours in WHOLE.items():
        if module == ours:
            return f"{theirs}.{leaf}"
    words = module.split(".", 2)
    if len(words) == 3 and words[0] == "blk":
        for theirs, ours in LAYER.items():
            if words[2] == ours:
                return f"model.layers.{words[1]}.{theirs}.{leaf}"
    return name


class GgufSource:
    """Called by `fastsnn_convert` with the path of a file."""

    def __init__(self, path: str | Path) -> None:
        self.path = self.described_in = Path(path)
        self.container = Container(self.path)
        self.entries: dict[str, GgufTensor] = {
            hf_name(name): tensor for name, tensor in self.container.tensors.items() if name != FACTORS
        }
        self.architecture = str(self.value("general.architecture"))
        if self.architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise SourceError(f"{self.path}: unknown architecture {self.architecture!r}; supported: {known}")
        self.config = self.configuration()

    def value(self, key: str) -> Any:
        """A value that must be in the metadata."""
        found = self.container.get(key)
        if found is None:
            raise SourceError(f"{self.path} has no {key!r} in its metadata")
        return found

    def own(self, key: str, default: Any = None) -> Any:
        """A value of this architecture; one per layer only where all are the same."""
        found = self.container.get(f"{self.architecture}.{key}", default)
        if isinstance(found, list):
            if len(set(found)) != 1:
                raise SourceError(f"{self.path}: {self.architecture}.{key} differs between layers, {found}")
            found = found[0]
        return found

    def configuration(self) -> dict[str, Any]:
        """The keys of a config.json."""
        arch, tensors = self.architecture, self.container.tensors
        embed = tensors.get("token_embd.weight")
        if embed is None or len(embed.shape) != 2:
            raise SourceError(f"{self.path} has no matrix token_embd.weight")
        if self.own("expert_count", 0):
            raise SourceError(f"{self.path}: a mixture of experts; supported: dense {', '.join(ARCHITECTURES)}")
        width, heads = self.value(f"{arch}.embedding_length"), self.own("attention.head_count")
        if type(heads) is not int or heads < 1:
            raise SourceError(f"{self.path}: {arch}.attention.head_count must be a positive number, not {heads!r}")
        head_dim = self.own("attention.key_length", width // heads)
        for key in ("attention.value_length", "rope.dimension_count"):
            if self.own(key, head_dim) != head_dim:
                raise SourceError(f"{self.path}: {arch}.{key} {self.own(key)} is not the width of a head, {head_dim}")
        epsilon = self.own("attention.layer_norm_rms_epsilon")
        config: dict[str, Any] = {
            "model_type": ARCHITECTURES[arch],
            "vocab_size": self.own("vocab_size", embed.shape[0]),
            "hidden_size": width,
            "intermediate_size": self.own("feed_forward_length"),
            "num_hidden_layers": self.value(f"{arch}.block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self.own("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "max_position_embeddings": self.own("context_length"),
            "rope_theta": self.own("rope.freq_base", 10000.0),
            "tie_word_embeddings": "output.weight" not in tensors,
            "attention_bias": "blk.0.attn_q.bias" in tensors and arch != "qwen2",
            "mlp_bias": "blk.0.ffn_up.bias" in tensors,
            "sliding_window": self.own("attention.sliding_window"),
            "rope_scaling": self.scaling(head_dim),
        }
        if epsilon is not None:
            config["rms_norm_eps"] = float(np.float32(epsilon))
        if config["sliding_window"] and arch == "llama":  # only Mistral's files have one there
            config["model_type"] = "mistral"
        return {key: value for key, value in config.items() if value is not None or key == "sliding_window"}

    def scaling(self, head_dim: int) -> dict[str, Any] | None:
        """``rope_scaling`` of a config.json: from the metadata, or from Llama 3's table of factors."""
        if (table := self.container.tensors.get(FACTORS)) is not None:
            return self.llama3(table, head_dim)
        kind, factor = self.own("rope.scaling.type"), self.own("rope.scaling.factor", self.own("rope.scale_linear"))
        if kind in (None, "none") and factor in (None, 0.0, 1.0):
            return None
        if kind in (None, "linear"):
            return {"rope_type": "linear", "factor": factor or 1.0}
        if kind == "yarn":
            original = self.own("rope.scaling.original_context_length", self.own("context_length"))
            found = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
            more = {"attn_factor": "attention_factor", "yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
            for ours, theirs in more.items():
                if (value := self.own(f"rope.scaling.{ours}")) is not None:
                    found[theirs] = value
            return found
        raise SourceError(f"{self.path}: rope scaling {kind!r}; supported: none, linear, yarn, {FACTORS} of Llama 3")

    def llama3(self, table: GgufTensor, head_dim: int) -> dict[str, Any]:
        """Llama 3's scaling, whose factors a file holds instead of its settings."""
        found = dequantize(table.data, table.type).reshape(-1).astype(np.float64)
        wavelengths = 2 * math.pi * self.own("rope.freq_base", 10000.0) ** (np.arange(0, head_dim, 2) / head_dim)
        low, high, factor = 1.0, 4.0, float(found.max(initial=1.0))
        for original in (8192, self.own("rope.scaling.original_context_length", 8192)):
            smooth = (original / wavelengths - low) / (high - low)
            middle = 1 / ((1 - smooth) / factor + smooth)
            wanted = np.where(
                wavelengths < original / high, 1.0, np.where(wavelengths > original / low, factor, middle)
            )
            if found.shape == wanted.shape and np.allclose(found, wanted, rtol=1e-3):
                return {
                    "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                    "original_max_position_embeddings": original,
                }  # fmt: skip
        raise SourceError(f"{table.file}: the factors of {FACTORS} are not Llama 3's, which alone are supported")

    def dtype(self) -> torch.dtype:
        """The type most numbers are stored in: a float type, or float32 for what is quantised."""
        size: dict[str, int] = {}
        for tensor in self.entries.values():
            size[tensor.type.name] = size.get(tensor.type.name, 0) + math.prod(tensor.shape)
        kind = max(size, key=lambda name: size[name])
        return {"F16": torch.float16, "BF16": torch.bfloat16}.get(kind, torch.float32)

    def check(self, name: str, shape: tuple[int, ...]) -> GgufTensor:
        """The tensor of this (transformers') name, which must exist with this shape."""
        tensor = self.entries.get(name)
        if tensor is None:
            own = next((ours for ours in map(self.own_name, [name]) if ours), name)
            raise SourceError(f"{self.path} has no tensor {own}, which its metadata asks for")
        if tensor.shape != shape:
            says = f"{tensor.name} has shape {list(tensor.shape)}, its metadata asks for {list(shape)}"
            raise SourceError(f"{tensor.file}: {says}")
        return tensor

    def own_name(self, name: str) -> str:
        """The file's name for a tensor of transformers."""
        module, _, leaf = name.rpartition(".")
        if module in WHOLE:
            return f"{WHOLE[module]}.{leaf}"
        words = module.split(".", 3)
        return f"blk.{words[2]}.{LAYER[words[3]]}.{leaf}" if len(words) == 4 and words[3] in LAYER else name

    def read(self, name: str, into: Tensor) -> None:
        """Dequantise a tensor into `into`, some rows at a time."""
        tensor = self.check(name, tuple(into.shape))
        rows = tensor.shape[0]
        order = self.order(name, rows)
        matrix = tensor.data if len(tensor.shape) > 1 else tensor.data.reshape(1, -1)
        step = max(1, CHUNK // max(1, math.prod(tensor.shape[1:]))) if len(tensor.shape) > 1 else 1
        with torch.no_grad():
            if len(tensor.shape) == 1:
                flat = torch.from_numpy(np.array(dequantize(matrix, tensor.type), dtype=np.float32)).reshape(-1)
                into.copy_(flat if order is None else flat[torch.from_numpy(order)])
                return
            for begin in range(0, rows, step):
                piece = slice(begin, begin + step)
                data = matrix[piece] if order is None else matrix[order[piece]]
                into[piece].copy_(torch.from_numpy(np.array(dequantize(data, tensor.type), dtype=np.float32)))

    def order(self, name: str, rows: int) -> np.ndarray | None:
        """Where the rows of q and k come from in a file of the llama architecture."""
        which = name.rpartition(".")[0].rpartition(".")[2]
        if self.architecture not in PERMUTED or which not in ("q_proj", "k_proj"):
            return None
        heads = self.config["num_attention_heads" if which == "q_proj" else "num_key_value_heads"]
        return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)

    def tokenizer(self) -> Any:
        """The file's tokenizer."""
        return tokenizer_from_metadata(self.container, self.container.tensors["token_embd.weight"].shape[0])
