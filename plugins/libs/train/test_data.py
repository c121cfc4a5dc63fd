"""Text to batches: every source, tokenizer and order, documents that do not leak, caches, workers, streams."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch

from fastsnn_text import ByteTokenizer, attach, tokenizer_of
from fastsnn_train import Data, DataError, Packed, TrainConfig, Trainer, load_data
from fastsnn_train.data import sources, tokenize
from fastsnn_train.data.streaming import Streamed
from fastsnn_train.evaluation.evaluate import nats

TEXTS = ["one fish", "two fish", "red fish, blue fish", "äöü € 魚"]


# -- order and documents ------------------------------------------------------------------------------------------


def test_every_block_once_an_epoch_in_a_seeded_order():
    packed = Packed(np.arange(101, dtype=np.uint16), 10)
    firsts = [int(row[0]) // 10 for step in range(4) for row in packed.batch(step, 5, seed=1)]
    assert sorted(firsts[:10]) == sorted(firsts[10:]) == list(range(10))
    assert firsts[:10] != firsts[10:]
    assert firsts == [int(row[0]) // 10 for step in range(4) for row in packed.batch(step, 5, seed=1)]
    assert firsts != [int(row[0]) // 10 for step in range(4) for row in packed.batch(step, 5, seed=2)]


@pytest.mark.parametrize("attention", [("gla", "sliding_window"), ("linear", "softmax"), ("hybrid",)])
def test_a_document_packed_with_others_has_the_loss_it_has_alone(attention, make):
    """State and window end with a document: no token's loss depends on what was packed before it."""
    model = make("lif_sint", attention=attention).double().eval()
    documents = [np.append(np.arange(n) * 5 % 37, 39) for n in (3, 9, 1, 6)]
    packed = Packed(np.concatenate([*documents, [0]]).astype(np.uint16), sum(map(len, documents)), end=39)
    row = packed.block(0)[None]
    together, place = nats(model, row, packed.resets(row[:, :-1]))[0], 0
    for document in documents:
        alone = nats(model, torch.tensor(document)[None])[0]
        assert torch.allclose(together[place : place + len(alone)], alone, atol=1e-9)
        place += len(document)
    leaking = nats(model, row)[0]
    assert not torch.allclose(leaking[4:12], together[4:12], atol=1e-3)


def test_documents_can_be_left_to_run_into_each_other():
    packed = Packed(np.array([1, 39, 2, 3, 39, 4]), 5, end=39, documents=False)
    assert packed.resets(packed.block(0)[None]) is None


# -- sources ------------------------------------------------------------------------------------------------------


def test_text_json_lines_json_list_and_parquet_give_the_same_documents(tmp_path):
    import pyarrow
    from pyarrow import parquet

    files = {name: tmp_path / name for name in ("a.txt", "b.jsonl", "c.json", "d.parquet")}
    files["a.txt"].write_text("<|endoftext|>".join(TEXTS), encoding="utf-8")
    files["b.jsonl"].write_text("\n\n".join(json.dumps({"text": t, "n": 1}) for t in TEXTS), encoding="utf-8")
    files["c.json"].write_text(json.dumps(TEXTS), encoding="utf-8")
    parquet.write_table(pyarrow.table({"text": TEXTS}), files["d.parquet"])
    for path in files.values():
        corpus = sources.documents(path)
        assert list(corpus.train) == list(corpus.train) == TEXTS


@pytest.mark.parametrize(
    ("name", "raw", "says"),
    [
        ("a.jsonl", b'{"txt": "x"}\n{"txt": "y"}', r"a\.jsonl: no text field 'text'; they have txt"),
        ("a.jsonl", b'{"text": "x"}\n{oops', r"a\.jsonl:2: no JSON"),
        ("a.json", b"[1, 2", r"a\.json:1: no JSON"),
        ("a.txt", b"abc\xff\xfa", r"a\.txt is no UTF-8 text: byte 0xff at offset 3"),
        ("a.jsonl", b'{"text": "\xff"}', r"a\.jsonl:1 is no UTF-8 text: byte 0xff at offset 10"),
    ],
)
def test_a_bad_file_is_named_with_its_line(name, raw, says, tmp_path):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=says):
        list(sources.documents(tmp_path / name).train)


def test_files_of_a_folder_are_taken_as_the_splits_they_are_named_after(tmp_path):
    for name in ("train-0.txt", "train-1.txt", "validation.txt", "README.md"):
        (tmp_path / name).write_text(name)
    corpus = sources.documents(tmp_path)
    assert list(corpus.train) == ["train-0.txt", "train-1.txt"]
    assert list(corpus.held_out) == ["validation.txt"]


def test_datasets_map_style_dictionary_and_iterable():
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": TEXTS, "n": [1, 2, 3, 4]})
    assert list(sources.documents(rows).train) == TEXTS
    both = sources.documents(datasets.DatasetDict({"train": rows, "validation": rows.select([0])}))
    assert (list(both.train), list(both.held_out), both.endless) == (TEXTS, TEXTS[:1], False)
    assert sources.documents(rows.to_iterable_dataset()).endless
    with pytest.raises(DataError, match="no text field 'body'; they have text, n"):
        list(sources.documents(rows, "body").train)
    with pytest.raises(DataError, match="no train split; splits: test"):
        sources.documents(datasets.DatasetDict({"test": rows}))


def test_a_generator_of_texts_may_be_read_twice():
    corpus = sources.documents(t for t in TEXTS)
    assert list(corpus.train) == list(corpus.train) == TEXTS


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sources.hub_answers.cache_clear()
    yield
    sources.hub_answers.cache_clear()


def test_a_name_is_found_under_fastsnn_data_where_there_is_no_hub(offline, monkeypatch, tmp_path):
    folder = tmp_path / "wikitext2"
    folder.mkdir()
    (folder / "valid.txt").write_text("held text")
    (folder / "test.txt").write_text("other text")
    monkeypatch.setenv("FASTSNN_DATA", str(tmp_path))
    corpus = sources.documents("wikitext/wikitext-2-raw-v1")
    assert list(corpus.train) == ["held text"]
    assert "there is no train split; training on valid.txt, held out: test.txt" in corpus.note


def test_without_a_hub_and_without_data_the_error_says_both(offline, monkeypatch, tmp_path):
    monkeypatch.delenv("FASTSNN_DATA", raising=False)
    with pytest.raises(
        DataError, match=r"no dataset 'acme/prose': the Hugging Face hub does not answer .*; FASTSNN_DATA is not set"
    ):
        sources.documents("acme/prose")
    monkeypatch.setenv("FASTSNN_DATA", str(tmp_path))
    with pytest.raises(
        DataError, match=r"FASTSNN_DATA=.* has no folder for it\. Give a file, a folder, or builtin:pydoc"
    ):
        sources.documents("acme/prose")
    with pytest.raises(DataError, match=r"no file or folder '\./prose\.txt'"):
        sources.documents("./prose.txt")


def test_real_text_by_its_hub_name(offline, monkeypatch, data):
    monkeypatch.setenv("FASTSNN_DATA", str(data))
    found = load_data("wikitext/wikitext-2-raw-v1", seq_len=256)
    assert len(found.train) > 1000
    assert len(found.held_out) > 1000
    assert "training on" in found.note


# -- tokens -------------------------------------------------------------------------------------------------------


def test_documents_are_closed_and_their_characters_counted():
    found, characters = tokenize.encode_documents(TEXTS, ByteTokenizer())
    assert found.dtype == np.uint16
    assert found.tolist() == [i for t in TEXTS for i in (*t.encode(), 256)]
    assert characters == sum(map(len, TEXTS))


def test_workers_give_the_same_tokens_in_the_same_order(monkeypatch):
    monkeypatch.setattr(tokenize, "SPLIT", 40)
    texts = [f"document {n} " * (n % 7 + 1) for n in range(60)]
    one = tokenize.encode_documents(texts, ByteTokenizer())
    three = tokenize.encode_documents(texts, ByteTokenizer(), workers=3)
    assert one[0].tolist() == three[0].tolist()
    assert one[1] == three[1]


class Failing(ByteTokenizer):
    """Cannot read one document."""

    def encode(self, text):
        if text == "bad":
            raise ValueError("no such text")
        if text == "dead":
            os._exit(9)
        return super().encode(text)


def test_what_goes_wrong_in_a_worker_is_said_here(monkeypatch):
    monkeypatch.setattr(tokenize, "SPLIT", 4)
    with pytest.raises(ValueError, match="no such text"):
        tokenize.encode_documents(["good", "bad", "good"], Failing(), workers=2)
    with pytest.raises(RuntimeError, match="died"):
        tokenize.encode_documents(["good", "dead", "good"], Failing(), workers=2)


class Counting(ByteTokenizer):
    """Counts what it is asked to encode."""

    asked = 0

    def encode(self, text):
        type(self).asked += 1
        return super().encode(text)


def test_a_cached_corpus_is_tokenised_once_and_never_mistaken_for_another(tmp_path):
    first, _ = tokenize.cached(TEXTS, Counting(), tmp_path, "x")
    asked = Counting.asked
    again, characters = tokenize.cached(TEXTS, Counting(), tmp_path, "x")
    assert Counting.asked == asked
    assert isinstance(again, np.memmap)
    assert again.tolist() == first.tolist()
    assert characters == sum(map(len, TEXTS))
    other, _ = tokenize.cached([*TEXTS[:-1], "something else"], Counting(), tmp_path, "x")
    assert other.tolist() != first.tolist()
    joined, _ = tokenize.cached(["".join(TEXTS[:2]), *TEXTS[2:]], Counting(), tmp_path, "x")
    assert len(joined) == len(first) - 1
    assert not list(tmp_path.glob(".*"))


def test_a_bpe_is_trained_in_one_call_and_travels_in_the_bundle(make, tmp_path):
    from fastsnn_core import load, save

    data = load_data("builtin:pydoc", tokenizer="bpe:300", seq_len=32, cache=tmp_path / "cache")
    assert data.tokenizer.vocab_size == 300
    assert len(data.train.tokens) < data.train.characters
    model = make(vocab_size=300)
    attach(model, data.tokenizer)
    again = tokenizer_of(load(save(model, tmp_path / "model.snn")))
    text = "The yield statement: äöü € 魚"
    assert again.encode(text) == data.tokenizer.encode(text)
    assert again.decode(again.encode(text)) == text
    assert again.end == data.tokenizer.end == 0
    twice = load_data("builtin:pydoc", tokenizer="bpe:300", seq_len=32)
    assert twice.tokenizer.text == data.tokenizer.text
    with pytest.raises(DataError, match="write 'bpe:4096'"):
        load_data("builtin:pydoc", tokenizer="bpe:many")


def test_a_hugging_face_tokenizer_trains(data):
    path = data / "stories260k" / "hf"
    found = load_data(data / "tinystories_text", tokenizer=path, seq_len=64)
    assert found.tokenizer.vocab_size == 512
    assert int(found.train.tokens.max()) < 512


def test_a_sentencepiece_model_trains_and_travels_in_the_bundle(make, tmp_path):
    pieces = pytest.importorskip("sentencepiece")
    from pydoc_data.topics import topics

    from fastsnn_core import load, save

    lines = [line for text in topics.values() for line in text.splitlines() if line.strip()][:2000]
    with (tmp_path / "prose.model").open("wb") as file:
        pieces.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=file, vocab_size=600, byte_fallback=True, minloglevel=2
        )
    data = load_data("builtin:pydoc", tokenizer=tmp_path / "prose.model", seq_len=32)
    assert data.tokenizer.vocab_size == 600
    model = make(vocab_size=600)
    attach(model, data.tokenizer)
    again = tokenizer_of(load(save(model, tmp_path / "model.snn")))
    assert again.encode("yield from") == data.tokenizer.encode("yield from")
    assert again.decode(again.encode("yield from")) == "yield from"


# -- streams ------------------------------------------------------------------------------------------------------


def blocks(reader, n):
    return [reader.next().tolist() for _ in range(n)]


def test_an_unshuffled_stream_is_the_packed_corpus_and_begins_again():
    texts = [f"document {n}" for n in range(9)]
    flat, _ = tokenize.encode_documents(texts, ByteTokenizer())
    twice = np.concatenate([flat, flat])
    packed = Packed(twice, 16, end=256)
    stream = Streamed(texts, ByteTokenizer(), 16, end=256, buffer=1)
    assert blocks(stream.reader(0), len(packed) - 1) == [packed.block(i).tolist() for i in range(len(packed) - 1)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stream_is_shuffled_by_its_seed_and_resumes_anywhere(workers):
    texts = [f"document {n}" for n in range(50)]
    stream = Streamed(texts, ByteTokenizer(), 16, end=256, buffer=8, skip=3, workers=workers)
    whole = blocks(stream.reader(0), 60)
    assert blocks(stream.reader(0), 60) == whole
    assert blocks(stream.reader(1), 60) != whole
    for cut in (0, 1, 7, 31, 45):
        reader = stream.reader(0)
        blocks(reader, cut)
        place, tensors = reader.position()
        assert blocks(stream.reader(0, json.loads(json.dumps(place)), tensors), 60 - cut) == whole[cut:]


def test_a_datasets_stream_trains_with_its_first_documents_held_out(make):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": [f"document number {n}" for n in range(400)]}).to_iterable_dataset()
    found = load_data(rows, seq_len=16)
    assert isinstance(found.train, Streamed)
    held = bytes(i if i < 256 else 10 for i in found.held_out.tokens.tolist()).decode().split("\n")[:-1]
    assert held == [f"document number {n}" for n in range(len(held))]
    assert 64 * 16 < len(found.held_out.tokens) < 64 * 16 + 40
    assert found.train.skip == len(held)
    trainer = Trainer(make(vocab_size=257), TrainConfig(max_steps=3, batch_size=2, log_every=1), quiet=True).fit(found)
    assert trainer.step == 3
    assert "held_out" in trainer.history[-1]


def test_a_stream_too_short_for_its_held_out_part_says_so():
    found = load_data(sources.Corpus(["short"]), seq_len=16, streaming=True)
    with pytest.raises(DataError, match="no document left to train on"):
        found.train.reader(0).next()


def test_any_source_can_be_streamed():
    found = load_data("builtin:pydoc", seq_len=32, streaming=True, holdout=0.0)
    assert isinstance(found, Data)
    assert found.held_out is None
    flat = load_data("builtin:pydoc", seq_len=32, holdout=0.0)
    assert found.train.reader(0).block().tolist() == flat.train.block(0).tolist()


def test_batches_of_the_wrong_shape_are_refused(make):
    for bad, says in (([torch.zeros(3)], "must be token ids"), ([{"ids": 1}], "neither 'input_ids' nor 'tokens'")):
        with pytest.raises(DataError, match=says):
            Trainer(make(), TrainConfig(max_steps=1), quiet=True).fit(bad)
