"""Constrained decoding to a JSON Schema: a mask over the vocabulary at every step, computed by llguidance.

llguidance matches the grammar against token bytes, so it works with any tokenizer. It is an optional dependency,
imported by the first request that needs it.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsnn_core.errors import FastSNNError, MissingError
from fastsnn_text import Tokenizer, ends_of, token_bytes

SPACES = r"[ \n]{0,24}"  # between JSON tokens; bounded, or a small model may never stop writing spaces


class GrammarError(FastSNNError):
    """The schema is invalid, or the text cannot follow it."""


class Vocabulary:
    """The vocabulary as llguidance expects it: token bytes; end tokens are special, one is added if there is none."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.tokenizer = tokenizer
        ends = ends_of(tokenizer)
        self.tokens, self.special_token_ids = list[bytes](), list[int]()
        for token in range(size):
            raw = token_bytes(tokenizer, token) if token < tokenizer.vocab_size and token not in ends else None
            if not raw:
                self.special_token_ids.append(token)
            self.tokens.append(raw or f"<|token {token}|>".encode())
        if not ends:
            ends = (size,)
            self.tokens.append(b"<|end|>")
            self.special_token_ids.append(size)
        self.ends, self.eos_token_id, self.bos_token_id = list(ends), ends[0], None
        self.known = {raw: token for token, raw in enumerate(self.tokens) if token not in set(self.special_token_ids)}
        self.longest = max(map(len, self.known), default=0)

    def __call__(self, text: str) -> list[int]:
        """Token ids whose bytes are those of `text`, exactly.

        SentencePiece tokenizers put a space before every text; the longest tokens that fit are taken then.
        """
        if not isinstance(text, str):
            raise TypeError("a text")
        raw, found = text.encode(), self.tokenizer.encode(text)
        if b"".join(self.tokens[token] for token in found) == raw:
            return found
        found, at = [], 0
        while at < len(raw):
            sizes = range(min(self.longest, len(raw) - at), 0, -1)
            size = next((n for n in sizes if raw[at : at + n] in self.known), 0)
            if not size:
                break  # what no token spells: the grammar goes on from here
            found.append(self.known[raw[at : at + size]])
            at += size
        return found


class Grammar:
    """A compiled grammar, shared by streams; each stream has its own `Matcher`."""

    def __init__(self, first: Any, size: int, words: int) -> None:
        self.first, self.size, self.words = first, size, words

    def matcher(self) -> Matcher:
        """A new matcher in the start state."""
        return Matcher(self.first.deep_copy(), self.size, self.words)


class Matcher:
    """Parser state of one stream."""

    def __init__(self, inner: Any, size: int, words: int) -> None:
        self.inner, self.size = inner, size
        self.words = np.zeros(words, dtype=np.int32)

    def allowed(self) -> Tensor:
        """Boolean mask ``[V]`` of the tokens allowed next; raises `GrammarError`."""
        self.inner.unsafe_compute_mask_ptr(self.words.ctypes.data, self.words.nbytes)
        if self.inner.is_error():
            raise GrammarError(f"the grammar could not be followed: {self.inner.get_error()}")
        bits = np.unpackbits(self.words.view(np.uint8), bitorder="little")[: self.size]
        return torch.from_numpy(bits.astype(bool))

    def take(self, token: int) -> None:
        """Advance by `token`; raises `GrammarError` if it is not allowed here."""
        if not self.inner.consume_token(token):
            raise GrammarError(f"token {token} is none that the grammar takes here")

    @property
    def complete(self) -> bool:
        """Is the grammar complete, so that only an end token may follow?"""
        return bool(self.inner.is_stopped())


class Grammars:
    """Compiles and caches grammars for one tokenizer; its vocabulary is converted at the first request."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.tokenizer, self.size = tokenizer, size
        self.of_schema = lru_cache(64)(self.compiled)
        self.native = lru_cache(1)(self.make_native)

    def make_native(self) -> Any:
        """The vocabulary as an llguidance tokenizer; raises `MissingError` without llguidance."""
        try:
            from llguidance import LLTokenizer, TokenizerWrapper
        except ImportError:
            raise MissingError(
                "response_format and a required tool call need llguidance: pip install 'fastsnn-serve[grammar]'"
            ) from None
        words = Vocabulary(self.tokenizer, self.size)
        return LLTokenizer(TokenizerWrapper(words), n_vocab=len(words.tokens), eos_token=words.ends)

    def schema(self, schema: dict[str, Any] | bool) -> Grammar:
        """The grammar of JSON texts that conform to `schema`; raises `GrammarError` for an invalid one."""
        return self.of_schema(json.dumps(schema))

    def compiled(self, schema: str) -> Grammar:
        """Compile a schema given as JSON text; raises `GrammarError`."""
        native = self.native()
        from llguidance import LLMatcher

        try:
            text = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": SPACES})
        except ValueError as error:
            raise GrammarError(f"no JSON Schema: {error}") from None
        first = LLMatcher(native, text, log_level=0)
        if first.is_error():
            raise GrammarError(str(first.get_error()).strip())
        return Grammar(first, self.size, -(-native.vocab_size // 32))
