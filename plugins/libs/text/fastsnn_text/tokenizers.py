"""Tokenizers: bytes, and those of the `tokenizers` library; how a model carries its own in a bundle."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from fastsnn_core.errors import FastSNNError, MissingError, MissingFileError
from fastsnn_text.tokenizer_recipes import SPACE, TokenizerError


class Tokenizer(Protocol):
    """Text to token ids and back. `end` separates documents; `start` (or None) begins a prompt.

    Where several ids end a text, an attribute ``ends`` holds them all (`ends_of` reads either).
    """

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


def whole_characters(text: str) -> str:
    """`text`, if it is Unicode that can be written down; half of a surrogate pair (JSON allows it) is an error."""
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"the text holds half of a surrogate pair, U+{ord(text[error.start]):04X}, at character {error.start}; "
                "text is whole characters: text.encode('utf-8', 'replace').decode() writes a question mark for it"
            ) from None
    return text


class ByteTokenizer:
    """UTF-8 bytes 0 … 255, and 256 for the end of a document."""

    vocab_size = 257
    end: int | None = 256
    start: int | None = None

    def encode(self, text: str) -> list[int]:
        """The bytes of `text`."""
        return list(whole_characters(text).encode("utf-8"))

    def decode(self, ids: list[int]) -> str:
        """Text of the bytes; what is no UTF-8 becomes the replacement character."""
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    def describe(self) -> dict[str, Any]:
        """Nothing but its kind."""
        return {"kind": "byte"}


class HuggingFaceTokenizer:
    """A tokenizer of the `tokenizers` library, as its ``tokenizer.json``.

    `start` is the token that its post-processor puts before a text (None: nothing), unless another is given; `ends` are
    the ids that end a text, the first of which, `end`, separates documents. `special` names tokens for chat templates
    (``bos_token``, ``eos_token``, …), and `chat_template` is one Jinja template, or several by name.
    """

    ENDS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<eos>", "<|end|>")

    def __init__(
        self,
        text: str,
        start: int | None = None,
        end: int | None = None,
        *,
        ends: Sequence[int] = (),
        special: dict[str, str] | None = None,
        chat_template: str | dict[str, str] | None = None,
    ) -> None:
        from tokenizers import Tokenizer as Native

        self.text = text
        self.native = Native.from_str(text)
        self.native.no_padding()
        self.native.no_truncation()
        self.vocab_size = self.native.get_vocab_size(with_added_tokens=True)
        self.added = self.find_start()
        self.start = self.added if start is None else start
        end = end if end is not None else ends[0] if ends else self.find(self.ENDS)
        self.end, self.ends = end, tuple(dict.fromkeys([*([] if end is None else [end]), *ends]))
        self.special, self.chat_template = special, chat_template

    def find(self, names: Iterable[str]) -> int | None:
        """Id of the first of `names` in the vocabulary."""
        return next((i for i in map(self.native.token_to_id, names) if i is not None), None)

    def find_start(self) -> int | None:
        """The token that the post-processor puts before every text."""
        whole, inner = self.native.encode("a"), self.native.encode("a", add_special_tokens=False).ids
        before = whole.ids[: -len(inner) or None] if whole.ids[-len(inner) :] == inner else whole.ids
        masked = [i for i, special in zip(whole.ids, whole.special_tokens_mask) if special]
        return before[0] if before and masked[:1] == before[:1] else None

    @classmethod
    def from_path(cls, path: Path) -> HuggingFaceTokenizer:
        """From a tokenizer.json or the folder that holds it: a Hugging Face directory, or a bundle."""
        from fastsnn_text import hf_directory

        folder = path if path.is_dir() else path.parent
        if path.is_dir() or path.name == "tokenizer.json":
            if (folder / "meta.json").is_file() and (folder / "tokenizer.json").is_file():
                says = hf_directory.table_of(folder / "meta.json").get("tokenizer", {})
                return from_description(hf_directory.read_utf8(folder / "tokenizer.json"), says)
            found = hf_directory.read_tokenizer(folder)
            if found is None:
                file = folder / "tokenizer.json"
                raise MissingFileError(f"{file} is missing; give a Hugging Face tokenizer.json or its folder")
            return from_directory(found)
        if not path.is_file():
            raise MissingFileError(f"{path} is missing; give a Hugging Face tokenizer.json or the folder that holds it")
        try:
            return cls(hf_directory.read_utf8(path))
        except TokenizerError:
            raise
        except Exception as error:  # the native library raises a bare Exception
            raise TokenizerError(f"{path} is no Hugging Face tokenizer: {error}") from None

    def encode(self, text: str) -> list[int]:
        """Ids of `text`."""
        return self.native.encode(whole_characters(text), add_special_tokens=False).ids

    def prompt(self, text: str) -> list[int]:
        """Ids of `text` as a prompt, with the special tokens that the tokenizer itself puts around it."""
        if self.start == self.added:
            return self.native.encode(whole_characters(text)).ids
        return ([] if self.start is None else [self.start]) + self.encode(text)

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`."""
        return self.native.decode(ids, skip_special_tokens=True)

    @cached_property
    def spelling(self) -> str:
        """How its tokens spell bytes: "letters" (byte-level BPE), "pieces" (SentencePiece), or "" (neither)."""
        found = json.dumps(json.loads(self.native.to_str()).get("decoder"), ensure_ascii=False)
        return "letters" if '"ByteLevel"' in found else "pieces" if SPACE in found or '"Metaspace"' in found else ""

    @cached_property
    def added_tokens(self) -> dict[int, Any]:
        """Tokens beside the vocabulary, special ones included, by id."""
        return self.native.get_added_tokens_decoder()

    def special_tokens(self) -> dict[str, str]:
        """Named special tokens, as chat templates want them."""
        if self.special is not None:
            return self.special
        found = {"bos_token": self.start, "eos_token": self.end}
        return {key: self.native.id_to_token(i) or "" for key, i in found.items() if i is not None}

    def describe(self) -> dict[str, Any]:
        """Kind, special tokens, chat template; the tokenizer.json itself travels in the bundle."""
        says: dict[str, Any] = {"kind": "huggingface", "start": self.start, "end": self.end}
        if len(self.ends) > 1:
            says["ends"] = list(self.ends)
        if self.special:
            says["special_tokens"] = self.special
        return says | ({"chat_template": self.chat_template} if self.chat_template else {})


def from_description(text: str, says: dict[str, Any]) -> HuggingFaceTokenizer:
    """A tokenizer of a bundle: its tokenizer.json and what meta.json says of it."""
    return HuggingFaceTokenizer(
        text, says.get("start"), says.get("end"), ends=says.get("ends", ()), special=says.get("special_tokens"),
        chat_template=says.get("chat_template"),
    )  # fmt: skip


def from_directory(found: Any) -> HuggingFaceTokenizer:
    """The tokenizer that `fastsnn_text.hf_directory.read_tokenizer` found."""
    return HuggingFaceTokenizer(
        found.native.to_str(), ends=found.ends, special=found.special, chat_template=found.chat_template
    )


def ends_of(tokenizer: Any) -> tuple[int, ...]:
    """Every id that ends a text."""
    one = getattr(tokenizer, "end", None)
    return tuple(getattr(tokenizer, "ends", ()) or (() if one is None else (one,)))


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of `text` as a prompt: with the start token, where the tokenizer has one."""
    own = getattr(tokenizer, "prompt", None)
    if own is not None:
        return own(text)
    return ([] if tokenizer.start is None else [tokenizer.start]) + tokenizer.encode(text)


def load_tokenizer(source: Any = "byte") -> Tokenizer:
    """``"byte"``, a tokenizer.json (or its folder), a SentencePiece .model, or a tokenizer of another library.

    Errors: no such file (MissingFileError), a damaged one (TokenizerError).
    """
    if not isinstance(source, str | Path):
        from fastsnn_text.foreign_tokenizers import adapted

        return adapted(source)
    if str(source) == "byte":
        return ByteTokenizer()
    path = Path(source)
    if not path.exists():
        raise MissingFileError(f"no tokenizer at {path}; give 'byte', a tokenizer.json, its folder, or a .model file")
    if path.suffix == ".model" and path.is_file():
        return sentencepiece_model(model_file=str(path))
    return HuggingFaceTokenizer.from_path(path)


def sentencepiece_model(**source: Any) -> Tokenizer:
    """A SentencePiece model (``model_file=`` or ``model_proto=``), run by the sentencepiece package."""
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise MissingError(
            "a SentencePiece .model needs the sentencepiece package: pip install 'fastsnn-text[sentencepiece]'"
        ) from None
    try:
        return SentencePieceTokenizer(SentencePieceProcessor(**source))
    except (OSError, RuntimeError) as error:
        raise TokenizerError(f"{source.get('model_file', 'the bundle')} is no SentencePiece model: {error}") from None


class SentencePieceTokenizer:
    """A SentencePiece model; carried in bundles as its serialised bytes, base64 in tokenizer.json's place."""

    def __init__(self, native: Any) -> None:
        self.native, self.vocab_size = native, native.vocab_size()
        self.start = native.bos_id() if native.bos_id() >= 0 else None
        self.end = native.eos_id() if native.eos_id() >= 0 else None

    def encode(self, text: str) -> list[int]:
        """Ids of `text`."""
        return list(self.native.encode(whole_characters(text)))

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`."""
        return self.native.decode(ids)

    def describe(self) -> dict[str, Any]:
        """Its kind."""
        return {"kind": "sentencepiece"}

    @property
    def text(self) -> str:
        """The model file as JSON text."""
        return json.dumps({"sentencepiece": base64.b64encode(self.native.serialized_model_proto()).decode()})


def train_bpe(texts: Iterable[str], vocab_size: int) -> HuggingFaceTokenizer:
    """A byte-level BPE tokenizer trained on `texts`, with ``<|endoftext|>`` as the end of a document.

    Errors (FastSNNError): less than 258 tokens (256 bytes and two special ones). Source: Sennrich et al. 2016.
    """
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
    model.tokenizer_json = getattr(tokenizer, "text", None)  # type: ignore[assignment]
    model.meta = dict(getattr(model, "meta", {})) | {"tokenizer": tokenizer.describe()}  # type: ignore[assignment]


def attach_none(model: nn.Module, reason: str) -> None:
    """Note that the model's token ids have no text here, and why: it is not taken for one of bytes."""
    model.meta = dict(getattr(model, "meta", {})) | {"tokenizer": {"kind": "none", "reason": reason}}  # type: ignore[assignment]


def tokenizer_of(model: nn.Module) -> Tokenizer:
    """The model's own tokenizer; bytes where it never had one and its vocabulary allows.

    Errors (TokenizerError): it came without one, or its vocabulary is too small for bytes.
    """
    found: Any = getattr(model, "tokenizer", None)
    if found is not None:
        return found
    says = getattr(model, "meta", {}).get("tokenizer", {})
    text: Any = getattr(model, "tokenizer_json", None)
    if says.get("kind") == "huggingface" and text:
        found = from_description(text, says)
    elif says.get("kind") == "sentencepiece" and text:
        found = sentencepiece_model(model_proto=base64.b64decode(json.loads(text)["sentencepiece"]))
    elif says.get("kind") == "none":
        raise TokenizerError(
            f"this model has no tokenizer: {says.get('reason', 'it came without one')}. Give token ids, not text, "
            "or one to it with fastsnn_text.attach(model, load_tokenizer(PATH))"
        )
    else:
        size = getattr(getattr(model, "spec", None), "vocab_size", 0)
        if size < 256:
            raise TokenizerError(f"this model has no tokenizer, and its vocabulary of {size} is too small for bytes")
        found = ByteTokenizer()
    model.tokenizer = found
    return found
