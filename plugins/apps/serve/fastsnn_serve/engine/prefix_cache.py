"""The prefix cache: states of streams after known tokens, so that a shared beginning is read only once.

A radix tree over token ids: an edge carries the tokens between two places where prompts part or a state is kept. A
state is a snapshot that nobody writes into; who resumes from it works on a copy. What is resumed is bit for bit what a
fresh reading would have computed:

- *exact* models (integer arithmetic): a reading has the same bits wherever it is cut, so a snapshot of any length
  serves every prompt that goes on from it; where a prompt parts from a known one, a snapshot is taken for the third.
- float models: rounding depends on how a prompt is cut, and rounding decides spikes. Every prompt is cut at multiples
  of one chunk length, cached or not, and only snapshots at such a place serve others; one at a prompt's end serves the
  very same prompt.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from typing import Any

import attrs
import torch
from torch import Tensor

from fastsnn_core.state import nbytes, tree_map
from fastsnn_text.text_stream import common_prefix

ID_BYTES = 8


@attrs.frozen(eq=False)
class Snapshot:
    """A state, the next token's logits where they are known, and the bytes of both."""

    state: Any
    logits: Tensor | None
    nbytes: int


class PrefixNode:
    """A place in the tree: the tokens from its parent to it, and perhaps the state there."""

    __slots__ = ("children", "ids", "length", "parent", "snapshot")

    def __init__(self, ids: array[int], parent: PrefixNode | None) -> None:
        self.ids, self.parent = ids, parent
        self.children: dict[int, PrefixNode] = {}
        self.snapshot: Snapshot | None = None
        self.length: int = len(ids) + (0 if parent is None else parent.length)


def copied(state: Any) -> Any:
    """A state that shares no memory with `state` (a model may write into its own), with the same strides."""
    return tree_map(torch.Tensor.clone, state)


def worth_keeping(k: int, n: int) -> bool:
    """Is boundary k of n kept? The last, every power of two, and about eight to sixteen evenly spaced ones."""
    spacing = 1 << max(0, n.bit_length() - 4)
    return k == n or k & (k - 1) == 0 or k % spacing == 0


class PrefixCache:
    """Snapshots under a budget of bytes; the least recently used goes first. Not locked: one thread owns it."""

    def __init__(self, budget: int, chunk: int, exact: bool = False) -> None:
        self.budget, self.chunk, self.exact = budget, chunk, exact
        self.root = PrefixNode(array("q"), None)
        self.recent: OrderedDict[PrefixNode, None] = (
            OrderedDict()
        )  # nodes with a snapshot, the least recently used first
        self.nbytes = 0

    def walk(self, ids: array[int]) -> tuple[list[PrefixNode], int]:
        """The nodes that `ids` go through whole, and how many tokens of `ids` the tree knows."""
        node, at, path = self.root, 0, list[PrefixNode]()
        while at < len(ids):
            child = node.children.get(ids[at])
            if child is None:
                break
            same = common_prefix(child.ids, ids[at:])
            at += same
            if same < len(child.ids):
                break
            path.append(child)
            node = child
        return path, at

    def find(self, ids: list[int]) -> tuple[int, Snapshot | None]:
        """``(tokens, snapshot)`` of the longest usable prefix of `ids`; ``(0, None)`` where there is none.

        All of `ids` counts only where the snapshot knows the logits that follow.
        """
        path, _ = self.walk(array("q", ids))
        for node in reversed(path):
            hit = node.snapshot
            if hit is None:
                continue
            whole = node.length == len(ids)
            if hit.logits is not None if whole else self.exact or node.length % self.chunk == 0:
                self.recent.move_to_end(node)
                return node.length, hit
        return 0, None

    def shared(self, ids: list[int]) -> int:
        """How many tokens `ids` share with what was kept, a snapshot there or not."""
        return self.walk(array("q", ids))[1]

    def holds(self, ids: list[int]) -> bool:
        """Is there a snapshot after just these tokens?"""
        path, _ = self.walk(array("q", ids))
        return bool(path) and path[-1].length == len(ids) and path[-1].snapshot is not None

    def put(self, ids: list[int], state: Any, logits: Tensor | None = None) -> bool:
        """Keep a copy of the state after `ids`; what alone is larger than the budget is not kept: False."""
        size = nbytes(state) + (0 if logits is None else nbytes(logits))
        if size + ID_BYTES * len(ids) > self.budget:
            return False
        node = self.place(array("q", ids))
        old = node.snapshot
        if old is not None:
            self.recent.move_to_end(node)
            if old.logits is not None or logits is None:
                return True
            self.nbytes -= old.nbytes
        node.snapshot = Snapshot(copied(state), None if logits is None else logits.clone(), size)
        self.nbytes += size
        self.recent[node] = None
        while self.nbytes > self.budget:
            self.drop(next(iter(self.recent)))
        return True

    def place(self, ids: array[int]) -> PrefixNode:
        """The node after `ids`, made where there is none."""
        node, at = self.root, 0
        while at < len(ids):
            child = node.children.get(ids[at])
            if child is None:
                child = PrefixNode(ids[at:], node)
                node.children[ids[at]] = child
                self.nbytes += ID_BYTES * len(child.ids)
            elif (same := common_prefix(child.ids, ids[at:])) < len(child.ids):
                child = self.split(child, same)
            at, node = at + len(child.ids), child
        return node

    def split(self, below: PrefixNode, at: int) -> PrefixNode:
        """A node in the middle of an edge."""
        assert below.parent is not None
        middle = PrefixNode(below.ids[:at], below.parent)
        below.parent.children[below.ids[0]] = middle
        below.ids, below.parent = below.ids[at:], middle
        middle.children[below.ids[0]] = below
        return middle

    def drop(self, node: PrefixNode) -> None:
        """Forget a snapshot, and the tokens that lead to no other."""
        del self.recent[node]
        assert node.snapshot is not None
        self.nbytes -= node.snapshot.nbytes
        node.snapshot = None
        while node.parent is not None and node.snapshot is None and not node.children:
            del node.parent.children[node.ids[0]]
            self.nbytes -= ID_BYTES * len(node.ids)
            node = node.parent
