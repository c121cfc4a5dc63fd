"""The order in which nodes are computed, and which edges of a cycle carry what was a step ago."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastsnn_core.errors import FastSNNError


def arrange(
    sources: Mapping[str, Sequence[str]], begin: str, stateful: Mapping[str, bool]
) -> tuple[list[str], set[tuple[str, str]]]:
    """``(names in order, delayed edges)`` of a graph given by its nodes' sources.

    Seen from the input, an edge that closes a cycle is delayed: its target reads what the source gave one step before
    (at the first step what it gives when every neuron is silent). A cycle without a neuron or a delay has no meaning
    over time and is refused. No recursion: a graph may be as deep as it likes.
    """
    targets: dict[str, list[str]] = {name: [] for name in sources}
    for name, rows in sources.items():
        for source in rows:
            targets[source].append(name)
    colour: dict[str, int] = {}
    done: list[str] = []
    back: set[tuple[str, str]] = set()
    path: list[str] = []
    for root in (begin, *sources):
        if root in colour:
            continue
        stack = [(root, iter(targets[root]))]
        colour[root] = 1
        path.append(root)
        while stack:
            node, rest = stack[-1]
            for target in rest:
                if colour.get(target) == 1:
                    ring = path[path.index(target) :]
                    if not any(stateful[n] for n in ring):
                        raise FastSNNError(
                            f"the cycle {' → '.join([*ring, target])} has no neuron or delay in it: no order in time"
                        )
                    back.add((node, target))
                elif target not in colour:
                    colour[target] = 1
                    path.append(target)
                    stack.append((target, iter(targets[target])))
                    break
            else:
                colour[node] = 2
                path.pop()
                done.append(node)
                stack.pop()
    return done[::-1], back
