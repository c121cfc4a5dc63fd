"""Data given to `FastSNN.fit`, prepared for a `Trainer`: texts are tokenised and packed, token ids are used as they
are.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from fastsnn_core.errors import ArgumentError
from fastsnn_modules.inputs import check_token_ids, vocabulary_of
from fastsnn_text import attach, tokenizer_of
from fastsnn_train.data.documents import Chat, DataError, Spans
from fastsnn_train.data.packing import Data, Packed, load_data
from fastsnn_train.data.sources import Corpus
from fastsnn_train.data.streaming import Streamed
from fastsnn_train.data.token_batches import IDS


def fit_data(
    model: nn.Module, dataset: Any, *, tokenizer: Any = None, seq_len: int = 512, text_field: str = "text"
) -> Any:
    """A corpus (`Data`), or token batches as they are; the tokenizer of a corpus becomes the model's own.

    Errors (ArgumentError, DataError): no dataset, none that can be read, more tokens than the model's vocabulary.
    """
    if dataset is None:
        raise ArgumentError("fit() needs a dataset: a name, a file or folder, texts, or token batches [B, T]; got None")
    if isinstance(dataset, Data | Packed | Streamed):
        return dataset
    if isinstance(dataset, Tensor | np.ndarray) and dataset.ndim == 1:
        return stream_of_ids(model, dataset, seq_len)
    dataset, text = holds_text(dataset, text_field)
    if not text:
        return dataset
    own = tokenizer_of(model) if tokenizer is None else tokenizer
    data = load_data(dataset, tokenizer=own, seq_len=seq_len, text_field=text_field)
    check_vocabulary(model, data.tokenizer)
    attach(model, data.tokenizer)
    return data


def stream_of_ids(model: nn.Module, tokens: Any, seq_len: int) -> Packed:
    """One long array of token ids, in sequences of `seq_len`."""
    ids = tokens.cpu().numpy() if isinstance(tokens, Tensor) else tokens
    if not np.issubdtype(ids.dtype, np.integer):
        raise DataError(f"an array of token ids must hold integers, got {ids.dtype}")
    import torch

    limits = np.array([ids.min(), ids.max()] if len(ids) else [], dtype=np.int64)
    check_token_ids(torch.from_numpy(limits), vocabulary_of(model), "the array of tokens (its least and largest)")
    return Packed(ids, seq_len)


def holds_text(dataset: Any, field: str = "text") -> tuple[Any, bool]:
    """``(dataset, whether it holds texts rather than ids)``; an iterator is returned with the item that was read."""
    if isinstance(dataset, str | Path | Corpus):
        return dataset, True
    kind = type(dataset).__module__.split(".")[0]
    if kind == "datasets" or isinstance(dataset, dict):
        columns = getattr(dataset, "column_names", None)
        ids = isinstance(columns, list) and field not in columns and any(name in columns for name in IDS)
        return dataset, not ids
    if not hasattr(dataset, "__iter__") and hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        text = bool(len(dataset)) and is_text_row(dataset[0])  # a map-style Dataset
        return ([dataset[i] for i in range(len(dataset))] if text else dataset), text
    if kind == "torch" or not hasattr(dataset, "__iter__"):
        return dataset, False
    if iter(dataset) is dataset:
        first = next(dataset, None)
        dataset = itertools.chain(() if first is None else (first,), dataset)
    else:
        first = next(iter(dataset), None)
    return dataset, is_text_row(first)


def is_text_row(item: Any) -> bool:
    """Is an item of a dataset a text, or a row of a table of texts?"""
    if isinstance(item, Mapping):
        return not any(name in item for name in IDS)
    return isinstance(item, str | Path | Spans | Chat)


def check_vocabulary(model: Any, tokenizer: Any) -> None:
    """The model's vocabulary must contain every token."""
    size = vocabulary_of(model)
    if size is not None and size < tokenizer.vocab_size:
        raise ArgumentError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model a vocab_size of {size}; "
            f"set vocab_size = {tokenizer.vocab_size}"
        )
