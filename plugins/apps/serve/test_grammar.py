"""Grammar masks with every kind of tokenizer: whatever is drawn from them is JSON that fits its schema."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from tokenizers import Tokenizer as Native
from tokenizers import decoders, models, normalizers, pre_tokenizers

from fastsnn_serve.engine.grammar import Grammars
from fastsnn_text import ByteTokenizer, token_bytes
from fastsnn_text.tokenizers import HuggingFaceTokenizer

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["one two", "é"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def spaced() -> HuggingFaceTokenizer:
    """SentencePiece: a space before every text, bytes for what has no token."""
    words = ["<unk>", "<s>", "</s>", *BYTES, "▁", "{", "}", '"', ":", "▁{", '▁"', "na", "me", "▁one", "▁two", "n"]
    merges = [("▁", "{"), ("▁", '"')]
    native = Native(
        models.BPE({w: i for i, w in enumerate(words)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    native.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    native.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return HuggingFaceTokenizer(native.to_str(), ends=(2,))


def byte_level() -> HuggingFaceTokenizer:
    """Byte-level BPE with a prefix space of its own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<end>", *alphabet, 'Ġ"', "na"]
    native = Native(models.BPE({w: i for i, w in enumerate(words)}, [("Ġ", '"'), ("n", "a")]))
    native.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    native.decoder = decoders.ByteLevel()
    return HuggingFaceTokenizer(native.to_str(), ends=(0,))


@pytest.mark.parametrize("make", [ByteTokenizer, spaced, byte_level])
def test_any_walk_through_the_masks_ends_in_a_text_of_the_schema(make: Any) -> None:
    pytest.importorskip("llguidance", reason="llguidance is not installed")
    tokenizer = make()
    grammar, rng = Grammars(tokenizer, tokenizer.vocab_size).schema(SCHEMA), random.Random(0)
    for _ in range(20):
        matcher, raw = grammar.matcher(), b""
        while not matcher.complete:
            token = rng.choice(matcher.allowed().nonzero().flatten().tolist())
            matcher.take(token)
            raw += token_bytes(tokenizer, token) or b""
            assert len(raw) < 300
        found = json.loads(raw)
        assert found["name"] in ("one two", "é")
        assert 0 <= found["n"] <= 99
