"""The tokenizer that a GGUF file's metadata describes, as one of the `tokenizers` library.

Normal tokens, merges and scores make the model; control tokens are special, user-defined ones are found whole.
What splits a text first is llama.cpp's pattern of the name in ``tokenizer.ggml.pre``.
"""

from __future__ import annotations

import logging
from typing import Any

from tokenizers import AddedToken, pre_tokenizers
from tokenizers import Tokenizer as Native
from tokenizers.models import BPE

from fastsnn_gguf.container import Container
from fastsnn_text import HuggingFaceTokenizer, TokenizerError, hf_directory
from fastsnn_text import tokenizer_recipes as recipes
from fastsnn_text.text_stream import byte_letters

LOG = logging.getLogger("fastsnn.gguf")
CONTROL, USER_DEFINED = 3, 4
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2, DIGITS = "gpt-2", "digits, then gpt-2"
SPLITS = {
    **dict.fromkeys(("gpt-2", "mpt", "olmo", "phi-2", "roberta-bpe", "gigachat", "jina-v2-code", "trillion"), GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), DIGITS),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "dbrx", "smaug-bpe", "lfm2"), LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "kormo"), recipes.QWEN2_SPLIT),
    **dict.fromkeys(("gpt-4o", "llama4"), GPT4O),
    "tekken": TEKKEN,
}
WORDS_FIRST = ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral")  # a word of the vocabulary needs no merges
ENDS = (  # control tokens that end a text or a turn, whatever the metadata says: llama.cpp's list
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>",
    "< EOT >", "_<EOT>", "<EOT>", "<|end_of_text|>", "<end_of_utterance>", "<eos>",
)  # fmt: skip
NAMED = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def tokenizer_from_metadata(container: Container, rows: int) -> HuggingFaceTokenizer:
    """The tokenizer of a file whose embedding has so many rows."""
    get, path = container.get, container.path
    kind, tokens = get("tokenizer.ggml.model"), get("tokenizer.ggml.tokens")
    if kind is None or not tokens:
        raise TokenizerError(
            f"{path} has no tokenizer in its metadata (tokenizer.ggml.model and tokenizer.ggml.tokens)"
        )
    if len(tokens) > rows:
        raise TokenizerError(f"{path}: {len(tokens)} tokens in its metadata, but token_embd.weight has {rows} rows")
    if len(set(tokens)) != len(tokens):
        twice = next(name for i, name in enumerate(tokens) if tokens.index(name) != i)
        raise TokenizerError(f"{path}: two tokens of its metadata are {twice!r}")
    types = get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if kind == "gpt2":
        native = byte_level(container, tokens)
    elif kind == "llama":
        native = sentencepiece_merges(container, tokens)
    else:
        raise TokenizerError(
            f"{path}: its tokenizer is a {kind!r}; supported: gpt2 (byte-level BPE), llama (SentencePiece)"
        )
    letters = set(byte_letters())
    for i, (name, type_) in enumerate(zip(tokens, types)):
        whole = kind == "llama" or set(name) <= letters
        if type_ in (CONTROL, USER_DEFINED) and whole and native.token_to_id(name) == i:
            native.add_tokens([AddedToken(name, normalized=False, special=type_ == CONTROL)])
    special = {
        theirs: tokens[i]
        for ours, theirs in NAMED.items()
        if (i := get(f"tokenizer.ggml.{ours}_token_id")) is not None and 0 <= i < len(tokens)
    }
    starts = kind == "llama" or get("tokenizer.ggml.pre") in WORDS_FIRST
    flags = {
        "add_bos_token": get("tokenizer.ggml.add_bos_token", starts),
        "add_eos_token": get("tokenizer.ggml.add_eos_token", False),
    }
    hf_directory.frame(native, flags, special)
    ids = [get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    named = [
        i for i, (name, type_) in enumerate(zip(tokens, types)) if name in ENDS and type_ in (CONTROL, USER_DEFINED)
    ]
    ends = dict.fromkeys(i for i in [*ids, *named] if i is not None and 0 <= i < len(tokens))
    return HuggingFaceTokenizer(native.to_str(), ends=tuple(ends), special=special, chat_template=templates(container))


def byte_level(container: Container, tokens: list[str]) -> Native:
    """Byte-level BPE."""
    letters = {byte: letter for letter, byte in byte_letters().items()}
    known = set(letters.values())
    names = [name if set(name) <= known else "".join(letters[byte] for byte in name.encode()) for name in tokens]
    vocab = {name: i for i, name in enumerate(names)}
    merges = container.get("tokenizer.ggml.merges")
    if merges is None:
        raise TokenizerError(f"{container.path} has no tokenizer.ggml.merges, which its byte-level tokenizer needs")
    pre = container.get("tokenizer.ggml.pre")
    if pre in (None, "default", ""):
        LOG.warning(
            "%s does not say how its tokenizer splits text (tokenizer.ggml.pre); GPT-2's way is taken", container.path
        )
        pre = GPT2
    if pre not in SPLITS:
        known_ = ", ".join(sorted(SPLITS))
        raise TokenizerError(f"{container.path}: its tokenizer splits text like {pre!r}; supported: {known_}")
    try:
        pairs = [hf_directory.merge_text(merge) for merge in merges]
        native = recipes.gpt2(vocab, pairs)
        if pre in WORDS_FIRST:
            decoder = native.decoder
            native = Native(BPE(vocab=vocab, merges=pairs, ignore_merges=True))
            native.decoder = decoder
    except Exception as error:  # the native library raises a bare Exception
        raise TokenizerError(
            f"{container.path}: tokens and merges of its metadata make no tokenizer: {error}"
        ) from None
    if SPLITS[pre] == GPT2:
        native.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return native
    if SPLITS[pre] == DIGITS:
        native.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False),
        ])  # fmt: skip
        return native
    return recipes.split_bytes(native, SPLITS[pre])


def sentencepiece_merges(container: Container, tokens: list[str]) -> Native:
    """SentencePiece: merges follow from the scores."""
    vocab, merges = {name: i for i, name in enumerate(tokens)}, container.get("tokenizer.ggml.merges")
    scores = container.get("tokenizer.ggml.scores")
    if merges is None and (scores is None or len(scores) != len(tokens)):
        raise TokenizerError(f"{container.path} needs as many tokenizer.ggml.scores as tokens, {len(tokens)}")
    if merges is not None:
        pairs = [hf_directory.merge_text(merge) for merge in merges]
    else:
        pairs = recipes.merges_of(vocab, dict(zip(tokens, scores)))
    return recipes.llama(vocab, pairs, bool(container.get("tokenizer.ggml.add_space_prefix", True)))


def templates(container: Container) -> str | dict[str, str] | None:
    """The chat template, or several by name."""
    one = container.get("tokenizer.chat_template")
    more: dict[str, Any] = {
        name: container.get(f"tokenizer.chat_template.{name}")
        for name in container.get("tokenizer.chat_templates") or []
    }
    more = {name: text for name, text in more.items() if text}
    if not more:
        return one or None
    return ({"default": one} if one else {}) | more
