"""Tables in memory, splits of a hub's own names, folders that a README names, JSON objects over lines."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from fastsnn_core.errors import FastSNNError
from fastsnn_train import DataError, TrainConfig, Trainer
from fastsnn_train.data import sources
from fastsnn_train.data.folders import split_of_name


def say_in_readme(folder, config) -> None:
    head = json.dumps({"configs": [{"config_name": "default"} | config]})
    (folder / "README.md").write_text(f"---\n{head}\n---\n")


def lines(*texts: str) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


@pytest.mark.parametrize("home", ["pandas", "polars", "pyarrow", "datasets"])
def test_a_table_is_its_rows(home):
    library = pytest.importorskip(home, reason=f"{home} is not installed")
    columns = {"id": [1, 2, 3], "text": ["a", None, "b"]}
    tables = {
        "pandas": lambda: [library.DataFrame(columns), library.Series(["a", None, "b"])],
        "polars": lambda: [library.DataFrame(columns)],
        "pyarrow": lambda: [library.table(columns)],
        "datasets": lambda: [library.Dataset.from_dict(columns).with_format(f) for f in (None, "pandas", "numpy")],
    }
    for table in tables[home]():
        assert list(sources.documents(table).train) == ["a", "b"], table


def test_a_dict_of_columns_is_a_table_and_a_dict_of_splits_is_not():
    assert list(sources.documents({"text": ["a", "b"], "id": [1, 2]}).train) == ["a", "b"]
    splits = sources.documents({"train": ["a"], "test": ["b"]})
    assert (list(splits.train), list(splits.held_out)) == (["a"], ["b"])
    for names in (("train_sft", "test_sft"), ("validation", "test")):  # of one length, and no tables
        with pytest.raises(DataError, match=f"no train split; splits: {', '.join(names)}"):
            sources.documents({name: ["a"] for name in names})
    assert list(sources.documents({"text": ["a"], "test": [1]}).train) == ["a"]
    with pytest.raises(DataError, match="no train split; splits: one, two"):
        sources.documents({"one": ["a"], "two": ["b", "c"]})


@pytest.mark.parametrize(
    ("names", "train", "held"),
    [
        (("train_sft", "test_sft", "train_gen", "test_gen"), ["train_gen", "train_sft"], ["test_gen", "test_sft"]),
        (("train.clean.100", "validation.clean", "test.clean"), ["train.clean.100"], ["validation.clean"]),
        (("pretrain", "test"), ["pretrain"], ["test"]),
        (("validation", "test"), ["validation"], ["test"]),  # held-out ones only: said in the note
    ],
)
def test_splits_of_other_names_count_by_their_word(names, train, held, tmp_path):
    for name in names:
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / f"data/{name}-00000-of-00001.jsonl").write_text(lines(name))
    corpus = sources.documents(tmp_path)
    assert (sorted(corpus.train), sorted(corpus.held_out)) == (train, held)
    assert "training on" in corpus.note


def test_words_of_split_names():
    told = {name: split_of_name(name) for name in ("train", "x-train", "training_2", "mytrain", "dev", "eval.a", "sft")}
    assert told == dict(zip(told, ("train", "train", "train", "", "validation", "test", "")))


@pytest.mark.parametrize(
    ("config", "train", "held", "loose"),
    [
        ({"data_dir": "b"}, ["b/x", "b/y"], [], ["a/x"]),
        ({"data_dir": "./b/", "data_files": "x.*"}, ["b/x"], [], ["a/x", "b/y"]),
        ({"data_dir": "c"}, ["c/train"], ["c/test"], ["a/x", "b/x", "b/y"]),
    ],
)
def test_a_readme_may_name_a_folder(config, train, held, loose, tmp_path):
    pytest.importorskip("yaml")
    for name in ("a/x", "b/x", "b/y", *(("c/train", "c/test") if config["data_dir"] == "c" else ())):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.jsonl").write_text(lines(name))
    say_in_readme(tmp_path, config)
    corpus = sources.documents(tmp_path)
    assert (sorted(corpus.train), sorted(corpus.held_out)) == (train, held)
    assert all(f"{name.partition('/')[2]}.jsonl: of no split" in corpus.note for name in loose)
    say_in_readme(tmp_path, config | {"data_dir": "none"})
    with pytest.raises(DataError, match="names the folder none; there is no data file in it"):
        sources.documents(tmp_path)


def test_objects_over_several_lines_one_after_the_other(tmp_path):
    rows = [{"text": "a"}, {"text": "b", "n": {"m": 1}}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row, indent=1) for row in rows) + "\n\n")
    assert list(sources.documents(path).train) == ["a", "b"]
    path.write_text(json.dumps(rows[0], indent=1) + '\n{\n "text": "b\n')
    with pytest.raises(DataError, match=r"a\.jsonl:5: no JSON: Invalid control character"):
        list(sources.documents(path).train)


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_working_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("not asked for")
    with pytest.raises(DataError, match="the name of the dataset is empty"):
        sources.documents(name)


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield {"input_ids": torch.arange(12)}


def test_a_loader_over_an_iterable_dataset_trains(make):
    loader = DataLoader(Endless(), batch_size=2)
    trainer = Trainer(make(), TrainConfig(max_steps=2, trackers=()), quiet=True).fit(loader)
    assert trainer.step == 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_run_has_gradients_whatever_the_mode_around_it(mode, make):
    model = make()
    before = model.embed.weight.detach().clone()
    with mode():
        Trainer(model, TrainConfig(max_steps=1, trackers=()), quiet=True).fit([torch.arange(24).view(2, 12)])
        assert not torch.is_grad_enabled()
    assert not torch.equal(model.embed.weight, before)


def test_weights_that_cannot_be_trained_are_named(make):
    with torch.inference_mode():
        made = make()
    for model, says in (
        (made, r"embed\.weight was made inside torch\.inference_mode"),
        (make().to("meta"), "meta device"),
    ):
        with pytest.raises(FastSNNError, match=says):
            Trainer(model, TrainConfig(max_steps=1, trackers=()), quiet=True).fit([torch.arange(24).view(2, 12)])
