"""Batches of token ids from what people have: tensors, lists, dicts of a collator, tuples of a Dataset, sequences.

Everything that says which tokens count is honoured: ``labels`` of -100, ``attention_mask``, ``loss_mask`` and its kin,
``position_ids`` that start anew. What is not understood is refused where it could be a mask, and named where it is not.

Packed tokens carry this in themselves. A *marked* token is ``id | INSIDE`` where it is an end token that does not end
its document, and ``~id`` (negative) where it is context only, no target of the loss; `ids_of` and `targets_of` read it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsnn_modules.inputs import check_token_ids
from fastsnn_train.data.documents import DataError, name_list
from fastsnn_train.data.sources import first_line

log = logging.getLogger("fastsnn")
IGNORE = -100
INSIDE = 1 << 29
IDS = ("input_ids", "tokens")
LABELS = ("labels", "label_ids", "targets")
MASKS = ("loss_mask", "completion_mask", "assistant_masks", "assistant_mask", "labels_mask")
HARMLESS = ("token_type_ids", "special_tokens_mask", "length", "overflow_to_sample_mapping", "offset_mapping")
Batch = tuple[Tensor, Tensor | None]
"""Marked tokens ``[B, T+1]``, and where documents start ``[B, T]`` (or None)."""


def ids_of(tokens: Tensor) -> Tensor:
    """Token ids of marked tokens: what goes into the model."""
    return torch.where(tokens < 0, ~tokens, tokens) & (INSIDE - 1)


def targets_of(tokens: Tensor) -> Tensor:
    """Targets of the loss: ids, and -100 where a token is only context."""
    return torch.where(tokens < 0, IGNORE, tokens & (INSIDE - 1))


def scored(tokens: Tensor) -> int | None:
    """How many of ``tokens [B, T+1]`` are targets; None where all are (as the first never is)."""
    targets = tokens[:, 1:]
    return None if not bool((targets < 0).any()) else int((targets >= 0).sum())


def batches(
    data: Iterable[Any], batch_size: int = 8, vocab_size: int | None = None, order: Iterable[int] | None = None
) -> Iterator[Batch]:
    """Batches of any iterable: an item is a batch ``[B, T]`` as it is, or one sequence, of which `batch_size` make one.

    `order` says which items of an indexable collection are read.
    """
    held: list[dict[str, Tensor]] = []
    for n, item in enumerate(data if order is None else (data[i] for i in order)):  # type: ignore[index]
        where = f"batch {n}"
        columns = columns_of(item, where)
        if columns["ids"].ndim == 1:
            held.append(columns)
            if len(held) == batch_size:
                yield assembled(padded(held, f"sequences up to {n}"), f"sequences up to {n}", vocab_size)
                held = []
            continue
        yield assembled(columns, where, vocab_size)
    if held:
        yield assembled(padded(held, "the last sequences"), "the last sequences", vocab_size)


def columns_of(item: Any, where: str) -> dict[str, Tensor]:
    """Tensors by name: ids, and labels, mask, scored, positions where they are given."""
    if isinstance(item, Mapping) or hasattr(item, "keys"):
        return of_mapping(item, where)
    if isinstance(item, tuple) or (isinstance(item, list) and item and all(is_matrix(part) for part in item)):
        if not 1 <= len(item) <= 2:
            raise DataError(
                f"{where} is a tuple of {len(item)}; expected (ids,) or (ids, labels), or a dict with names"
            )
        columns = {"ids": integers(item[0], f"{where}, ids")}
        return columns | ({"labels": integers(item[1], f"{where}, labels")} if len(item) == 2 else {})
    return (
        {"ids": integers(item, where)}
        if not ragged_rows(item)
        else padded([{"ids": integers(r, where)} for r in item], where)
    )


def of_mapping(item: Any, where: str) -> dict[str, Tensor]:
    """The columns of a dict; those that could say which tokens count are used, or refused."""
    name = next((key for key in IDS if key in item), None)
    if name is None:
        raise DataError(
            f"{where} has neither 'input_ids' nor 'tokens'; it has {name_list(list(map(str, item.keys())))}"
        )
    columns: dict[str, Tensor] = {}
    unused = []
    for key in item.keys():  # noqa: SIM118 (a BatchEncoding iterates otherwise)
        value = item[key]
        if key == name:
            rows = [integers(r, f"{where}, {key}") for r in value] if ragged_rows(value) else None
            columns["ids"] = torch.nn.utils.rnn.pad_sequence(rows, True) if rows else integers(value, f"{where}, {key}")
        elif value is None or key in HARMLESS:
            continue
        elif key in LABELS:
            columns["labels"] = integers(value, f"{where}, {key}")
        elif key == "attention_mask":
            columns["mask"] = binary(value, f"{where}, {key}")
        elif key in MASKS:
            columns["scored"] = binary(value, f"{where}, {key}")
        elif key == "position_ids":
            columns["positions"] = integers(value, f"{where}, {key}")
        else:
            unused.append(key)
    shape = columns["ids"].shape
    for key in unused:
        if isinstance(item[key], Tensor | np.ndarray) and tuple(item[key].shape)[: len(shape)] == tuple(shape):
            known = name_list([*IDS, *LABELS, "attention_mask", *MASKS, "position_ids"], 20)
            raise DataError(
                f"{where} has a column {key!r} as large as the ids, which is not understood; known are {known}"
            )
    if unused and not getattr(of_mapping, "said", False):
        of_mapping.said = True  # type: ignore[attr-defined]
        log.warning("%s: columns that are not used: %s", where, name_list(list(map(str, unused))))
    for key, value in columns.items():
        if value.shape != shape:
            raise DataError(f"{where}: {key} has the shape {tuple(value.shape)}, the ids have {tuple(shape)}")
    return columns


def is_matrix(value: Any) -> bool:
    """A tensor or array of two dimensions."""
    return isinstance(value, Tensor | np.ndarray) and value.ndim == 2


def ragged_rows(value: Any) -> bool:
    """A list of sequences of different lengths."""
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(r, Sequence | Tensor | np.ndarray) for r in value)
    ):
        return False
    return not any(isinstance(r, str) for r in value) and len({len(r) for r in value}) > 1


def integers(value: Any, where: str) -> Tensor:
    """A tensor of integers, one or two dimensions."""
    if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], str)):
        raise DataError(
            f"{where} holds texts, not token ids; give the texts themselves as the dataset, or tokenise them"
        )
    try:
        found = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{where}: expected token ids, got {type(value).__name__} ({first_line(error)})") from None
    if found.ndim not in (1, 2) or found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        shown = f"{found.dtype} {tuple(found.shape)}"
        raise DataError(f"{where} must be token ids [B, T] with T >= 2 (or a sequence [T]), got {shown}")
    return found.long()


def binary(value: Any, where: str) -> Tensor:
    """A mask of zeros and ones."""
    found = torch.as_tensor(value)
    if found.ndim not in (1, 2) or not bool(((found == 0) | (found == 1)).all()):
        raise DataError(f"{where} must hold a 0 or 1 for every token, got {found.dtype} {tuple(found.shape)}")
    return found.bool()


def padded(rows: list[dict[str, Tensor]], where: str) -> dict[str, Tensor]:
    """Sequences as one batch, padded at their ends; what is padded counts for nothing."""
    names = set(rows[0])
    if any(set(row) != names for row in rows):
        raise DataError(f"{where}: sequences have different columns, such as {name_list(sorted(map(str, names)))}")
    longest = max(len(row["ids"]) for row in rows)
    fill = {"labels": IGNORE}

    def filled(name: str, tensors: list[Tensor]) -> Tensor:
        table = torch.full((len(tensors), longest), fill.get(name, 0), dtype=tensors[0].dtype)
        for line, tensor in zip(table, tensors):
            line[: len(tensor)] = tensor
        return table

    if "mask" not in names:
        rows = [row | {"mask": torch.ones(len(row["ids"]), dtype=torch.bool)} for row in rows]
    return {name: filled(name, [row[name] for row in rows]) for name in rows[0]}


def assembled(columns: dict[str, Tensor], where: str, vocab_size: int | None) -> Batch:
    """Marked tokens and starts of documents."""
    ids, mask = columns["ids"], columns.get("mask")
    if ids.shape[1] < 2 or not len(ids):
        raise DataError(f"{where} must be token ids [B, T] with T >= 2, got {tuple(ids.shape)}")
    if mask is not None:
        ids = torch.where(mask, ids, 0)  # what stands under padding is never read
    check_token_ids(ids, vocab_size, where)
    counts = torch.ones_like(ids, dtype=torch.bool)
    if "labels" in columns:
        labels = columns["labels"] if mask is None else torch.where(mask, columns["labels"], IGNORE)
        ids, counts = split_labels(ids, labels, where)  # under padding stands what a collator left there: no target
        if ids.shape[1] > columns["ids"].shape[1] and mask is not None:
            mask = torch.cat([mask, mask[:, -1:]], 1)
        check_token_ids(ids, vocab_size, f"{where}, labels")
    if "scored" in columns:
        counts[:, : columns["scored"].shape[1]] &= columns["scored"]
    starts = torch.zeros_like(ids, dtype=torch.bool)
    if mask is not None:
        counts &= mask
        begins = torch.zeros_like(mask)
        begins[:, 1:] = mask[:, 1:] & ~mask[:, :-1]
        gaps = begins & (mask.cumsum(1) > 1)
        if bool(gaps.any()):
            row, place = (int(i) for i in gaps.nonzero()[0])
            raise DataError(
                f"{where}, attention_mask: row {row} has a hole before position {place}; "
                "only padding at the ends is possible"
            )
        starts |= begins
        counts &= ~begins  # nothing but padding stands before it
    if "positions" in columns:
        again = restarts(columns["positions"], columns.get("mask"), where)
        starts[:, : again.shape[1]] |= again
        counts[:, : again.shape[1]] &= ~again
    tokens = torch.where(counts, ids, ~ids)
    reset = starts[:, :-1]
    return tokens, reset if bool(reset.any()) else None


def split_labels(ids: Tensor, labels: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """Ids and which of them are targets. Labels stand at their own token, or one place before it (shifted targets)."""
    counts = labels != IGNORE
    if bool((labels[:, 1:] == ids[:, 1:])[counts[:, 1:]].all()):
        return ids, counts
    if bool((labels[:, :-1] == ids[:, 1:])[counts[:, :-1]].all()):
        last = torch.where(counts[:, -1:], labels[:, -1:], 0)
        return torch.cat([ids, last], 1), torch.cat([torch.ones_like(counts[:, :1]), counts], 1)
    row, place = (int(i) for i in (counts & (labels != ids)).nonzero()[0])
    raise DataError(
        f"{where}, labels: {int(labels[row, place])} at row {row}, position {place}, where the token is "
        f"{int(ids[row, place])}; labels are the ids themselves (or, in (ids, targets), the ids one place on), "
        f"or {IGNORE}"
    )


def restarts(positions: Tensor, mask: Tensor | None, where: str) -> Tensor:
    """Where positions start anew: there a document begins."""
    step = positions[:, 1:] - positions[:, :-1]
    again = torch.zeros_like(positions, dtype=torch.bool)
    again[:, 1:] = positions[:, 1:] == 0
    real = torch.ones_like(again) if mask is None else mask
    odd = (step != 1) & ~again[:, 1:] & real[:, 1:] & real[:, :-1]
    if bool(odd.any()):
        row, place = (int(i) for i in odd.nonzero()[0])
        raise DataError(f"{where}, position_ids: row {row} jumps at position {place + 1}; they count on, or start at 0")
    return again & real
