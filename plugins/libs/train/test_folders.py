"""Folders of data: the same rows and splits as `datasets.load_dataset`; what is left out is said."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
import tracemalloc
import zipfile

import pytest

from fastsnn_train import DataError, load_data
from fastsnn_train.data import sources
from fastsnn_train.data.compression import open_decompressed
from fastsnn_train.data.documents import Omitted
from fastsnn_train.data.folders import matches_pattern, splits_of

NAMES = (
    *("train", "test", "valid", "validation", "dev", "val", "eval", "evaluation", "testing", "training"),
    *(
        "poems",
        "contest",
        "latest news",
        "constraints",
        "device",
        "my-valid_01",
        "train-00",
        "a.train.b",
        "Train",
        "TEST",
    ),
    *("test2", "pretrain", "x_test", "2test", "dev.set", ".hidden", "sub/train/a", "sub/test/b", "train/a", "test/a"),
    *("valid/c", "data/train-00000-of-00002", "data/odd-00000-of-00001", "data/test-00000-of-00001", "__x/train"),
    *(".git/train", "README", "books/one", "mytrain/a", "my-train/a", "evaluation-set/z", "train.2020/q"),
)
ENDINGS = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".csv.xz", ".json.bz2")


def write(path, rows):
    """A table of one column of text in the format of the path's endings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind, _, packed = path.name[path.name.index(next(e for e in ENDINGS if path.name.endswith(e))) + 1 :].partition(".")
    if kind == "parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.table({"text": rows}), path)
        return
    comma = "\t" if kind == "tsv" else ","
    text = {
        "json": json.dumps([{"text": row} for row in rows]),
        "csv": "".join(
            f"{comma.join(cells)}\n" for cells in [("id", "text"), *((str(i), r) for i, r in enumerate(rows))]
        ),
    }
    text["tsv"] = text["csv"]
    raw = text.get(kind, "".join(json.dumps({"text": row}) + "\n" for row in rows)).encode()
    path.write_bytes({"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}.get(packed, bytes)(raw))


@pytest.mark.parametrize("seed", range(3))
def test_splits_and_rows_are_those_of_the_datasets_library(seed, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    rng, compared = random.Random(seed), 0
    for n in range(14):
        folder, ending, mixed = tmp_path / f"{seed}-{n}", rng.choice(ENDINGS), rng.random() < 0.25
        for name in rng.sample(NAMES, rng.randint(1, 5)):
            own = rng.choice(ENDINGS) if mixed else ending
            write(folder / (name + own), [f"{name}{own} row {i}" for i in range(2)])
        try:
            known = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
        except Exception:
            continue  # it refuses other formats in other splits; we read them
        if "train" not in known:
            continue  # our own rule: the files of no split, else the held-out ones
        compared += 1
        train = sorted(known["train"]["text"])
        held = next((sorted(known[s]["text"]) for s in ("validation", "test") if s in known), [])
        corpus = sources.documents(folder)
        assert (sorted(corpus.train), sorted(corpus.held_out)) == (train, [t for t in held if t not in train]), (
            corpus.note
        )
    assert compared > 5


def test_a_word_decides_only_where_it_is_whole(tmp_path):
    for name in ("constraints.txt", "device.txt", "latest.txt", "my_test.txt"):
        (tmp_path / name).write_text(name)
    found = splits_of(tmp_path, Omitted())
    assert {split: [f.name for f in files] for split, files in found.items()} == {
        "": ["constraints.txt", "device.txt", "latest.txt"],
        "test": ["my_test.txt"],
    }
    corpus = sources.documents(tmp_path)
    assert (sorted(corpus.train), list(corpus.held_out)) == (found_names(found[""]), ["my_test.txt"])


def found_names(files):
    """Names of files."""
    return [f.name for f in files]


def test_what_is_left_out_is_said_and_counted(tmp_path, caplog):
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n{"text": null}\n{"text": ""}\n{"other": 1}\n')
    (tmp_path / "poems.jsonl").write_text('{"text": "b"}\n')
    (tmp_path / "LICENSE").write_text("all rights")
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    data = load_data(tmp_path, seq_len=1, holdout=0.0)
    assert data.train.tokens.tolist() == [97, 256]
    for said in (
        *("3 files", "LICENSE: about the data", "photo.png: unknown ending", "poems.jsonl: of no split"),
        "3 of 4 rows without text (2 null, 1 empty)",
    ):
        assert said in data.note
        assert said in caplog.text


def test_the_front_matter_of_a_readme_names_the_splits(tmp_path):
    pytest.importorskip("yaml")
    for name in ("one.jsonl", "two.jsonl", "sub/three.jsonl"):
        write(tmp_path / name, [name])
    head = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: ['*.jsonl']\n"
    (tmp_path / "README.md").write_text(head + "  - split: test\n    path: sub/*\n---\n# A card\n")
    corpus = sources.documents(tmp_path)
    assert (sorted(corpus.train), list(corpus.held_out)) == (["one.jsonl", "two.jsonl"], ["sub/three.jsonl"])
    (tmp_path / "README.md").write_text(head.replace("'*.jsonl'", "none.csv") + "---\n")
    with pytest.raises(DataError, match=r"names none\.csv as split train; there is no such file"):
        sources.documents(tmp_path)


def test_patterns():
    assert matches_pattern("a/b/c.txt", "**/*.txt")
    assert matches_pattern("c.txt", "**/*.txt")
    assert matches_pattern("a/x1.txt", "a/x[0-9].txt")
    assert not matches_pattern("a/b/c.txt", "a/*.txt")


def test_saved_datasets_are_loaded_as_such(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_dict({"text": ["alpha", "beta"]})
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows, "validation": rows.select([1])}).save_to_disk(str(tmp_path / "two"))
    assert list(sources.documents(tmp_path / "one").train) == ["alpha", "beta"]
    two = sources.documents(tmp_path / "two")
    assert (list(two.train), list(two.held_out)) == (["alpha", "beta"], ["beta"])


def test_archives_patterns_and_lists_of_paths(tmp_path):
    write(tmp_path / "in/train.jsonl", ["a"])
    write(tmp_path / "in/test.jsonl", ["b"])
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in ("train.jsonl", "test.jsonl"):
            archive.write(tmp_path / "in" / name, name)
        archive.writestr("__MACOSX/._train.jsonl", "junk")
    packed = sources.documents(tmp_path / "all.zip")
    assert (list(packed.train), list(packed.held_out)) == (["a"], ["b"])
    assert sorted(sources.documents(str(tmp_path / "in/*.jsonl")).train) == ["a", "b"]
    assert list(sources.documents([tmp_path / "in/test.jsonl"]).train) == ["b"]
    with pytest.raises(DataError, match="are names of files; give Path objects"):
        sources.documents([str(tmp_path / "in/test.jsonl")])
    with pytest.raises(DataError, match="no file matches"):
        sources.documents(str(tmp_path / "*.csv"))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("ending", [".jsonl", ".JSONL", ".ndjson", ".json", ".csv", ".tsv", ".txt"])
@pytest.mark.parametrize("ends", [b"\n", b"\r\n"])
def test_byte_order_marks_and_line_ends_are_no_part_of_the_data(mark, ending, ends, tmp_path):
    texts = ["first", "ümlaut"]
    kind = ending.lower()
    if kind == ".txt":
        raw, texts = "ümlaut\nsecond\n".encode(), ["ümlaut\nsecond\n"]
    elif kind in (".csv", ".tsv"):
        raw = "\n".join(["text", *texts, ""]).encode()
    else:
        rows = [json.dumps({"text": t}, ensure_ascii=False) for t in texts]
        raw = ("[" + ",\n".join(rows) + "]" if kind == ".json" else "\n".join([*rows, ""])).encode()
    (tmp_path / f"a{ending}").write_bytes(mark + raw.replace(b"\n", ends))
    assert list(sources.documents(tmp_path / f"a{ending}").train) == texts


def test_zstd_frames_are_read_to_their_end_or_refused(tmp_path):
    """zstandard's own reader ends without a word where a frame is cut off."""
    zstandard = pytest.importorskip("zstandard", reason="zstandard is not installed")
    text = "".join(f"line {i}\n" for i in range(9000))
    frame, path = zstandard.compress(text.encode()), tmp_path / "a.txt.zst"
    path.write_bytes(frame + zstandard.compress(b"tail"))
    assert list(sources.documents(path).train) == [text + "tail"]
    for cut in (frame[:4], frame[: len(frame) // 2], frame[:-1], frame + frame[:9]):
        path.write_bytes(cut)
        with pytest.raises(DataError, match=r"a\.txt\.zst is damaged or cut off: its last zstd frame has no end"):
            list(sources.documents(path).train)


def test_zstd_is_unpacked_in_bounded_memory(tmp_path):
    """A few kilobytes may hold any number of equal bytes."""
    zstandard = pytest.importorskip("zstandard", reason="zstandard is not installed")
    path, size = tmp_path / "a.txt.zst", 1 << 29
    packer = zstandard.ZstdCompressor().compressobj()
    path.write_bytes(b"".join(packer.compress(b"a" * (1 << 20)) for _ in range(size >> 20)) + packer.flush())
    assert path.stat().st_size < size / 1000
    tracemalloc.start()
    try:
        with open_decompressed(path) as stream:
            total = sum(len(piece) for piece in iter(lambda: stream.read(1 << 16), b""))
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert total == size


def test_text_of_another_encoding_is_named_with_its_place(tmp_path):
    (tmp_path / "a.txt").write_bytes("Größe".encode("utf-16"))
    assert list(sources.documents(tmp_path / "a.txt").train) == ["Größe"]
    (tmp_path / "d.txt").write_bytes(("Some words. " * 30).encode("utf-16-le"))
    with pytest.raises(DataError, match=r"d\.txt is no text: 50% of its bytes are NUL; UTF-16 without"):
        list(sources.documents(tmp_path / "d.txt").train)
    (tmp_path / "e.txt").write_bytes(b"a NUL \0 may slip in" + b" once" * 20)
    assert len(list(sources.documents(tmp_path / "e.txt").train)) == 1
    (tmp_path / "b.txt").write_bytes(b"x" * (1 << 20) + "é".encode()[:1] + b"abc")
    with pytest.raises(DataError, match=r"b\.txt is no UTF-8 text: byte 0xc3 at offset 1,048,576"):
        list(sources.documents(tmp_path / "b.txt").train)
    (tmp_path / "c.csv").write_bytes(b"text\nfine\n" + "café\n".encode("latin1"))
    with pytest.raises(DataError, match=r"c\.csv is no UTF-8 text: byte 0xe9 at offset 13"):
        list(sources.documents(tmp_path / "c.csv").train)


@pytest.mark.parametrize(
    ("name", "raw", "says"),
    [
        ("page.html", b"<p>x</p>", r"page\.html has no known ending; known are \.txt"),
        ("corpus", b"x", "no known ending"),
        ("a.jsonl", b"version https://git-lfs.example/spec/v1\noid sha256:0\n", "a git-lfs pointer.*git lfs pull"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}' * 99, mtime=0)[:40], "damaged or cut off"),
        ("a.csv", b"id,text\n1,a,b\n", r"a\.csv:2: 3 cells, the header has 2"),
        ("a.csv", b"id;text\n1;a\n", r"no text field 'text'; they have id;text"),
        ("a.csv", b'text\n"open\n', r"a\.csv:2: no CSV"),
        ("a.parquet", b"PAR1 no", "no parquet file, or damaged"),
        ("a.jsonl", b'{"text": 7}\n', r"a\.jsonl:1: field 'text' holds a number \(7\), not text"),
        ("a.jsonl", b'["x"]\n["y"]\n', "expected rows like"),
        ("a.json", b'{"version": 1,\n"data": [{"text": "x"}]}', "one object with version, data"),
    ],
)
def test_what_cannot_be_read_is_said_plainly(name, raw, says, tmp_path):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=says):
        list(sources.documents(tmp_path / name).train)


def test_an_object_of_columns_and_an_object_over_lines_are_read(tmp_path):
    (tmp_path / "columns.json").write_text(json.dumps({"text": ["a", "b"], "n": [1, 2]}, indent=1))
    (tmp_path / "one.json").write_text(json.dumps({"text": "a"}, indent=1))
    assert list(sources.documents(tmp_path / "columns.json").train) == ["a", "b"]
    assert list(sources.documents(tmp_path / "one.json").train) == ["a"]
