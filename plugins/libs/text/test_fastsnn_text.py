"""Tokenizers round trip, and a text stream never cuts a character."""

from __future__ import annotations

from fastsnn_text import ByteTokenizer, TextStream


def test_bytes_round_trip():
    tokenizer = ByteTokenizer()
    text = "naïve — 漢字 🙂\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    stream = TextStream(tokenizer)
    pieces = [stream.push(i) for i in tokenizer.encode(text)]
    assert "".join(pieces) + stream.close() == text
    assert not any("\ufffd" in piece for piece in pieces)
