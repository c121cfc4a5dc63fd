"""Text to tokens: in one process or several, in memory or in a cache on disk."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import multiprocessing
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from fastsnn_core.errors import ProcessError
from fastsnn_core.files import beside
from fastsnn_text import Tokenizer
from fastsnn_text.text_stream import common_prefix
from fastsnn_train.data.documents import Chat, DataError, Document, Spans, identity, plain_text
from fastsnn_train.data.token_batches import INSIDE

SPLIT = 1 << 20  # characters encoded at a time


def token_type(tokenizer: Tokenizer) -> type[np.generic]:
    """The integer type that holds a token."""
    return np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32


def tokenized(document: Document, tokenizer: Tokenizer) -> np.ndarray:
    """Tokens of a document, closed by the end token if there is one; marked (`token_batches`) where some are context.

    A token that straddles a context's end is a target, as it is when prompt and completion are tokenised together.
    """
    if isinstance(document, str):
        pieces = [tokenizer.encode(document[begin : begin + SPLIT]) for begin in range(0, len(document), SPLIT)]
        tail = [] if tokenizer.end is None else [tokenizer.end]
        return np.asarray([*itertools.chain.from_iterable(pieces), *tail], dtype=token_type(tokenizer))
    parts = document.parts if isinstance(document, Spans) else chat_parts(document, tokenizer)
    text = "".join(part for part, _ in parts)
    ids = tokenizer.encode(text)
    marked = np.asarray(ids, dtype=np.int32)
    context = np.zeros(len(ids), dtype=bool)
    begin, before = 0, ""
    for part, learnt in parts:
        before += part
        end = len(ids) if before == text else common_prefix(ids, tokenizer.encode(before))
        context[begin:end] |= not learnt
        begin = max(begin, end)
    if tokenizer.end is not None:
        if not ids or ids[-1] != tokenizer.end:
            marked, context = np.append(marked, np.int32(tokenizer.end)), np.append(context, False)
        marked[:-1][marked[:-1] == tokenizer.end] |= INSIDE  # a turn's end is no document's end
    return np.where(context, ~marked, marked)


def chat_parts(chat: Chat, tokenizer: Tokenizer) -> tuple[tuple[str, bool], ...]:
    """A conversation as its template writes it; what its context messages are written as is no target."""
    from fastsnn_text import ChatTemplate

    template = ChatTemplate(tokenizer, getattr(tokenizer, "chat_template", None))
    try:
        text = template.render(list(chat.messages), add_generation_prompt=False)
        head = template.render(list(chat.messages[: chat.context]), add_generation_prompt=False) if chat.context else ""
    except ValueError as error:
        raise DataError(f"a conversation of {len(chat.messages)} messages: {error}") from None
    cut = next((n for n, (a, b) in enumerate(zip(text, head)) if a != b), min(len(text), len(head)))
    return tuple((part, learnt) for part, learnt in ((text[:cut], False), (text[cut:], True)) if part)


def encoded(texts: Iterable[Document], tokenizer: Tokenizer, workers: int = 1) -> Iterator[np.ndarray]:
    """Tokens of each document, in order, whoever made them; every worker has at most one group in hand."""
    if workers == 1:
        yield from (tokenized(text, tokenizer) for text in texts)
        return
    with worker_pool(tokenizer, workers) as ends:
        given = 0
        for group in document_groups(texts):
            end = ends[given % workers]
            if given >= workers:  # a worker is given a group only while it waits for one, so no pipe can fill up
                yield from receive(end)
            end.send(group)
            given += 1
        for place in range(max(0, given - workers), given):
            yield from receive(ends[place % workers])


def document_groups(texts: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in groups of about `SPLIT` characters: what one task of a worker is."""
    group: list[Document] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(plain_text(text))
        if size >= SPLIT:
            yield group
            group, size = [], 0
    if group:
        yield group


@contextlib.contextmanager
def worker_pool(tokenizer: Tokenizer, workers: int) -> Iterator[list[Connection]]:
    """Worker processes that know the tokenizer, one pipe to each; on Linux they are forked, since they only tokenise.

    No thread or lock stands between (an executor's would be copied in whatever state a fork finds them).
    """
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    ends: list[Connection] = []
    processes = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forking with threads
            for _ in range(workers):
                mine, other = context.Pipe()
                process = context.Process(target=serve_worker, args=(other, tokenizer), daemon=True)
                process.start()
                other.close()
                ends.append(mine)
                processes.append(process)
        yield ends
    finally:
        for end, process in zip(ends, processes):
            process.kill()  # it may have inherited handlers that put SIGTERM off
            process.join()
            end.close()
        if before is None:
            os.environ.pop("TOKENIZERS_PARALLELISM", None)
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def serve_worker(end: Connection, tokenizer: Tokenizer) -> None:
    """A worker: a group of documents in, their tokens (or the error they gave) out, until the other side is gone."""
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            group = end.recv()
            try:
                found: Any = [tokenized(text, tokenizer) for text in group]
            except Exception as error:
                found = error
            end.send(found)


def receive(end: Connection) -> list[np.ndarray]:
    """What a worker made of a group; its error is raised here."""
    try:
        found = end.recv()
    except EOFError:
        raise ProcessError("a process that tokenises died; was it killed for memory? Use fewer workers") from None
    if isinstance(found, Exception):
        raise found
    return found


def encode_documents(texts: Iterable[Document], tokenizer: Tokenizer, workers: int = 1) -> tuple[np.ndarray, int]:
    """All documents as one array of tokens, each closed by the end token; and how many characters they had."""
    characters = 0

    def counted() -> Iterator[Document]:
        nonlocal characters
        for text in texts:
            characters += len(plain_text(text))
            yield text

    pieces = list(encoded(counted(), tokenizer, workers))
    return (np.concatenate(pieces) if pieces else np.zeros(0, token_type(tokenizer))), characters


def cached(
    texts: Iterable[Document], tokenizer: Tokenizer, folder: str | Path, what: str, workers: int = 1
) -> tuple[np.ndarray, int]:
    """`encode_documents`, kept on disk under `folder` where one is given: memory-mapped, keyed by text and tokenizer.

    The texts are read once for the key, one at a time, and once more where the cache does not have them.
    """
    if not folder:
        return encode_documents(texts, tokenizer, workers)
    key = hashlib.sha256(f"{what}|{tokenizer.describe()}|{getattr(tokenizer, 'text', '')}".encode())
    characters = 0
    for text in texts:
        key.update(identity(text) + b"\0")
        characters += len(plain_text(text))
    path = Path(folder).expanduser() / f"{key.hexdigest()[:32]}.npy"
    if not path.is_file():
        tokens, _ = encode_documents(texts, tokenizer, workers)
        with beside(path) as scratch, scratch.open("wb") as file:
            np.save(file, tokens, allow_pickle=False)
            os.fsync(file.fileno())
    return np.load(path, mmap_mode="r", allow_pickle=False), characters
