"""Texts that must follow a JSON Schema: which tokens may come next, by llguidance.

llguidance walks the grammar over the bytes of tokens, so any tokenizer serves; it is an optional dependency, imported
where a request first needs it.
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

SPACES = r"[ \n]{0,24}"  # between JSON's tokens: a small model would write spaces for ever


class GrammarError(FastSNNError):
    """A schema that cannot be followed."""


class Vocabulary:
    """The tokens' bytes, as llguidance wants them; ends are special, one is made up where there is none."""

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

    def __call__(self, text: str) -> list[int]:
        """Ids of a text."""
        if not isinstance(text, str):
            raise TypeError("a text")
        return self.tokenizer.encode(text)


class Grammar:
    """A compiled grammar; every stream walks it with a matcher of its own."""

    def __init__(self, first: Any, size: int, words: int) -> None:
        self.first, self.size, self.words = first, size, words

    def matcher(self) -> Matcher:
        """One that stands at the beginning."""
        return Matcher(self.first.deep_copy(), self.size, self.words)


class Matcher:
    """Where a stream stands in its grammar."""

    def __init__(self, inner: Any, size: int, words: int) -> None:
        self.inner, self.size = inner, size
        self.words = np.zeros(words, dtype=np.int32)

    def allowed(self) -> Tensor:
        """``[V]`` of bool: which tokens may follow."""
        self.inner.unsafe_compute_mask_ptr(self.words.ctypes.data, self.words.nbytes)
        if self.inner.is_error():
            raise GrammarError(f"the grammar could not be followed: {self.inner.get_error()}")
        bits = np.unpackbits(self.words.view(np.uint8), bitorder="little")[: self.size]
        return torch.from_numpy(bits.astype(bool))

    def take(self, token: int) -> None:
        """Go on by a token."""
        if not self.inner.consume_token(token):
            raise GrammarError(f"token {token} is none that the grammar takes here")

    @property
    def complete(self) -> bool:
        """May nothing but an end follow?"""
        return bool(self.inner.is_stopped())


class Grammars:
    """Grammars over one tokenizer; the vocabulary is read at the first request that needs it."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.tokenizer, self.size = tokenizer, size
        self.of_schema = lru_cache(64)(self.compiled)
        self.native = lru_cache(1)(self.make_native)

    def make_native(self) -> Any:
        """llguidance's form of the vocabulary."""
        try:
            from llguidance import LLTokenizer, TokenizerWrapper
        except ImportError:
            raise MissingError(
                "response_format and a required tool call need llguidance: pip install 'fastsnn-serve[grammar]'"
            ) from None
        words = Vocabulary(self.tokenizer, self.size)
        return LLTokenizer(TokenizerWrapper(words), n_vocab=len(words.tokens), eos_token=words.ends)

    def schema(self, schema: dict[str, Any] | bool) -> Grammar:
        """The grammar of JSON that follows `schema`."""
        return self.of_schema(json.dumps(schema))

    def compiled(self, schema: str) -> Grammar:
        """The grammar of a schema's text."""
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
