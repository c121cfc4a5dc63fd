"""Which of several servers has read a prompt's beginning: blocks of its text, and the servers they were sent to."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from hashlib import blake2b
from typing import Any

BLOCK = 64  # characters; prompts that share fewer gain nothing from one cache
MOST_BLOCKS = 512  # of one prompt: 32,768 characters decide
REMEMBERED = 1 << 17  # blocks, the latest: about 20 MB


def prefix_blocks(body: bytes) -> list[int]:
    """Chained hashes of the prompt's blocks: equal numbers, up to the first that differs, for equal beginnings.

    The prompt is `prompt`, `messages` or `input` of a request as JSON; no blocks where there is none.
    """
    try:
        asked = json.loads(body)
        prompt = next((asked[key] for key in ("messages", "prompt", "input") if asked.get(key)), None)
    except (ValueError, AttributeError, RecursionError):
        return []
    if prompt is None:
        return []
    text = (prompt if isinstance(prompt, str) else json.dumps(prompt)).encode("utf-8", "backslashreplace")
    found, before = list[int](), b""
    for at in range(0, min(len(text) // BLOCK, MOST_BLOCKS) * BLOCK, BLOCK):
        before = blake2b(text[at : at + BLOCK], digest_size=8, key=before).digest()
        found.append(int.from_bytes(before, "big"))
    return found


class PrefixHomes:
    """Where blocks were sent: `sent` notes it, `order` ranks servers for a prompt. The latest `most` blocks are kept.

    `slack`: how many more requests than the least busy server may the one that knows a prompt have?
    """

    def __init__(self, slack: int, most: int = REMEMBERED) -> None:
        self.slack, self.most = slack, most
        self.homes: OrderedDict[int, set[Hashable]] = OrderedDict()

    def known(self, blocks: Iterable[int], server: Hashable) -> int:
        """Blocks of the prompt's beginning that `server` has been sent."""
        count = 0
        for block in blocks:
            if server not in self.homes.get(block, ()):
                break
            count += 1
        return count

    def order(self, blocks: list[int], load: dict[Any, int]) -> list[Any]:
        """Servers, the best first: who knows most of the prompt, unless it is much busier; then the least busy.

        `load` is the number of requests at each server.
        """
        least = min(load.values(), default=0)
        known = {one: 0 if busy > least + self.slack else self.known(blocks, one) for one, busy in load.items()}
        return sorted(load, key=lambda one: (-known[one], load[one]))

    def sent(self, blocks: Iterable[int], server: Hashable) -> None:
        """A request with these blocks went to `server`."""
        for block in blocks:
            self.homes.setdefault(block, set()).add(server)
            self.homes.move_to_end(block)
        while len(self.homes) > self.most:
            self.homes.popitem(last=False)

    def keep(self, servers: Iterable[Hashable]) -> None:
        """Only `servers` are left: what the others knew is gone with them."""
        left = set(servers)
        for block, homes in list(self.homes.items()):
            homes &= left
            if not homes:
                del self.homes[block]
