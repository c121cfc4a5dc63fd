"""What a Hugging Face config.json means: the `Decoder` without spikes that it describes, family by family.

The families share one network: RMSNorm, rotary positions, grouped-query softmax attention, SwiGLU. They differ in
biases (Qwen2), norms on query and key heads (Qwen3), and sliding windows (Mistral, late layers of Qwen2 and Qwen3).
Arcee and Nemotron have no gate but ReLU², whose zeros are exact; BitNet has a gate with it, and two norms more. OPT has
ReLU without a gate, LayerNorms, biases everywhere, and learned positions.
Defaults of keys that a config.json leaves out are those of transformers' configuration classes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import attrs

from fastsnn_convert.language.hf_checkpoint import Checkpoint, SourceError
from fastsnn_core import Attention, Feedforward, create
from fastsnn_model_decoder import Decoder, Rope

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "relu_squared": "relu2",
    "squared_relu": "relu2",
}


ROPES = {"default": "none", "linear": "linear", "dynamic": "dynamic", "llama3": "llama3", "yarn": "yarn"}


@attrs.frozen
class Family:
    """What a model_type fixes; everything else is in its config.json."""

    qkv_bias: bool | None = None  # None: the key attention_bias says, for q, k, v and the output alike
    qk_norm: bool = False
    mlp_bias: bool = False  # whether the key mlp_bias counts
    windows: str = "none"  # none | every | late: which layers `sliding_window` is for
    kv_heads: int | None = None
    head_dim: int | None = None
    window: int | None = None
    gated: bool = True
    act: str = "silu"  # where hidden_act is left out
    norm: str = "rms"
    norm_eps: str = "rms_norm_eps"  # the key
    norm_offset: float = 0.0  # what a norm's stored weight is less than its gain
    rotated: float = 1.0  # share of a head's channels that rotate, where partial_rotary_factor is left out
    sub_norms: bool = False  # in front of the projections that write into the residual stream
    theta: float = 10000.0  # where rope_theta is left out
    eps: float = 1e-6  # of norms, where left out
    hidden: str = "intermediate_size"  # the key
    act_key: str = "hidden_act"
    biases: str = ""  # the key that says whether every projection has one; "" where there is no such key
    learned: bool = False  # positions, in place of rotary ones
    tied: bool = False  # where tie_word_embeddings is left out
    must: tuple[tuple[str, Any], ...] = ()  # keys that have to be so, where they are there


OPT_SHAPE = (
    ("do_layer_norm_before", True),
    ("_remove_final_layer_norm", False),
    ("layer_norm_elementwise_affine", True),
)


FAMILIES = {
    "llama": Family(mlp_bias=True),
    "mistral": Family(qkv_bias=False, windows="every", kv_heads=8, window=4096),
    "qwen2": Family(qkv_bias=True, windows="late", kv_heads=32, window=4096),
    "arcee": Family(mlp_bias=True, gated=False, act="relu2"),
    "nemotron": Family(
        mlp_bias=True,
        gated=False,
        act="relu2",
        norm="layer",
        norm_eps="norm_eps",
        norm_offset=1.0,
        rotated=0.5,
        eps=1e-5,
    ),
    "bitnet": Family(act="relu2", kv_heads=5, sub_norms=True, theta=500000.0, eps=1e-5),
    "opt": Family(
        gated=False,
        act="relu",
        act_key="activation_function",
        hidden="ffn_dim",
        norm="layer",
        norm_eps="layer_norm_eps",
        eps=1e-5,
        biases="enable_bias",
        learned=True,
        tied=True,
        must=OPT_SHAPE,
    ),
    "qwen3": Family(qk_norm=True, windows="late", kv_heads=32, head_dim=128, window=4096),
}


class HfConfig:
    """config.json with errors that name it."""

    def __init__(self, path: Path, table: dict[str, Any]) -> None:
        self.path, self.table = path, table

    def whole(self, key: str, default: Any = ...) -> int:
        """A positive whole number."""
        value = self.table.get(key, default)
        if value is ...:
            raise SourceError(f"{self.path} has no {key!r}, which a {self.table.get('model_type')} model needs")
        if type(value) is not int or value < 1:
            raise SourceError(f"{self.path}: {key!r} must be a positive whole number, not {value!r}")
        return value

    def number(self, table: dict[str, Any], key: str, default: Any = ...) -> float:
        """A number of the config or of one of its tables."""
        value = table.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            what = "has no" if value is ... else "has no number for"
            raise SourceError(f"{self.path} {what} {key!r}")
        return float(value)

    def refuse(self, what: str, possible: str) -> SourceError:
        """An error about something this importer does not know."""
        return SourceError(f"{self.path}: {what}; supported: {possible}")


def spec_of_config(checkpoint: Checkpoint) -> Decoder:
    """The dense `Decoder` that a directory's config.json describes."""
    s = HfConfig(checkpoint.described_in, checkpoint.config)
    c, kind = s.table, s.table.get("model_type")
    if kind not in FAMILIES:
        named = f"architecture {kind!r}" if kind else "it does not say its model_type"
        raise s.refuse(f"unknown {named}" if kind else named, ", ".join(FAMILIES))
    for name in c.get("architectures") or []:
        if not str(name).endswith("ForCausalLM"):
            raise s.refuse(f"{name} is no causal language model", f"{kind.capitalize()}ForCausalLM")
    if (quant := c.get("quantization_config")) and not getattr(checkpoint, "unpacks", False):
        method = quant.get("quant_method") if isinstance(quant, dict) else quant
        raise s.refuse(
            f"its weights are quantised ({method})",
            "float32, bfloat16 and float16 weights, 4 bits as GPTQ, AWQ and compressed-tensors store them, BitNet",
        )
    family, heads, width = FAMILIES[kind], s.whole("num_attention_heads"), s.whole("hidden_size")
    head_dim = s.whole("head_dim", family.head_dim or 0) if c.get("head_dim", family.head_dim) else width // heads
    kv_heads = s.whole("num_key_value_heads", family.kv_heads) if present(c, "num_key_value_heads", family) else heads
    act = c.get(family.act_key, family.act)
    if act not in ACTIVATIONS:
        raise s.refuse(f"{family.act_key} {act!r}", ", ".join(ACTIVATIONS))
    for key, value in (*family.must, *((("word_embed_proj_dim", width),) if family.learned else ())):
        if c.get(key, value) not in (value, None):
            raise s.refuse(f"{key} = {c[key]!r}", repr(value))
    every = bool(family.biases) and bool(c.get(family.biases, True))
    both = bool(c.get("attention_bias", False)) or every
    layers, eps = s.whole("num_hidden_layers"), s.number(c, family.norm_eps, family.eps)
    try:
        return Decoder(
            vocab_size=s.whole("vocab_size"),
            d_model=width,
            n_layers=layers,
            n_heads=heads,
            n_kv_heads=kv_heads,
            head_dim=head_dim,
            d_ff=s.whole(family.hidden),
            sites=(),
            attention=attentions(s, family, layers),
            feedforward=create(
                Feedforward,
                "pulse",
                activation=ACTIVATIONS[act],
                gated=family.gated,
                bias=(bool(c.get("mlp_bias", False)) and family.mlp_bias) or every,
                hidden_norm=eps if family.sub_norms else 0.0,
            ),
            tied=bool(c.get("tie_word_embeddings", family.tied)),
            rope=Rope() if family.learned else rope_of_config(s, c, family),
            learned_positions=s.whole("max_position_embeddings") if family.learned else 0,
            norm=family.norm,
            norm_eps=eps,
            qkv_bias=both if family.qkv_bias is None else family.qkv_bias,
            out_bias=both if family.qkv_bias is None else False,
            qk_norm=family.qk_norm,
            out_norm=family.sub_norms,
            weights="ternary" if getattr(checkpoint, "rounds", False) else "float",
        )
    except SourceError:
        raise
    except ValueError as error:
        raise SourceError(f"{s.path}: {error}") from None


def present(config: dict[str, Any], key: str, family: Family) -> bool:
    """Is a number of key/value heads given, by the config or by the family's default?"""
    return config.get(key) is not None or (key not in config and family.kv_heads is not None)


def attentions(s: HfConfig, family: Family, layers: int) -> tuple[Attention, ...]:
    """One attention for all layers where they are alike, else one per layer."""
    c = s.table
    window = c.get("sliding_window", family.window)
    full = create(Attention, "softmax")
    if family.windows == "none" or window is None:
        return (full,)
    near = create(Attention, "sliding_window", window=s.whole("sliding_window", family.window))
    if family.windows == "every":
        return (near,)
    if not c.get("use_sliding_window", False):
        return (full,)
    kinds = c.get("layer_types")
    if kinds is None:
        first = c.get("max_window_layers", 28)
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    table = {"full_attention": full, "sliding_attention": near}
    if len(kinds) != layers or any(kind not in table for kind in kinds):
        raise s.refuse(f"layer_types {kinds}", f"{layers} of " + ", ".join(table))
    return (table[kinds[0]],) if len(set(kinds)) == 1 else tuple(table[kind] for kind in kinds)


def rope_of_config(s: HfConfig, c: dict[str, Any], family: Family) -> Rope:
    """Rotary positions from ``rope_parameters`` (new form) or ``rope_theta`` and ``rope_scaling`` (old form)."""
    table = c.get("rope_parameters") or c.get("rope_scaling") or {}
    if not isinstance(table, dict) or any(isinstance(v, dict) for v in table.values()):
        raise s.refuse("rotary positions differ between layers", "one table of rope_parameters")
    kind = table.get("rope_type", table.get("type", "default"))
    if kind not in ROPES:
        raise s.refuse(f"rope scaling {kind!r}", ", ".join(ROPES))
    share = table.get("partial_rotary_factor", c.get("partial_rotary_factor", family.rotated))
    if share not in (None, 1, 1.0) and family.rotated == 1.0:
        raise s.refuse(f"partial_rotary_factor {share}", "1.0")
    theta = s.number(table, "rope_theta", s.number(c, "rope_theta", family.theta))
    if family.rotated != 1.0:
        if kind != "default":
            raise s.refuse(f"rope scaling {kind!r} of a part of the channels", "default")
        return Rope(
            theta=s.number(table, "rope_theta", s.number(c, "rope_theta", family.theta)), share=float(share or 1.0)
        )
    theta = s.number(table, "rope_theta", s.number(c, "rope_theta", family.theta))
    if kind == "default":
        return Rope(theta=theta)
    length = c.get("max_position_embeddings")
    original: Any = c.get("original_max_position_embeddings") or table.get("original_max_position_embeddings") or length
    original = length if kind == "dynamic" else original
    if kind != "linear" and (type(original) is not int or original < 1):
        raise SourceError(f"{s.path}: rope scaling {kind!r} needs 'max_position_embeddings', got {original!r}")
    if kind == "yarn" and table.get("factor") is None and type(length) is int:
        factor = length / original
    else:
        factor = s.number(table, "factor")
    more: dict[str, Any] = {}
    if kind == "llama3":
        more = {"low": s.number(table, "low_freq_factor"), "high": s.number(table, "high_freq_factor")}
    elif kind == "yarn":
        more = {
            "low": s.number(table, "beta_slow", 1.0),
            "high": s.number(table, "beta_fast", 32.0),
            "magnitude": magnitude(s, table, factor),
            "truncate": bool(table.get("truncate", True)),
        }
    return Rope(theta=theta, scaling=ROPES[kind], factor=factor, original=0 if kind == "linear" else original, **more)


def magnitude(s: HfConfig, table: dict[str, Any], factor: float) -> float:
    """yarn's factor on cos and sin: given, or from ``mscale``, or 0 for the rule ``0.1 ln(factor) + 1``."""
    if table.get("attention_factor") is not None:
        return s.number(table, "attention_factor")
    scale, every = table.get("mscale"), table.get("mscale_all_dim")
    if not scale or not every or factor <= 1:
        return 0.0
    return (0.1 * scale * math.log(factor) + 1.0) / (0.1 * every * math.log(factor) + 1.0)
