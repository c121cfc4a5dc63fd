"""The prefix cache: snapshots of the state after token prefixes, so that a shared prefix is prefilled only once.

A radix tree over token ids; nodes are places where prompts diverge or a snapshot is stored. Snapshots are immutable:
resuming works on a copy. A resumed prompt gets bit for bit the result of a prefill from scratch:

- *exact* models (integer arithmetic): the result does not depend on how a prompt is split into chunks, so a snapshot of
  any length serves every prompt it is a prefix of. Where a prompt diverges from a cached one, a snapshot is taken for
  later prompts.
- float models: rounding depends on the chunk boundaries and can change spikes. Every prompt, cached or not, is split at
  multiples of one chunk length, and only snapshots at these boundaries serve other prompts; a snapshot at the end of a
  prompt serves only the identical prompt.
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
    """A state, the next token's logits ``[1,1,V]`` if known, and the size of both in bytes."""

    state: Any
    logits: Tensor | None
    nbytes: int


class PrefixNode:
    """A node of the radix tree: the tokens on the edge from its parent, and possibly a snapshot."""

    __slots__ = ("children", "ids", "length", "parent", "snapshot")

    def __init__(self, ids: array[int], parent: PrefixNode | None) -> None:
        self.ids, self.parent = ids, parent
        self.children: dict[int, PrefixNode] = {}
        self.snapshot: Snapshot | None = None
        self.length: int = len(ids) + (0 if parent is None else parent.length)


def copied(state: Any) -> Any:
    """A deep copy of `state` with the same strides; needed because a model may update its state in place."""
    return tree_map(torch.Tensor.clone, state)


def worth_keeping(k: int, n: int) -> bool:
    """Is boundary k of n cached? The last, every power of two, and about eight to sixteen evenly spaced ones."""
    spacing = 1 << max(0, n.bit_length() - 4)
    return k == n or k & (k - 1) == 0 or k % spacing == 0


class PrefixCache:
    """Snapshots within a budget in bytes, with LRU eviction. Not thread-safe: only the engine's thread uses it."""

    def __init__(self, budget: int, chunk: int, exact: bool = False) -> None:
        self.budget, self.chunk, self.exact = budget, chunk, exact
        self.root = PrefixNode(array("q"), None)
        self.recent: OrderedDict[PrefixNode, None] = OrderedDict()  # nodes with a snapshot, least recently used first
        self.nbytes = 0

    def walk(self, ids: array[int]) -> tuple[list[PrefixNode], int]:
        """The nodes on the path of `ids` whose edges match completely, and the number of tokens matched."""
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
        """``(tokens, snapshot)`` of the longest usable prefix of `ids`; ``(0, None)`` if there is none.

        A match of all of `ids` is usable only if the snapshot has the next token's logits.
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
        """Length of the longest prefix of `ids` in the tree, with or without a snapshot there."""
        return self.walk(array("q", ids))[1]

    def holds(self, ids: list[int]) -> bool:
        """Is there a snapshot after exactly `ids`?"""
        path, _ = self.walk(array("q", ids))
        return bool(path) and path[-1].length == len(ids) and path[-1].snapshot is not None

    def put(self, ids: list[int], state: Any, logits: Tensor | None = None) -> bool:
        """Store a copy of the state after `ids`; False, storing nothing, if it alone exceeds the budget."""
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
        """The node for `ids`, created if missing."""
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
        """Split the edge to `below` after `at` tokens; returns the new node in between."""
        assert below.parent is not None
        middle = PrefixNode(below.ids[:at], below.parent)
        below.parent.children[below.ids[0]] = middle
        below.ids, below.parent = below.ids[at:], middle
        middle.children[below.ids[0]] = below
        return middle

    def drop(self, node: PrefixNode) -> None:
        """Evict a snapshot and prune the branches that lead to no other."""
        del self.recent[node]
        assert node.snapshot is not None
        self.nbytes -= node.snapshot.nbytes
        node.snapshot = None
        while node.parent is not None and node.snapshot is None and not node.children:
            del node.parent.children[node.ids[0]]
            self.nbytes -= ID_BYTES * len(node.ids)
            node = node.parent
