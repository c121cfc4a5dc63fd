"""Tokenizers of other libraries (transformers, tokenizers) as FastSNN's own; anything else must have their methods."""

from __future__ import annotations

from typing import Any

from fastsnn_core.errors import ArgumentError
from fastsnn_text.tokenizers import HuggingFaceTokenizer, Tokenizer

NEEDED = ("encode", "decode", "describe", "vocab_size", "end", "start")


def adapted(source: Any) -> Tokenizer:
    """`source` if it is a `Tokenizer`; what it stands for if it is one of transformers or tokenizers; else an error."""
    if all(hasattr(source, name) for name in NEEDED):
        return source
    native = getattr(source, "backend_tokenizer", None)
    if native is not None:
        return of_transformers(source, native)
    if hasattr(source, "to_str") and hasattr(source, "token_to_id"):
        return HuggingFaceTokenizer(source.to_str())
    if hasattr(source, "convert_ids_to_tokens"):
        raise ArgumentError(
            f"{type(source).__name__} has no tokenizer.json (a 'slow' tokenizer); give AutoTokenizer's fast one, "
            "or the path of its SentencePiece .model file"
        )
    lacks = ", ".join(name for name in NEEDED if not hasattr(source, name))
    name = "None" if source is None else type(source).__name__
    raise ArgumentError(
        f"{name} is no tokenizer: it lacks {lacks}; give 'byte', a path, a tokenizer of transformers or tokenizers, "
        "or an object with these"
    )


def of_transformers(source: Any, native: Any) -> Tokenizer:
    """A fast tokenizer of transformers: its tokenizer.json, special tokens and chat template."""
    special = {name: str(token) for name, token in source.special_tokens_map.items() if isinstance(token, str)}
    return HuggingFaceTokenizer(
        native.to_str(),
        end=source.eos_token_id,
        special=special or None,
        chat_template=getattr(source, "chat_template", None),
    )
