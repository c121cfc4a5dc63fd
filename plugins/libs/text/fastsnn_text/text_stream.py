"""Text of a growing list of tokens, and the name and bytes of each token."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from fastsnn_text.tokenizer_recipes import SPACE
from fastsnn_text.tokenizers import ByteTokenizer, HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


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


@cache
def byte_letters() -> dict[str, int]:
    """The letters that byte-level BPE writes for the 256 bytes: printable ones for themselves, others from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


def token_bytes(tokenizer: Any, token: int) -> bytes | None:
    """The UTF-8 bytes that a token stands for inside a text, its leading space included; None for special tokens."""
    if isinstance(tokenizer, ByteTokenizer):
        return bytes([token]) if token < 256 else None
    if isinstance(tokenizer, SentencePieceTokenizer):
        native = tokenizer.native
        if not 0 <= token < tokenizer.vocab_size or native.is_control(token) or native.is_unknown(token):
            return None
        return piece_bytes(native.id_to_piece(token))
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        text = tokenizer.decode([token])
        return text.encode() if text and "\ufffd" not in text else None
    name = tokenizer.native.id_to_token(token)
    if name is None:
        return None
    if (added := tokenizer.added_tokens.get(token)) is not None:
        return None if added.special else name.encode()
    if tokenizer.spelling == "letters":
        letters = byte_letters()
        return bytes(letters[c] for c in name) if all(c in letters for c in name) else name.encode()
    if tokenizer.spelling == "pieces":
        return piece_bytes(name)
    text = tokenizer.decode([token])
    return text.encode() if text and "\ufffd" not in text else None


def piece_bytes(piece: str) -> bytes:
    """The bytes of a SentencePiece piece."""
    byte = BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE, " ").encode()


def token_name(tokenizer: Any, token: int) -> str:
    r"""A token's text; ``bytes:\xe2`` for bytes that are no characters, ``token_id:7`` for what has no text at all."""
    raw = token_bytes(tokenizer, token)
    if not raw:
        return f"token_id:{token}"
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    if a[: len(b)] == b[: len(a)]:
        return min(len(a), len(b))
    return next(i for i, (x, y) in enumerate(zip(a, b)) if x != y)
