"""The configuration: what a bundle's config.json and meta.json say, under the names that transformers looks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from fastsnn_core import bundle as bundles
from fastsnn_core import targets
from fastsnn_core.errors import FastSNNError

TYPE = "fastsnn"


class FastSNNConfig(PreTrainedConfig):
    """A FastSNN language model. `table` is a bundle's config.json (the whole spec), `meta` its meta.json without seals.

    The other values are read from the spec, and are there because tools ask for them.
    """

    model_type = TYPE
    keys_to_ignore_at_inference = ["past_key_values"]

    table: dict | None = None
    meta: dict | None = None
    vocab_size: int = 257
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    intermediate_size: int | None = None
    max_position_embeddings: int = 1 << 20
    use_cache: bool = True
    tie_word_embeddings: bool = False  # tied weights are one tensor inside the model: nothing to tie
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None


def of_table(table: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    """The keys of a config.json of transformers for a bundle's."""
    model = table.get("model")
    if not isinstance(model, dict) or str(model.get("kind", "")).rpartition("/")[2] != "decoder":
        kind = model.get("kind") if isinstance(model, dict) else None
        raise FastSNNError(f"transformers takes language models (kind decoder); this bundle holds a {kind!r}")
    says = meta.get("tokenizer", {})
    found = {
        "model_type": TYPE,
        "architectures": ["FastSNNForCausalLM"],
        "table": table,
        "meta": {k: v for k, v in meta.items() if k not in ("files", "seal")},
        "vocab_size": model["vocab_size"],
        "hidden_size": model["d_model"],
        "num_hidden_layers": model["n_layers"],
        "num_attention_heads": model["n_heads"],
        "num_key_value_heads": model.get("n_kv_heads") or model["n_heads"],
        "intermediate_size": model.get("d_ff") or None,
    }
    if type(longest := meta.get("max_positions")) is int:
        found["max_position_embeddings"] = longest
    ends = says.get("ends") or ([] if says.get("end") is None else [says["end"]])
    if says.get("kind", "byte") == "byte" and model["vocab_size"] >= 257:
        ends = [256]
    if ends:
        found |= {"eos_token_id": ends[0] if len(ends) == 1 else ends, "pad_token_id": ends[0]}
    if says.get("start") is not None:
        found["bos_token_id"] = says["start"]
    return found


def bundle_at(name: Any) -> Path | None:
    """The path of a bundle, where `name` is one."""
    if not isinstance(name, str | Path):
        return None
    path = Path(name)
    return path if path.is_dir() and targets.is_bundle(path) else None


def read_bundles_as_configurations() -> None:
    """Let transformers' one reader of configurations understand the config.json of a bundle, and nothing else anew."""
    plain = PreTrainedConfig.get_config_dict.__func__  # type: ignore[attr-defined]
    if getattr(plain, "reads_bundles", False):
        return

    def get_config_dict(cls: type, name: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        path = bundle_at(name)
        if path is None:
            return plain(cls, name, **kwargs)
        known = {"cache_dir", "force_download", "proxies", "token", "local_files_only", "revision", "subfolder",
                 "trust_remote_code", "_from_pipeline", "_from_auto", "_configuration_file", "gguf_file"}  # fmt: skip
        return of_table(*bundles.verify(path)), {k: v for k, v in kwargs.items() if k not in known}

    get_config_dict.reads_bundles = True  # type: ignore[attr-defined]
    PreTrainedConfig.get_config_dict = classmethod(get_config_dict)  # type: ignore[assignment,method-assign]


def plain_json(config: FastSNNConfig) -> str:
    """config.json of a directory."""
    table = json.loads(config.to_json_string(use_diff=True))
    return json.dumps(table | {"model_type": TYPE, "architectures": ["FastSNNForCausalLM"]}, indent=2) + "\n"
