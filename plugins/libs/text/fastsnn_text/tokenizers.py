"""Tokenizers: bytes, and Hugging Face's tokenizer.json; how a model carries its own in a bundle."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from fastsnn_core.errors import FastSNNError, FileError, MissingError


class Tokenizer(Protocol):
    """Text to token ids and back. `end` separates documents; `start` (or None) begins a prompt."""

    vocab_size: int
    end: int | None
    start: int | None

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without special tokens."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`, special tokens left out."""
        ...

    def describe(self) -> dict[str, Any]:
        """What meta.json says of it."""
        ...


class ByteTokenizer:
    """UTF-8 bytes 0 … 255, and 256 for the end of a document."""

    vocab_size = 257
    end: int | None = 256
    start: int | None = None

    def encode(self, text: str) -> list[int]:
        """The bytes of `text`."""
        return list(text.encode("utf-8"))

    def decode(self, ids: list[int]) -> str:
        """Text of the bytes; what is no UTF-8 becomes the replacement character."""
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    def describe(self) -> dict[str, Any]:
        """Nothing but its kind."""
        return {"kind": "byte"}


class HuggingFaceTokenizer:
    """A ``tokenizer.json``; its start and end tokens come from ``tokenizer_config.json`` where there is one."""

    ENDS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<eos>", "<|end|>")
    STARTS = ("<s>", "<|begin_of_text|>", "<bos>")

    def __init__(self, text: str, start: int | None = None, end: int | None = None) -> None:
        from tokenizers import Tokenizer as Native

        self.text = text
        self.native = Native.from_str(text)
        self.native.no_padding()
        self.native.no_truncation()
        self.vocab_size = self.native.get_vocab_size(with_added_tokens=True)
        self.start, self.end = start, end if end is not None else self.find(self.ENDS)
        self.chat_template: str | None = None

    def find(self, names: Iterable[str]) -> int | None:
        """Id of the first of `names` in the vocabulary."""
        return next((i for i in map(self.native.token_to_id, names) if i is not None), None)

    @classmethod
    def from_path(cls, path: Path) -> HuggingFaceTokenizer:
        """From a tokenizer.json or the folder that holds it."""
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise FileError(f"{file} is missing; give a Hugging Face tokenizer.json or the folder that holds it")
        try:
            found = cls(file.read_text(encoding="utf-8"))
        except Exception as error:  # the native library raises a bare Exception
            raise FastSNNError(f"{file} is no Hugging Face tokenizer: {error}") from None
        settings = file.with_name("tokenizer_config.json")
        config = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        for name in ("bos_token", "eos_token"):
            token = config.get(name)
            token = token.get("content") if isinstance(token, dict) else token
            number = found.native.token_to_id(token) if token else None
            if number is not None:
                setattr(found, "start" if name == "bos_token" else "end", number)
        if config.get("add_bos_token") is False:
            found.start = None
        found.chat_template = config.get("chat_template")
        return found

    def encode(self, text: str) -> list[int]:
        """Ids of `text`."""
        return self.native.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`."""
        return self.native.decode(ids, skip_special_tokens=True)

    def describe(self) -> dict[str, Any]:
        """Kind, special tokens, chat template; the tokenizer.json itself travels in the bundle."""
        says = {"kind": "huggingface", "start": self.start, "end": self.end}
        return says | ({"chat_template": self.chat_template} if self.chat_template else {})


class TextStream:
    """Text of a growing list of ids, piece by piece: a piece is held back while a character is incomplete.

    `before` are the ids that the text goes on from: a word's leading space is only there after something.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        self.tokenizer, self.ids, self.said = tokenizer, list(before[-16:]), ""
        self.bytes = codecs.getincrementaldecoder("utf-8")("replace") if isinstance(tokenizer, ByteTokenizer) else None
        if self.bytes is None and self.ids:
            self.said = tokenizer.decode(self.ids).rstrip("�")

    def push(self, token: int) -> str:
        """The text that `token` adds."""
        if self.bytes is not None:
            return self.bytes.decode(bytes([token]) if token < 256 else b"")
        self.ids.append(token)
        whole = self.tokenizer.decode(self.ids)
        if whole.endswith("�"):
            return ""
        piece, self.said = whole[len(self.said) :], whole
        if len(self.ids) > 64:  # what came long before changes nothing now: decode a window, or time is quadratic
            tail = self.tokenizer.decode(self.ids[-16:])
            if tail and whole.endswith(tail):
                self.ids, self.said = self.ids[-16:], tail
        return piece

    def close(self) -> str:
        """What is left, an incomplete character included."""
        if self.bytes is not None:
            return self.bytes.decode(b"", final=True)
        return self.tokenizer.decode(self.ids)[len(self.said) :]


def load_tokenizer(source: Any = "byte") -> Tokenizer:
    """``"byte"``, the path of a tokenizer.json (or its folder), or a tokenizer as it is."""
    if not isinstance(source, str | Path):
        return source
    if str(source) == "byte":
        return ByteTokenizer()
    path = Path(source)
    if path.suffix == ".model":
        return sentencepiece(path)
    if not path.exists():
        raise FileError(f"no tokenizer at {path}; give 'byte', a tokenizer.json, its folder, or a .model file")
    return HuggingFaceTokenizer.from_path(path)


def sentencepiece(path: Path) -> Tokenizer:
    """A SentencePiece ``.model`` file, read by the sentencepiece package."""
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise MissingError(f"{path} needs the sentencepiece package: pip install sentencepiece") from None
    return SentencePieceTokenizer(SentencePieceProcessor(model_file=str(path)))


class SentencePieceTokenizer:
    """A SentencePiece model; carried in bundles as its serialised bytes, base64 in tokenizer.json's place."""

    def __init__(self, native: Any) -> None:
        self.native, self.vocab_size = native, native.vocab_size()
        self.start = native.bos_id() if native.bos_id() >= 0 else None
        self.end = native.eos_id() if native.eos_id() >= 0 else None

    def encode(self, text: str) -> list[int]:
        """Ids of `text`."""
        return list(self.native.encode(text))

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`."""
        return self.native.decode(ids)

    def describe(self) -> dict[str, Any]:
        """Its kind."""
        return {"kind": "sentencepiece"}

    @property
    def text(self) -> str:
        """The model file as JSON text."""
        import base64

        return json.dumps({"sentencepiece": base64.b64encode(self.native.serialized_model_proto()).decode()})


def train_bpe(texts: Iterable[str], vocab_size: int) -> HuggingFaceTokenizer:
    """A byte-level BPE tokenizer trained on `texts`, with ``<|endoftext|>`` as the end of a document."""
    from tokenizers import Tokenizer as Native
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocab_size < 258:
        raise FastSNNError(f"a byte-level BPE vocabulary needs at least 258 tokens, got {vocab_size}")
    native = Native(models.BPE())
    native.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    native.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    native.train_from_iterator(texts, trainer)
    return HuggingFaceTokenizer(native.to_str())


def attach(model: nn.Module, tokenizer: Tokenizer) -> None:
    """Make `tokenizer` the model's own: bundles carry it."""
    model.tokenizer = tokenizer  # type: ignore[assignment]
    model.tokenizer_json = getattr(tokenizer, "text", None)
    model.meta = dict(getattr(model, "meta", {})) | {"tokenizer": tokenizer.describe()}  # type: ignore[assignment]


def tokenizer_of(model: nn.Module) -> Tokenizer:
    """The model's own tokenizer; bytes where it has none and its vocabulary allows."""
    found: Any = getattr(model, "tokenizer", None)
    if found is not None:
        return found
    says = getattr(model, "meta", {}).get("tokenizer", {})
    text: Any = getattr(model, "tokenizer_json", None)
    if says.get("kind") == "huggingface" and text:
        found = HuggingFaceTokenizer(text, says.get("start"), says.get("end"))
        found.chat_template = says.get("chat_template")
    elif says.get("kind") == "sentencepiece" and text:
        import base64

        from sentencepiece import SentencePieceProcessor

        proto = base64.b64decode(json.loads(text)["sentencepiece"])
        found = SentencePieceTokenizer(SentencePieceProcessor(model_proto=proto))
    else:
        size = getattr(getattr(model, "spec", None), "vocab_size", 0)
        if size < 256:
            raise FastSNNError(f"this model has no tokenizer, and its vocabulary of {size} is too small for bytes")
        found = ByteTokenizer()
    model.tokenizer = found
    return found
