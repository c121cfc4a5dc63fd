"""How tokenizers are built from vocabularies: the byte-level BPE of GPT-2 and Qwen2, SentencePiece BPE and unigram.

Each recipe gives a tokenizer of the `tokenizers` library; normalisers, splitting patterns and decoders are those of
transformers 5 for the tokenizer class of that name, so that both give the same ids for the same files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Native
from tokenizers.models import BPE, Unigram

from fastsnn_core.errors import FastSNNError, MissingError

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN3_5_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SPACE = "▁"  # what SentencePiece writes for a space
CONTROL, USER_DEFINED = 3, 4  # types of SentencePiece pieces

Merges = Sequence[tuple[str, str]]


class TokenizerError(FastSNNError):
    """A tokenizer that cannot be read: names the file, what is wrong with it, and what is possible."""


def gpt2(vocab: Mapping[str, int], merges: Merges, add_prefix_space: bool = False) -> Native:
    """Byte-level BPE with GPT-2's splitting pattern."""
    native = Native(BPE(vocab=dict(vocab), merges=list(merges), continuing_subword_prefix="", end_of_word_suffix=""))
    native.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    native.decoder = decoders.ByteLevel()
    return native


def split_bytes(native: Native, pattern: str, add_prefix_space: bool = False) -> Native:
    """`native` with another splitting pattern in front of its bytes."""
    native.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False),
    ])  # fmt: skip
    return native


def qwen2(vocab: Mapping[str, int], merges: Merges, add_prefix_space: bool = False) -> Native:
    """Byte-level BPE with Qwen2's splitting pattern (every digit alone) over text in Unicode's form NFC."""
    native = split_bytes(gpt2(vocab, merges), QWEN2_SPLIT, add_prefix_space)
    native.normalizer = normalizers.NFC()
    return native


def qwen3_5(vocab: Mapping[str, int], merges: Merges, add_prefix_space: bool = False) -> Native:
    """Qwen2's, whose words may hold combining marks."""
    native = split_bytes(gpt2(vocab, merges), QWEN3_5_SPLIT, add_prefix_space)
    native.normalizer = normalizers.NFC()
    return native


def cohere(vocab: Mapping[str, int], merges: Merges, add_prefix_space: bool = False) -> Native:
    """GPT-2's byte-level BPE over text in Unicode's form NFC, every digit alone."""
    native = gpt_neox(vocab, merges, add_prefix_space)
    native.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space),
    ])  # fmt: skip
    return native


def gemma(vocab: Mapping[str, int], merges: Merges, unknown: str = "<unk>") -> Native:
    """SentencePiece BPE with bytes for unknown characters, and no space before the text."""
    native = Native(BPE(vocab=dict(vocab), merges=list(merges), fuse_unk=True, unk_token=unknown, byte_fallback=True))
    native.normalizer = normalizers.Replace(" ", SPACE)
    native.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    native.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return native


def gpt_neox(vocab: Mapping[str, int], merges: Merges, add_prefix_space: bool = False) -> Native:
    """GPT-2's byte-level BPE over text in Unicode's form NFC."""
    native = gpt2(vocab, merges, add_prefix_space)
    native.normalizer = normalizers.NFC()
    return native


def llama(vocab: Mapping[str, int], merges: Merges, add_prefix_space: bool = True, legacy: bool = False) -> Native:
    """SentencePiece BPE with bytes for unknown characters; a space before the text (`legacy`: before every part)."""
    native = Native(BPE(vocab=dict(vocab), merges=list(merges), fuse_unk=True, byte_fallback=True))
    scheme = ("always" if legacy else "first") if add_prefix_space else "never"
    native.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False)
    strip = [decoders.Strip(content=" ", left=1)] if add_prefix_space else []
    native.decoder = decoders.Sequence([
        decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip,
    ])  # fmt: skip
    return native


def code_llama(vocab: Mapping[str, int], merges: Merges, add_prefix_space: bool = True) -> Native:
    """Llama's; the first space of a decoded text is dropped whether one was added or not."""
    native = llama(vocab, merges, add_prefix_space)
    native.decoder = llama(vocab, merges).decoder
    return native


def merges_of(vocab: Mapping[str, int], scores: Mapping[str, float] | None = None) -> list[tuple[str, str]]:
    """The merges that a vocabulary implies: best `scores` first, or without scores in the order of the vocabulary."""
    found = []
    for word, score in (scores or vocab).items():
        parts = [(word[:i], word[i:]) for i in range(1, len(word))]
        known = [(left, right) for left, right in parts if left in vocab and right in vocab]
        found += [(score, *pair) for pair in sorted(known, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))]
    found.sort(key=lambda row: (row[0], len(row[1]), len(row[2])), reverse=scores is not None)
    return [(left, right) for _, left, right in found]


# -- SentencePiece model files ------------------------------------------------------------------------------------


def proto_of(path: Path) -> Any:
    """The contents of a SentencePiece ``.model`` file."""
    try:
        from sentencepiece import sentencepiece_model_pb2 as definition
    except ImportError:
        raise MissingError(
            f"{path} is a SentencePiece model: pip install 'fastsnn-text[sentencepiece]' (or give a tokenizer.json)"
        ) from None
    proto: Any = vars(definition)["ModelProto"]()  # made when the module is loaded
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's own class is private
        raise TokenizerError(
            f"{path} is no SentencePiece model ({error}); give the model, or a tokenizer.json"
        ) from None
    if not proto.pieces:
        raise TokenizerError(f"{path} is a SentencePiece model without pieces")
    return proto


def pieces_added(proto: Any) -> list[AddedToken]:
    """Control and user-defined pieces: tokens that text is searched for as they are."""
    return [
        AddedToken(p.piece, normalized=False, special=p.type == CONTROL)
        for p in proto.pieces
        if p.type in (CONTROL, USER_DEFINED)
    ]


def sentencepiece(proto: Any, renamed: Mapping[int, str]) -> Native:
    """What transformers builds for a class it has no recipe for: no space before the text."""
    trainer, charsmap = proto.trainer_spec, proto.normalizer_spec.precompiled_charsmap
    if trainer.model_type == 1:
        rows = [(p.piece, p.score) for p in proto.pieces]
        native = Native(Unigram(rows, unk_id=trainer.unk_id, byte_fallback=trainer.byte_fallback))
    else:
        vocab = {p.piece: i for i, p in enumerate(proto.pieces)}
        merges = merges_of(vocab)
        names = {i: name for name, i in vocab.items()}
        for i, name in renamed.items():
            if names.get(i, name) != name and name not in vocab:
                vocab[name] = vocab.pop(names[i])
        native = Native(
            BPE(vocab=vocab, merges=merges, unk_token=trainer.unk_piece, fuse_unk=True,
                byte_fallback=trainer.byte_fallback)
        )  # fmt: skip
    steps: list[Any] = [normalizers.Precompiled(charsmap)] if charsmap else []
    native.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    bytes_too: list[Any] = [decoders.ByteFallback(), decoders.Fuse()] if trainer.byte_fallback else []
    native.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), *bytes_too])
    return native
