"""Every format against events written by hand or by another reader; cut files, clocks that run backwards; streaming."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fastsnn_core.errors import MissingError
from fastsnn_recordings import (
    EventError,
    EventFolder,
    Events,
    denoised,
    frames,
    frames_by_count,
    pieces,
    read_events,
    stream,
    voxels,
)


@pytest.fixture(scope="session")
def data():
    return Path(os.environ.get("FASTSNN_DATA") or Path(__file__).resolve().parents[4] / "shared" / "data")


def drawn(n=500, size=(20, 30), seed=0, span=40_000):
    draw = np.random.default_rng(seed)
    t = np.sort(draw.integers(0, span, n))
    return Events(t, draw.integers(0, size[1], n), draw.integers(0, size[0], n), draw.integers(0, 2, n), size)


def nmnist(events, path):
    rows = np.zeros((len(events), 5), np.uint8)
    rows[:, 0], rows[:, 1] = events.x, events.y
    rows[:, 2] = events.p << 7 | events.t >> 16
    rows[:, 3], rows[:, 4] = events.t >> 8 & 255, events.t & 255
    path.write_bytes(rows.tobytes())


def evt2(events, path):
    words, high = [], None
    for t, x, y, p in zip(*(getattr(events, c).tolist() for c in "txyp")):
        if t >> 6 != high:
            high = t >> 6
            words.append(8 << 28 | high)
        words.append(p << 28 | (t & 63) << 22 | x << 11 | y)
    path.write_bytes(b"% evt 2.0\n% end\n" + np.array(words, "<u4").tobytes())


def evt3(events, path, vectors=True):
    """Runs of pixels of one time, row and polarity become vectors of 12 and 8."""
    words, state = [], {}
    rows = list(zip(*(getattr(events, c).tolist() for c in "txyp")))
    n = 0
    while n < len(rows):
        t, x, y, p = rows[n]
        if (t >> 12 & 0xFFF) != state.get("high"):
            state = {"high": t >> 12 & 0xFFF}
            words.append(8 << 12 | state["high"])
        if (t & 0xFFF) != state.get("low"):
            state["low"] = t & 0xFFF
            words.append(6 << 12 | state["low"])
        words.append(0 << 12 | y)
        run = [row[1] for row in rows[n : n + 20] if (row[0], row[2], row[3]) == (t, y, p) and x <= row[1] < x + 20]
        same = sum(1 for row in rows[n : n + len(run)] if row[1] in run)
        if vectors and len(run) > 1 and same == len(run) and run == sorted(set(run)):
            words += [3 << 12 | p << 11 | x]
            words.append(4 << 12 | sum(1 << (v - x) for v in run if v < x + 12))
            words.append(5 << 12 | sum(1 << (v - x - 12) for v in run if v >= x + 12))
            n += len(run)
        else:
            words.append(2 << 12 | p << 11 | x)
            n += 1
    path.write_bytes(b"% format EVT3;height=20;width=30\n% end\n" + np.array(words, "<u2").tobytes())


def same(a, b):
    assert len(a) == len(b)
    for name in "txyp":
        assert np.array_equal(getattr(a, name), getattr(b, name)), name


@pytest.mark.parametrize(("write", "ending"), [(nmnist, "bin"), (evt2, "raw"), (evt3, "raw")])
@pytest.mark.parametrize("words", [1 << 20, 7])
def test_a_format_reads_back_whole_and_in_pieces(write, ending, words, tmp_path):
    events = drawn()
    write(events, tmp_path / f"a.{ending}")
    parts = list(pieces(tmp_path / f"a.{ending}", (20, 30), words=words))
    assert len(parts) > 1 or words > 1000
    same(Events.joined(parts), events)


def test_vectors_of_pixels_and_a_clock_that_starts_over(tmp_path):
    x = np.array([3, 5, 14, 16, 17, 22])
    line = Events(np.full(6, (1 << 24) - 90), x, np.full(6, 9), np.ones(6, np.int64), (20, 30))
    later = Events(np.array([(1 << 24) + 5]), np.array([1]), np.array([2]), np.array([0]), (20, 30))
    both = Events.joined([line, later], (20, 30))
    evt3(both, tmp_path / "a.raw")
    for words in (100, 1, 3):
        same(Events.joined(list(pieces(tmp_path / "a.raw", words=words))), both)


def test_a_clock_of_nmnist_that_ran_over_goes_on_in_the_next_piece(tmp_path):
    rows = [[1, 2, 0x80, 0, 9], [0, 240, 0, 0, 0], [3, 4, 0, 0, 7], [0, 240, 0, 0, 0], [5, 6, 0, 0, 1]]
    (tmp_path / "a.bin").write_bytes(np.array(rows, np.uint8).tobytes())
    for words in (1, 2, 100):
        found = Events.joined(list(pieces(tmp_path / "a.bin", words=words)))
        assert found.t.tolist() == [9, 8192 + 7, 16384 + 1]
        assert found.p.tolist() == [1, 0, 0]


def test_what_stands_above_a_vector_of_eight_is_no_pixel(tmp_path):
    words = np.array([8 << 12, 6 << 12 | 5, 2, 3 << 12 | 1 << 11 | 10, 5 << 12 | 0xF00 | 0b101], "<u2")
    (tmp_path / "a.raw").write_bytes(b"% evt 3.0\n% end\n" + words.tobytes())
    assert read_events(tmp_path / "a.raw").x.tolist() == [10, 12]


def test_the_recording_of_nmnist_is_what_tonic_reads(data):
    path = data / "events" / "tonic_sample_nmnist.bin"
    if not path.is_file():
        pytest.skip("no N-MNIST recording here")
    found = read_events(path, (34, 34))
    assert len(found) == 4325
    assert (int(found.t[0]), int(found.x[0]), int(found.y[0]), int(found.p[0])) == (654, 7, 15, 1)
    tonic = pytest.importorskip("tonic")
    theirs = tonic.io.read_mnist_file(str(path), dtype=np.dtype([("x", int), ("y", int), ("t", int), ("p", int)]))
    for name in "txyp":
        assert np.array_equal(getattr(found, name), theirs[name]), name


def test_arrays_and_hdf5(tmp_path):
    events = drawn()
    np.savez(tmp_path / "a.npz", **{name: getattr(events, name) for name in "txyp"})
    table = np.zeros(len(events), [("x", "i4"), ("y", "i4"), ("ts", "i8"), ("polarity", "u1")])
    for name, column in zip(("ts", "x", "y", "polarity"), "txyp"):
        table[name] = getattr(events, column)
    np.save(tmp_path / "b.npy", table)
    for name in ("a.npz", "b.npy"):
        same(read_events(tmp_path / name), events)
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        for name in "txyp":
            file[f"events/{name}"] = getattr(events, name)
    same(read_events(tmp_path / "c.h5"), events)


# -- what is refused ----------------------------------------------------------------------------------------------


def test_broken_recordings_are_named(tmp_path):
    events = drawn()
    for write, name, says in (
        (nmnist, "a.bin", r"a.bin is cut off: event 99 has 2 of 5 bytes"),
        (evt2, "a.raw", r"a.raw is cut off: word \d+ has 1 of 4 bytes"),
        (evt3, "b.raw", r"b.raw is cut off: word \d+ has 1 of 2 bytes"),
    ):
        write(events, tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: 497 if write is nmnist else -3 if write is evt2 else -1])
        with pytest.raises(EventError, match=says):
            read_events(tmp_path / name)
    late = events.t.copy()
    late[77] = late[78] + 500
    odd = Events(late, events.x, events.y, events.p, events.size)
    nmnist(odd, tmp_path / "c.bin")
    with pytest.raises(EventError, match=r"c.bin: the time of event 78 runs backwards"):
        read_events(tmp_path / "c.bin")
    with pytest.raises(EventError, match=r"event 78 runs backwards"):
        list(pieces(tmp_path / "c.bin", words=78))  # across a cut
    assert np.all(np.diff(read_events(tmp_path / "c.bin", sort=True).t) >= 0)
    with pytest.raises(EventError, match=r"event \d+ is at \(\d+, \d+\), outside of 10 × 5 pixels"):
        read_events(tmp_path / "c.bin", (5, 10), sort=True)
    (tmp_path / "d.raw").write_bytes(b"% evt 2.1\n% end\n" + bytes(8))
    with pytest.raises(EventError, match=r"format that is not read .*evt 2.1"):
        read_events(tmp_path / "d.raw")
    np.savez(tmp_path / "e.npz", t=[1], x=[1], y=[1])
    with pytest.raises(EventError, match=r"no column 'p'; it has t, x, y"):
        read_events(tmp_path / "e.npz")
    (tmp_path / "f" / "cat").mkdir(parents=True)
    with pytest.raises(EventError, match=r"cat holds no recording"):
        EventFolder(tmp_path / "f", 4, (20, 30))
    (tmp_path / "f" / "cat" / "a.bin").write_bytes(bytes(7))
    with pytest.raises(EventError, match=r"sample 0: .*a.bin is cut off"):
        EventFolder(tmp_path / "f", 4, (20, 30))[0]


# -- frames and streams -------------------------------------------------------------------------------------------


def test_frames_and_voxels_by_hand():
    events = Events(*(np.array(c) for c in ([0, 9, 10, 39], [1, 1, 0, 2], [0, 0, 1, 1], [1, 1, 0, 1])), (2, 3))
    by_time = frames(events, window=10)
    assert by_time.shape == (4, 2, 2, 3)
    assert by_time[0, 1, 0, 1] == 2
    assert by_time[1, 0, 1, 0] == 1
    assert by_time[3, 1, 1, 2] == 1
    assert by_time.sum() == 4
    assert torch.equal(frames(events, steps=4), by_time)
    assert frames_by_count(events, 3).shape == (1, 2, 2, 3)
    grid = voxels(events, 3)
    assert grid.sum() == pytest.approx(2.0)  # three brighter, one darker
    assert grid[2, 1, 2] == 1
    assert grid[0, 0, 1] == pytest.approx(1 + 1 - 9 * 2 / 39)
    noise = Events(np.array([0, 100, 50_000]), np.array([0, 1, 2]), np.array([0, 1, 1]), np.ones(3), (2, 3))
    assert denoised(noise).t.tolist() == [100]


class Sums(nn.Module):
    """A network with a state: the sum of all events so far."""

    def forward(self, x, state=None, *, return_state=False):
        start = torch.zeros(len(x)) if state is None else state
        y = start[:, None] + x.flatten(2).sum(2).cumsum(1)
        return y[..., None], y[:, -1]


@pytest.mark.parametrize("words", [1 << 20, 11])
@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_a_stream_is_the_whole_recording(words, at_once, tmp_path):
    events = drawn(span=9_000)
    gap = Events(events.t + (events.t > 4_000) * 5_000, events.x, events.y, events.p, events.size)
    nmnist(gap, tmp_path / "a.bin")
    found = list(stream(Sums(), pieces(tmp_path / "a.bin", (20, 30), words=words), 1_000, (20, 30), at_once=at_once))
    whole = frames(gap, window=1_000)
    ends = [int(gap.t[0]) + 1_000 * (n + 1) for n in range(len(whole))]
    assert [t for t, _ in found] == ends
    assert torch.equal(torch.stack([y[0] for _, y in found]), whole.flatten(1).sum(1).cumsum(0))


def test_a_folder_of_recordings_is_a_dataset(tmp_path):
    for n, name in enumerate(("left", "right")):
        (tmp_path / name).mkdir()
        for i in range(2):
            nmnist(drawn(seed=10 * n + i), tmp_path / name / f"{i}.bin")
    data = EventFolder(tmp_path, 5, (20, 30))
    assert len(data) == 4
    assert data.classes == ["left", "right"]
    assert data.targets.tolist() == [0, 0, 1, 1]
    x, y = data[3]
    assert x.shape == (5, 2, 20, 30)
    assert x.sum() == 500
    assert y == 1


def test_a_crop_has_its_corner_as_the_origin():
    whole = drawn()
    part = whole.cropped(4, 7, 10, 8)
    assert part.size == (8, 10)
    assert torch.equal(frames(part, steps=1)[0], frames(whole, steps=1)[0][:, 7:15, 4:14])


def event_stream_file(path, events):
    """As the library `event_stream` writes it (compared with it where it is installed): rows from the bottom."""
    raw, last = bytearray(b"Event Stream\x02\x00\x00\x01" + np.array([30, 20], "<u2").tobytes()), 0
    for t, x, y, p in zip(events.t.tolist(), events.x.tolist(), events.y.tolist(), events.p.tolist()):
        over, rest = divmod(t - last, 127)
        raw += b"\xff" * over + bytes([rest << 1 | p]) + np.array([x, 19 - y], "<u2").tobytes()
        last = t
    path.write_bytes(bytes(raw))


def test_event_stream_reads_back_and_says_where_it_is_cut(tmp_path):
    library = pytest.importorskip("event_stream", reason="event_stream is not installed")
    events, path = drawn(), tmp_path / "a.es"
    event_stream_file(path, events)
    same(read_events(path, (20, 30)), events)
    table = np.zeros(len(events), library.dvs_dtype)
    table["t"], table["x"], table["y"], table["on"] = events.t, events.x, 19 - events.y, events.p
    with library.Encoder(str(tmp_path / "b.es"), "dvs", 30, 20) as file:
        file.write(table)
    assert (tmp_path / "b.es").read_bytes() == path.read_bytes()
    (tmp_path / "cut.es").write_bytes(path.read_bytes()[:-3])
    with pytest.raises(EventError, match=f"cut off: . bytes of event {len(events) - 1} stand"):
        read_events(tmp_path / "cut.es")
    (tmp_path / "odd.es").write_bytes(b"nonsense" * 9)
    with pytest.raises(EventError, match=r"odd.es is not read by event_stream"):
        read_events(tmp_path / "odd.es")


class Aedat:
    """What `aedat.Decoder` gives of a file with frames and two streams of events."""

    def __init__(self, path):
        if b"AEDAT4" not in Path(path).read_bytes():
            raise RuntimeError("the file does not contain AEDAT4 data (wrong magic number)")

    def id_to_stream(self):
        return {0: {"type": "frame"}, 1: {"type": "events", "width": 30, "height": 20}, 2: {"type": "events"}}

    def __iter__(self):
        kind = [("t", "<u8"), ("x", "<u2"), ("y", "<u2"), ("on", "?")]
        first = np.array([(5, 1, 2, True), (7, 3, 4, False)], kind)
        yield {"stream_id": 0, "frame": {}}
        yield {"stream_id": 1, "events": first}
        yield {"stream_id": 2, "events": first}
        yield {"stream_id": 1, "events": np.array([(6, 1, 1, True)], kind)}


def test_aedat_is_read_by_its_library_and_checked_as_every_other(tmp_path, monkeypatch):
    path = tmp_path / "a.aedat4"
    path.write_bytes(b"#!AER-DAT4.0")
    monkeypatch.setitem(sys.modules, "aedat", None)
    with pytest.raises(MissingError, match="pip install aedat"):
        read_events(path)
    monkeypatch.setitem(sys.modules, "aedat", SimpleNamespace(Decoder=Aedat))
    with pytest.raises(EventError, match="wrong magic number"):
        read_events(path)
    path.write_bytes(b"AEDAT4")
    with pytest.raises(EventError, match="the time of event 2 runs backwards: 6 µs after 7 µs"):
        read_events(path)
    found = read_events(path, sort=True)
    assert [found.t.tolist(), found.x.tolist(), found.y.tolist(), found.p.tolist()] == [
        [5, 6, 7], [1, 1, 3], [2, 1, 4], [1, 1, 0],
    ]  # fmt: skip
