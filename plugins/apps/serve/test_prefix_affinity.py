"""Which replica a prompt is sent to: blocks of its text, who knows them, who is busy."""

from __future__ import annotations

import json
import random
from typing import Any

from fastsnn_serve.http.prefix_affinity import BLOCK, PrefixHomes, prefix_blocks


def blocks_of(**asked: Any) -> list[int]:
    return prefix_blocks(json.dumps(asked).encode())


def test_equal_beginnings_have_equal_blocks() -> None:
    """As many as the texts share, whatever else is asked; chats by their turns, ids by their numbers."""
    draw = random.Random(0)
    for _ in range(100):
        text = "".join(draw.choice("ab é") for _ in range(draw.randint(0, 500)))
        other = text[: draw.randint(0, len(text))] + "x" * draw.randint(0, 200)
        shared = 0
        while shared < min(len(text.encode()), len(other.encode())) and text.encode()[shared] == other.encode()[shared]:
            shared += 1
        a, b = blocks_of(prompt=text), blocks_of(prompt=other, max_tokens=3)
        assert len(a) == len(text.encode()) // BLOCK
        same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        assert same == min(shared // BLOCK, len(a), len(b))
    turns = [{"role": "user", "content": "y" * 200}]
    chat, longer = blocks_of(messages=turns), blocks_of(messages=[*turns, {"role": "assistant", "content": "z"}])
    assert len(chat) >= 3
    assert longer[: len(chat) - 1] == chat[:-1]
    first, second = blocks_of(prompt="x" * BLOCK + "y" * BLOCK), blocks_of(prompt="z" * BLOCK + "y" * BLOCK)
    assert not {*first} & {*second}  # what comes before a block is part of it
    ids = list(range(300))
    assert blocks_of(prompt=[*ids, 7])[:10] == blocks_of(prompt=ids)[:10]
    for raw in (b"", b"{", b"[]", b"3", b"{}", b'{"prompt": ""}', b'{"prompt": null}', b"\xff", b"[" * 10**5):
        assert prefix_blocks(raw) == []


def test_who_knows_most_is_first_unless_it_is_much_busier() -> None:
    homes = PrefixHomes(slack=2)
    assert homes.order([1, 2, 3], {"a": 1, "b": 0}) == ["b", "a"]
    homes.sent([1, 2, 3], "a")
    homes.sent([1, 9], "b")
    assert homes.order([1, 2, 3, 4], {"a": 2, "b": 0}) == ["a", "b"]
    assert homes.order([1, 2, 3, 4], {"a": 3, "b": 0}) == ["b", "a"]
    assert homes.order([1, 9], {"a": 0, "b": 2}) == ["b", "a"]
    assert homes.order([5], {"a": 0, "b": 2}) == ["a", "b"]
    assert homes.order([2, 3], {"a": 0, "b": 0, "c": 0})[0] == "a"
    assert homes.known([7, 2, 3], "a") == 0  # a beginning, not a part
    homes.keep(["b", "c"])
    assert homes.known([1, 2, 3], "a") == 0
    assert homes.known([1], "b") == 1
    assert homes.order([1], {}) == []


def test_memory_of_blocks_is_bounded() -> None:
    """The latest stay."""
    homes = PrefixHomes(slack=1, most=100)
    for i in range(50):
        homes.sent(range(10 * i, 10 * i + 10), "a")
    assert len(homes.homes) == 100
    assert homes.known(range(490, 500), "a") == 10
    assert homes.known(range(10), "a") == 0
