"""Text to tokens: in one process or several, in memory or in a cache on disk."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import multiprocessing
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import numpy as np
from fastsnn_text import Tokenizer

from fastsnn_core.files import beside

SPLIT = 1 << 20  # characters encoded at a time

_worker: list[Tokenizer] = []


def width(tokenizer: Tokenizer) -> type[np.generic]:
    """The integer type that holds a token."""
    return np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32


def document(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """Tokens of a document, closed by the end token where there is one."""
    pieces = [tokenizer.encode(text[begin : begin + SPLIT]) for begin in range(0, len(text), SPLIT)]
    tail = [] if tokenizer.end is None else [tokenizer.end]
    return np.asarray([*itertools.chain.from_iterable(pieces), *tail], dtype=width(tokenizer))


def encoded(texts: Iterable[str], tokenizer: Tokenizer, workers: int = 1) -> Iterator[np.ndarray]:
    """Tokens of each document, in order, whoever made them; at most ``4 · workers`` groups are in flight."""
    if workers == 1:
        yield from (document(text, tokenizer) for text in texts)
        return
    waiting: collections.deque[Future[list[np.ndarray]]] = collections.deque()
    with pool(tokenizer, workers) as executor:
        for group in grouped(texts):
            waiting.append(executor.submit(work, group))
            if len(waiting) >= 4 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def grouped(texts: Iterable[str]) -> Iterator[list[str]]:
    """Documents in groups of about `SPLIT` characters: what one task of a worker is."""
    group, size = [], 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= SPLIT:
            yield group
            group, size = [], 0
    if group:
        yield group


@contextlib.contextmanager
def pool(tokenizer: Tokenizer, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that know the tokenizer; on Linux they are forked, since they only tokenise."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forking with threads
            with ProcessPoolExecutor(workers, context, learn, (tokenizer,)) as executor:
                yield executor
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def learn(tokenizer: Tokenizer) -> None:
    """Keep the tokenizer in a worker."""
    _worker[:] = [tokenizer]


def work(group: list[str]) -> list[np.ndarray]:
    """Tokens of a group of documents, in a worker."""
    return [document(text, _worker[0]) for text in group]


def encode(texts: Iterable[str], tokenizer: Tokenizer, workers: int = 1) -> tuple[np.ndarray, int]:
    """All documents as one array of tokens, each closed by the end token; and how many characters they had."""
    characters = 0

    def counted() -> Iterator[str]:
        nonlocal characters
        for text in texts:
            characters += len(text)
            yield text

    pieces = list(encoded(counted(), tokenizer, workers))
    return (np.concatenate(pieces) if pieces else np.zeros(0, width(tokenizer))), characters


def cached(
    texts: Iterable[str], tokenizer: Tokenizer, folder: str | Path, what: str, workers: int = 1
) -> tuple[np.ndarray, int]:
    """`encode`, kept on disk under `folder` where one is given: memory-mapped, keyed by text and tokenizer.

    The texts are read once for the key, one at a time, and once more where the cache does not have them.
    """
    if not folder:
        return encode(texts, tokenizer, workers)
    key = hashlib.sha256(f"{what}|{tokenizer.describe()}|{getattr(tokenizer, 'text', '')}".encode())
    characters = 0
    for text in texts:
        key.update(text.encode("utf-8", "surrogatepass") + b"\0")
        characters += len(text)
    path = Path(folder).expanduser() / f"{key.hexdigest()[:32]}.npy"
    if not path.is_file():
        tokens, _ = encode(texts, tokenizer, workers)
        with beside(path) as scratch, scratch.open("wb") as file:
            np.save(file, tokens, allow_pickle=False)
            os.fsync(file.fileno())
    return np.load(path, mmap_mode="r", allow_pickle=False), characters
