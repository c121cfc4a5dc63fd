"""Which family a dense decoder is, its config.json, its tensors' names; the inverse of `fastsnn_convert`'s reader."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastsnn_convert.language.families import EMBED, HEAD, source_of
from fastsnn_model_decoder import Decoder, Rope

ACTS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu", "relu2": "relu2"}
CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
           "qwen3": "Qwen3ForCausalLM"}  # fmt: skip
SEEN_BY_NOBODY = ("k",)  # a constant on all keys is what a softmax does not see
FOLDED = ("attn_in", "attn_out", "ffn_in", "ffn_hidden", "v")


def llama_obstacles(model: Any) -> list[str]:
    """Everything about a model that Llama, Mistral, Qwen2 and Qwen3 do not have."""
    spec = getattr(model, "spec", None)
    if not isinstance(spec, Decoder):
        return [f"{getattr(spec, 'name', type(model).__name__)} is no decoder; a language model is one"]
    found = []
    odd = sorted({a.name for a in spec.attention} - {"softmax", "sliding_window"})
    if odd:
        found.append(f"attention {', '.join(odd)} has no place in a Llama; softmax and sliding_window have")
    if spec.quant is not None:
        found.append(f"its weights have {spec.quant.bits} bits; export the float bundle that they were made of")
    if spec.feedforward.name != "pulse" or not getattr(spec.feedforward, "gated", False):
        found.append(f"feedforward {spec.feedforward.name} without a gate is no SwiGLU")
    elif getattr(spec.feedforward, "gate_threshold", 0.0):
        found.append("gates with a threshold are shut in ways that a Llama cannot say")
    elif spec.feedforward.activation not in ACTS:  # type: ignore[attr-defined]
        found.append(f"activation {spec.feedforward.activation!r}")  # type: ignore[attr-defined]
    if spec.out_norm or getattr(spec.feedforward, "hidden_norm", False):
        found.append("norms in front of the output projections, which BitNet has")
    if spec.weights != "float":
        found.append(f"{spec.weights} weights, which are rounded whenever it runs")
    if spec.norm != "rms":
        found.append(f"norm {spec.norm!r}; RMSNorm is possible")
    if spec.rope.share < 1.0:
        found.append("rotary positions of a part of a head's channels")
    if spec.learned_positions:
        found.append("learned positions, where a Llama rotates")
    if spec.head_bias:
        found.append("a bias of the logits")
    if loose := sorted(set(spec.centred) - set(FOLDED) - set(SEEN_BY_NOBODY)):
        found.append(f"centred sites {', '.join(loose)}, which no bias makes up for")
    windows = {a.window for a in layers(spec) if a.name == "sliding_window"}
    if len(windows) > 1:
        found.append(f"windows of different lengths: {', '.join(map(str, sorted(windows)))}")
    if found:
        return found
    from fastsnn_exporter_llama.fold import dense

    return unfit_biases(dense(model)[1])


def layers(spec: Decoder) -> list[Any]:
    """The attention of every layer."""
    return [spec.attention[i % len(spec.attention)] for i in range(spec.n_layers)]


def family(spec: Decoder) -> str:
    """The model_type whose layers these are."""
    if spec.qk_norm:
        return "qwen3"
    near = sum(a.name == "sliding_window" for a in layers(spec))
    if not near:
        return "llama"
    plain = not (spec.qkv_bias or spec.out_bias or spec.feedforward.bias)  # type: ignore[attr-defined]
    return "mistral" if near == spec.n_layers and plain else "qwen2"


def unfit_biases(spec: Decoder) -> list[str]:
    """Biases that the family has no place for."""
    kind, found = family(spec), []
    if kind != "llama" and spec.feedforward.bias:  # type: ignore[attr-defined]
        found.append(f"biases in the feed-forward, which a {kind} does not have (its sites were centred and trained)")
    if kind in ("mistral", "qwen2") and spec.out_bias:
        found.append(f"a bias of the attention's output, which a {kind} does not have")
    return found


def config_of(spec: Decoder, dense: Any, meta: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The config.json."""
    kind, near = family(spec), [a for a in layers(spec) if a.name == "sliding_window"]
    longest = meta.get("max_positions")
    table: dict[str, Any] = {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        "dtype": dtype,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.d_model,
        "intermediate_size": dense.layers[0].feedforward.up.out_features,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.dims.n_heads,
        "num_key_value_heads": spec.dims.n_kv_heads,
        "head_dim": spec.dims.head_dim,
        "hidden_act": ACTS[spec.feedforward.activation],  # type: ignore[attr-defined]
        "rms_norm_eps": spec.norm_eps,
        "tie_word_embeddings": spec.tied,
        "max_position_embeddings": longest if type(longest) is int else max(2048, spec.rope.original),
        "attention_dropout": 0.0,
        "use_cache": True,
        **rope_config(spec.rope),
    }
    if kind in ("llama", "qwen3"):
        table["attention_bias"] = spec.qkv_bias or spec.out_bias
    if kind == "llama":
        table["mlp_bias"] = bool(spec.feedforward.bias)  # type: ignore[attr-defined]
    if kind != "llama":
        table["sliding_window"] = near[0].window if near else None
    if kind in ("qwen2", "qwen3"):
        table["use_sliding_window"] = bool(near)
        where = {"softmax": "full_attention", "sliding_window": "sliding_attention"}
        table["layer_types"] = [where[a.name] for a in layers(spec)]
    return table


def rope_config(r: Rope) -> dict[str, Any]:
    """Rotary positions, in the new form (``rope_parameters``) and the old (``rope_theta``, ``rope_scaling``)."""
    kind = {"none": "default"}.get(r.scaling, r.scaling)
    table: dict[str, Any] = {"rope_type": kind, "rope_theta": r.theta}
    if kind != "default":
        table["factor"] = r.factor
    if kind in ("llama3", "yarn"):
        table["original_max_position_embeddings"] = r.original
    if kind == "llama3":
        table |= {"low_freq_factor": r.low, "high_freq_factor": r.high}
    if kind == "yarn":
        table |= {"beta_slow": r.low, "beta_fast": r.high, "truncate": r.truncate, "attention_factor": r.gain}
    found: dict[str, Any] = {"rope_parameters": table, "rope_theta": r.theta}
    if kind == "dynamic":
        found["max_position_embeddings"] = r.original
    if kind != "default":
        found["rope_scaling"] = {k: v for k, v in table.items() if k != "rope_theta"}
    return found


def hf_tensors(dense: Any, table: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors by transformers' names; biases that the family has and the model lacks are zero."""
    found = {source_of(n): t.detach().to(dtype).contiguous() for n, t in dense.named_parameters()}
    both = table.get("attention_bias", False)
    wanted = {"q": both or table["model_type"] == "qwen2", "k": both or table["model_type"] == "qwen2",
              "v": both or table["model_type"] == "qwen2", "o": both}  # fmt: skip
    for i in range(table["num_hidden_layers"]):
        for name, needs in wanted.items():
            stem = f"model.layers.{i}.self_attn.{name}_proj."
            if needs and stem + "bias" not in found:
                found[stem + "bias"] = torch.zeros(len(found[stem + "weight"]), dtype=dtype)
    if table["tie_word_embeddings"]:
        found.pop(HEAD, None)
    assert EMBED in found
    return found


def write_tokenizer(model: Any, folder: Path) -> dict[str, Any]:
    """tokenizer.json and tokenizer_config.json, and the ids of ends for config.json."""
    from fastsnn_text import TokenizerError, ends_of, tokenizer_of

    try:
        tokenizer: Any = tokenizer_of(model)
    except TokenizerError:
        return {}
    ends = ends_of(tokenizer)
    says: dict[str, Any] = {"bos_token_id": tokenizer.start}
    if ends:
        says["eos_token_id"] = ends[0] if len(ends) == 1 else list(ends)
    text = getattr(tokenizer, "text", None)
    if text is None or not hasattr(tokenizer, "special_tokens"):
        return says
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    table = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    table |= {k: v for k, v in tokenizer.special_tokens().items() if k.endswith("_token") and v}
    if tokenizer.chat_template:
        rows = tokenizer.chat_template
        table["chat_template"] = (
            rows if isinstance(rows, str) else [{"name": n, "template": t} for n, t in rows.items()]
        )
    (folder / "tokenizer_config.json").write_text(
        json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return says


def card(model: Any, table: dict[str, Any]) -> str:
    """README.md."""
    stones = [s for s in getattr(model, "meta", {}).get("milestones", []) if isinstance(s, dict)]
    trained = [str(s.get("what")) for s in stones if s.get("what") not in ("convert",)]
    size = sum(math.prod(t.shape) for t in model.parameters())
    says = (
        f"It went through {', '.join(trained)} after its conversion, so it is not the network that it was made of."
        if trained
        else "Apart from rounding it computes what the network computed that it was converted from."
    )
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n"
        f"# The dense form of a spiking {table['model_type']}\n\n"
        "Written by `fastsnn export --to llama`: the weights of a "
        f"FastSNN model of {size:,} parameters without its spikes. {says}\n"
    )
