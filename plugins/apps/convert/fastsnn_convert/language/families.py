"""Llama, Mistral, Qwen and more as a `Decoder` without spikes: where each weight of a checkpoint goes.

Nemotron has LayerNorms stored as what they are more than 1, and rotates half of a head's channels: its q and k rows are
put in an order in which those are the first pairs. OPT has names of its own, and two rows of positions that nobody
reads in front. What a config.json means is in `hf_config`.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from fastsnn_convert.language.hf_checkpoint import Checkpoint, SourceError, in_our_terms, read_config
from fastsnn_convert.language.hf_config import FAMILIES, spec_of_config
from fastsnn_convert.language.int4_checkpoint import METHODS, Int4Checkpoint
from fastsnn_convert.language.rebuild import with_memory, without_weights
from fastsnn_convert.language.ternary_checkpoint import TernaryCheckpoint
from fastsnn_core.errors import MissingError
from fastsnn_model_decoder import Decoder

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SOURCES = "fastsnn1.sources"
KNOWN = {".gguf": "fastsnn-gguf"}
NORMS = {"attention_norm": "input_layernorm", "feedforward_norm": "post_attention_layernorm"}
BLOCK = {
    **{f"{ours}.{leaf}": f"{theirs}.{leaf}" for ours, theirs in NORMS.items() for leaf in ("weight", "bias")},
    "attention.q_norm.weight": "self_attn.q_norm.weight",
    "attention.k_norm.weight": "self_attn.k_norm.weight",
    "attention.out_norm.weight": "self_attn.attn_sub_norm.weight",
    "feedforward.hidden_norm.weight": "mlp.ffn_sub_norm.weight",
}
LINEARS = {
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "feedforward.gate": "mlp.gate_proj",
    "feedforward.up": "mlp.up_proj",
    "feedforward.down": "mlp.down_proj",
}


OPT = {
    "embed.weight": "embed_tokens.weight",
    "positions": "embed_positions.weight",
    "norm": "final_layer_norm",
    "attention_norm": "self_attn_layer_norm",
    "feedforward_norm": "final_layer_norm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.out_proj",
    "feedforward.up": "fc1",
    "feedforward.down": "fc2",
}
UNREAD = 2  # rows in front of OPT's positions: those of padding


def source_of_opt(name: str) -> str:
    """`source_of` in an OPT checkpoint."""
    if name == "head.weight":
        return HEAD
    if name in OPT:
        return f"model.decoder.{OPT[name]}"
    before, _, rest = name.partition(".")
    number, _, rest = rest.partition(".") if before == "layers" else ("", "", name)
    module, _, leaf = rest.rpartition(".")
    return f"model.decoder.{f'layers.{number}.' if number else ''}{OPT[module]}.{leaf}"


def source_of(name: str, kind: str = "llama") -> str:
    """The checkpoint's name of a parameter of the decoder, in a family's words."""
    if kind == "opt":
        return source_of_opt(name)
    if name == "embed.weight":
        return EMBED
    if name in ("norm.weight", "norm.bias"):
        return f"model.{name}"
    if name == "head.weight":
        return HEAD
    _, number, rest = name.split(".", 2)
    if rest not in BLOCK:
        module, _, leaf = rest.rpartition(".")
        return f"model.layers.{number}.{LINEARS[module]}.{leaf}"
    return f"model.layers.{number}.{BLOCK[rest]}"


def harmless(name: str, spec: Decoder) -> bool:
    """Tensors that older files carry and nobody reads: rotary frequencies, and a tied model's copy of its embedding."""
    return name.endswith("rotary_emb.inv_freq") or (spec.tied and name == HEAD)


def wrapper_of(names: list[str], wanted: set[str]) -> str:
    """What stands in front of every name (``module.``, ``_orig_mod.``) whose rest is a name that is wanted, or ''."""
    ends = ((name, w) for name in names for w in wanted if name.endswith("." + w))
    name, rest = next(ends, ("", ""))
    prefix = name.removesuffix(rest)
    return prefix if prefix and all(n.startswith(prefix) for n in names) else ""


def own_head(checkpoint: Any, spec: Decoder) -> bool:
    """Does the source hold a head that is not its embedding, whatever its configuration says?"""
    table = source_of("embed.weight", checkpoint.config["model_type"])
    if HEAD not in checkpoint.entries or table not in checkpoint.entries:
        return False
    shape = (spec.vocab_size, spec.d_model)
    if checkpoint.entries[HEAD].shape != shape or checkpoint.entries[table].shape != shape:
        return True
    head, embed = torch.empty(shape), torch.empty(shape)
    checkpoint.read(HEAD, head)
    checkpoint.read(table, embed)
    return not torch.equal(head, embed)


def import_dense(source: str | Path, dtype: torch.dtype | None = torch.float32) -> nn.Module:
    """The dense decoder of a Hugging Face directory (or another source with a reader, such as a GGUF file).

    In evaluation mode; `dtype` None keeps the stored type. Every shape is checked before the first number is read;
    weights are copied tensor by tensor out of mapped files, so that memory peaks at the model plus one tensor. A head
    in the file counts, even where the configuration says that it is the embedding. The tokenizer comes along where
    there is one.
    """
    checkpoint: Any = open_source(source)
    spec = spec_of_config(checkpoint)
    if spec.tied and own_head(checkpoint, spec):
        spec = attrs.evolve(spec, tied=False)
    model = without_weights(spec)
    kind = checkpoint.config["model_type"]
    family = FAMILIES[kind]
    wanted: dict[str, Tensor] = dict(model.named_parameters())
    stored = {name: source_of(name, kind) for name in wanted}
    if spec.tied and stored["embed.weight"] not in checkpoint.entries and HEAD in checkpoint.entries:
        stored["embed.weight"] = HEAD  # of tensors that are one, a file may keep either name
    unknown = sorted(set(checkpoint.entries) - set(stored.values()))
    if strange := [name for name in unknown if not harmless(name, spec)]:
        if prefix := wrapper_of(strange, set(stored.values())):
            raise SourceError(
                f"{checkpoint.entries[strange[0]].file} was saved from a wrapper: its names begin with {prefix!r} "
                f"({strange[0]}); save the model inside it"
            )
        raise SourceError(
            f"{checkpoint.entries[strange[0]].file} holds {strange[0]}, which a {kind} model does not have"
            + (f" (and {len(strange) - 1} more)" if len(strange) > 1 else "")
        )
    for name, parameter in wanted.items():
        rows, *rest = parameter.shape
        checkpoint.check(stored[name], (rows + UNREAD * (name == "positions"), *rest))
    tokenizer = checkpoint.tokenizer()  # before the weights: what is wrong with it is known at once
    model = with_memory(model, dtype or checkpoint.dtype())
    for name, parameter in model.named_parameters():
        if name == "positions":
            whole = parameter.data.new_empty(len(parameter) + UNREAD, parameter.shape[1])
            checkpoint.read(stored[name], whole)
            parameter.data.copy_(whole[UNREAD:])
        else:
            checkpoint.read(stored[name], parameter.data)
        in_our_terms(name, parameter.data, spec, family.norm_offset)
        if not parameter.numel() or torch.stack(parameter.data.aminmax()).isfinite().all():  # without a copy of it
            continue
        if bad := parameter.numel() - int(torch.isfinite(parameter.data).sum()):
            where = f"{stored[name]} in {checkpoint.entries[stored[name]].file}"
            raise SourceError(
                f"{where} holds {bad} of {parameter.numel()} values that are NaN or infinite: the checkpoint is "
                "damaged, or its training diverged"
            )
    adopt_tokenizer(model, tokenizer)
    if type(longest := checkpoint.config.get("max_position_embeddings")) is int and longest > 0:
        model.meta = dict(getattr(model, "meta", {})) | {"max_positions": longest}
    return model.eval()


def open_source(source: str | Path) -> Any:
    """A source's reader: of a directory's weights, of 32 bits to 2; of a file that of the plugin which knows it."""
    path = Path(source)
    if (reader := source_plugin(path)) is not None:
        return reader(path)
    method = (read_config(path).get("quantization_config") or {}).get("quant_method")
    if method == "bitnet":
        return TernaryCheckpoint(path)
    return Int4Checkpoint(path) if method in METHODS else Checkpoint(path)


def source_plugin(path: Path) -> Any:
    """The plugin (entry point group ``fastsnn1.sources``, named after the file's ending) that reads `path`, or None."""
    if path.is_dir():
        return None
    for found in entry_points(group=SOURCES):
        if path.name.lower().endswith(f".{found.name}"):
            return found.load()
    if path.suffix.lower() in KNOWN:
        name = KNOWN[path.suffix.lower()]
        raise MissingError(f"{path} needs {name}: pip install {name}")
    return None


def adopt_tokenizer(model: Any, tokenizer: Any) -> None:
    """Attach the source's tokenizer, or the reason why it has none; end tokens beyond the vocabulary are none."""
    from fastsnn_text import attach, attach_none

    if isinstance(tokenizer, str):
        attach_none(model, tokenizer)
        return
    if hasattr(tokenizer, "ends"):
        tokenizer.ends = tuple(i for i in tokenizer.ends if i < model.spec.vocab_size)
        tokenizer.end = tokenizer.ends[0] if tokenizer.ends else None
    attach(model, tokenizer)
