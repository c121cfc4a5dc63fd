"""Which tokens may follow: microseconds per token of llguidance, xgrammar and outlines-core on one CPU thread.

    python benchmarks/grammar_masks.py TOKENIZER.json

Each library compiles the same JSON Schema over the same vocabulary and walks the same text; before every token a mask
is asked for, and the token is then consumed. Printed: time to read the vocabulary and to compile the schema, and per
token the median, the mean and the longest of mask and consumption. Libraries that are not installed are left out.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "kind": {"enum": ["home", "work"]}},
            "required": ["street", "kind"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "tags", "address"],
    "additionalProperties": False,
}
VALUE = {
    "name": "Ada Lovelace of Marylebone", "age": 36, "tags": ["engine", "numbers", "poetry and science"],
    "address": {"street": "12 St James's Square", "kind": "home"},
}  # fmt: skip


def llguidance(tokenizer: Any) -> tuple[float, float, Callable[[int], None]]:
    """Seconds to read the vocabulary and to compile, and what a token costs."""
    import llguidance as ll

    from fastsnn_serve.engine.grammar import Grammars

    begun = time.perf_counter()
    grammars = Grammars(tokenizer, tokenizer.vocab_size)
    grammars.native()
    read = time.perf_counter()
    matcher: Any = grammars.schema(SCHEMA).matcher()
    made = time.perf_counter()
    assert ll.__name__

    def step(token: int) -> None:
        matcher.allowed()
        matcher.take(token)

    return read - begun, made - read, step


def xgrammar(tokenizer: Any) -> tuple[float, float, Callable[[int], None]]:
    """The same."""
    import xgrammar as xgr

    begun = time.perf_counter()
    native = tokenizer.native
    names = [native.id_to_token(i) or "" for i in range(tokenizer.vocab_size)]
    info = xgr.TokenizerInfo(names, xgr.VocabType.BYTE_LEVEL, stop_token_ids=list(tokenizer.ends))
    compiler = xgr.GrammarCompiler(info, max_threads=1)
    read = time.perf_counter()
    matcher = xgr.GrammarMatcher(compiler.compile_json_schema(json.dumps(SCHEMA), any_whitespace=True))
    mask = xgr.allocate_token_bitmask(1, tokenizer.vocab_size)
    made = time.perf_counter()

    def step(token: int) -> None:
        matcher.fill_next_token_bitmask(mask)
        assert matcher.accept_token(token)

    return read - begun, made - read, step


def outlines(tokenizer: Any) -> tuple[float, float, Callable[[int], None]]:
    """The same; outlines-core compiles a schema to an index over the vocabulary beforehand."""
    import outlines_core as oc
    from outlines_core.json_schema import build_regex_from_schema

    from fastsnn_text import token_bytes

    begun = time.perf_counter()
    table: dict[bytes, list[int]] = {}
    for token in range(tokenizer.vocab_size):
        if raw := token_bytes(tokenizer, token):
            table.setdefault(raw, []).append(token)
    vocabulary = oc.Vocabulary(tokenizer.end, table)
    read = time.perf_counter()
    guide = oc.Guide(oc.Index(build_regex_from_schema(json.dumps(SCHEMA)), vocabulary))
    mask = np.zeros(-(-tokenizer.vocab_size // 32), dtype=np.int32)
    made = time.perf_counter()

    def step(token: int) -> None:
        guide.write_mask_into(mask.ctypes.data, mask.size, mask.itemsize)
        guide.advance(token, return_tokens=False)

    return read - begun, made - read, step


def main() -> None:
    """Measure and print."""
    from fastsnn_text import load_tokenizer

    tokenizer: Any = load_tokenizer(Path(sys.argv[1]))
    tokens = tokenizer.encode(json.dumps(VALUE))
    print(f"{tokenizer.vocab_size} tokens in the vocabulary, {len(tokens)} in the text")
    for make in (llguidance, xgrammar, outlines):
        try:
            make(tokenizer)
        except ImportError as error:
            print(f"{make.__name__:12} not installed: {error}")
            continue
        rounds, times = [], list[float]()
        for _ in range(5):
            read, compiled, step = make(tokenizer)
            rounds.append((read, compiled))
            for token in tokens:
                begun = time.perf_counter()
                step(token)
                times.append(1e6 * (time.perf_counter() - begun))
        read, compiled = (1e3 * statistics.median(row) for row in zip(*rounds, strict=True))
        print(
            f"{make.__name__:12} vocabulary {read:8.1f} ms, schema {compiled:8.1f} ms; per token µs: median "
            f"{statistics.median(times):7.1f}, mean {statistics.mean(times):7.1f}, longest {max(times):8.1f}"
        )


if __name__ == "__main__":
    main()
