"""A long stream moves into the fused step in a thread: the same tokens, none lost, and errors are the caller's."""

from __future__ import annotations

import contextlib
import threading

import pytest
import torch
from torch import nn

from fastsnn_core.errors import FastSNNError
from fastsnn_text import generate, take_over
from fastsnn_text.generate import Sampling, generate_ids

SIZE, GREEDY = 23, Sampling(temperature=0.0)


def logits_after(tokens):
    """Whatever hangs on every token and its place."""
    found = sum((i + 3) * (t + 1) * (t + 5) for i, t in enumerate(tokens)) % SIZE
    return torch.nn.functional.one_hot(torch.tensor(found), SIZE).float()


class Stream:
    """What `fast` gives: it has read the tokens of the state."""

    most_read = 1 << 30

    def __init__(self, tokens):
        self.tokens, self.begun, self.steps = list(tokens), len(tokens), 0
        self.pieces, self.readers = [], []

    def read(self, tokens):
        self.pieces.append(list(tokens))
        self.readers.append(threading.current_thread())
        self.tokens += tokens
        return logits_after(self.tokens)

    def step(self, token):
        self.steps += 1
        self.tokens.append(token)
        return logits_after(self.tokens)


def movers():
    return [t for t in threading.enumerate() if isinstance(t, take_over.TakeOver)]


class Network(nn.Module):
    """Its state is what it has read. `fast` waits for `go`, or fails, or gives None `refusals` times."""

    def __init__(self, refusals=0, error=None):
        super().__init__()
        self.one = nn.Parameter(torch.zeros(1))
        self.go, self.refusals, self.error = threading.Event(), refusals, error
        self.stream, self.asked, self.giving_way = None, [], []

    @contextlib.contextmanager
    def in_background(self):
        self.giving_way.append(threading.current_thread())
        yield
        self.giving_way.pop()

    def forward(self, ids, state=None, return_state=False, last=False):
        tokens = [*(state or ()), *ids[0].tolist()]
        if len(tokens) > 27:  # some tokens later
            self.go.set()
            for mover in movers():
                mover.join(60)
        return logits_after(tokens)[None, None], tuple(tokens)

    def fast(self, state, wait=True):
        if state is None:
            return None
        self.asked.append(len(state))
        self.where = threading.current_thread()
        if hasattr(self, "in_background"):
            assert self.giving_way == ([] if self.where is threading.main_thread() else [self.where])
        if self.where is not threading.main_thread():
            assert self.go.wait(60)
        if self.error:
            raise self.error
        if self.refusals:
            self.refusals -= 1
            return None
        self.stream = Stream(state)
        return self.stream


@pytest.fixture(autouse=True)
def long(monkeypatch):
    monkeypatch.setattr(generate, "LONG", 20)
    monkeypatch.setattr(generate, "AGAIN", 4)


def tokens_of(network, n=60):
    alone = Network()
    alone.fast = None
    wanted = list(generate_ids(alone, [1, 2, 3], n, GREEDY))
    assert list(generate_ids(network, [1, 2, 3], n, GREEDY)) == wanted
    return [1, 2, 3, *wanted]


def test_tokens_that_come_meanwhile_are_read_by_the_stream():
    network = Network(refusals=6)  # which are asked in the main thread, while the stream is short
    tokens = tokens_of(network)
    stream = network.stream
    assert network.where is not threading.main_thread()
    missed = [token for piece in stream.pieces for token in piece]
    assert len(missed) == 6
    assert missed == tokens[stream.begun : stream.begun + len(missed)]
    assert stream.readers[0] is network.where
    assert stream.steps
    assert tokens[: len(stream.tokens)] == stream.tokens


def test_models_that_say_nothing_of_giving_way_move_as_well(monkeypatch):
    monkeypatch.delattr(Network, "in_background")
    network = Network()
    found = list(generate_ids(network, list(range(21)), 30, GREEDY))
    assert network.where is not threading.main_thread()
    assert network.stream.tokens[21:] == found[:-1]


def test_a_short_stream_moves_at_once():
    network = Network()
    tokens_of(network)
    assert network.where is threading.main_thread()
    assert not network.stream.pieces


def test_where_there_is_none_the_model_goes_on_and_asks_again():
    network = Network(refusals=8)
    tokens_of(network)
    late = [n for n in network.asked if n >= 20]
    assert len(late) > 2
    assert network.stream is not None


def test_what_goes_wrong_in_the_thread_is_raised():
    network = Network(refusals=0, error=None)
    found = generate_ids(network, [*range(19), 1, 2], 60, GREEDY)
    network.error = FastSNNError("no such stream")
    with pytest.raises(FastSNNError, match="no such stream"):
        list(found)


def test_a_caller_that_leaves_is_not_waited_for():
    network = Network()
    found = generate_ids(network, list(range(21)), 60, GREEDY)
    for _ in range(3):
        next(found)
    found.close()
    assert movers()
    assert all(mover.daemon for mover in movers())
    network.go.set()
    for mover in movers():
        mover.join(60)
