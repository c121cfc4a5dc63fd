"""Every format against events written by hand or by another reader; cut files, clocks that run backwards; streaming."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

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
