"""Networks on labelled samples: what is read, what is refused (with the sample), what the trainer does with it."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
import torch

from fastsnn_core import bundle, create
from fastsnn_core.errors import FastSNNError
from fastsnn_model_sequential import Layer, Sequential
from fastsnn_train import DataError, TrainConfig, Trainer, sample_data
from fastsnn_train.samples.figures import agreement, errors
from fastsnn_train.samples.prepare import sample_sets
from fastsnn_train.samples.transforms import transforms

LIF = create("neuron", "lif")


def network(shape=(6,), classes=3, steps=2, last=(), hidden=16):
    torch.manual_seed(0)
    layers = (Layer(op="flatten"), Layer(op="linear", size=hidden), Layer(op="repeat", steps=steps))
    layers += (Layer(op="spikes", neuron=LIF), Layer(op="linear", size=classes), *last)
    return Sequential(input=shape, layers=layers).build()


def over_time(width=2, classes=3):
    torch.manual_seed(0)
    layers = (Layer(op="linear", size=16), Layer(op="spikes", neuron=LIF), Layer(op="linear", size=classes))
    return Sequential(input=(width,), layers=layers).build()


def blobs(n=90, width=6, classes=3):
    draw = np.random.default_rng(0)
    y = np.arange(n) % classes
    return (draw.normal(size=(n, width)) * 0.3 + np.eye(classes, width)[y] * 2).astype(np.float32), y


def fit(model, data, steps=60, out=None, resume=False, **more):
    settings = {k: more.pop(k) for k in list(more) if k in TrainConfig.__annotations__}
    config = TrainConfig(**({"max_steps": steps, "batch_size": 16, "log_every": 20, "lr": 1e-2} | settings))
    samples = sample_data(model, data, objective=config.objective, quiet=True, **more)
    return Trainer(model, config, out=out, quiet=True).fit(samples, resume=resume)


def test_classes_are_learnt_and_the_log_says_how():
    row = fit(network(), blobs()).history[-1]
    assert row["accuracy"] > 0.95
    assert np.sum(row["confusion"]) == 9  # the tenth held out
    assert 0 < row["silent_fraction"] < 1
    assert row["spikes_per_inference"] > 0
    assert row["samples_per_second"] > 0
    assert row["f1"] > 0.9


@pytest.mark.parametrize("kind", ["cross_entropy", "spike_count", "first_spike"])
def test_every_objective_learns(kind):
    last = () if kind == "cross_entropy" else (Layer(op="spikes", neuron=LIF),)
    trainer = fit(network(last=last, steps=4), blobs(), objective=create("objective", kind), steps=100)
    assert trainer.history[-1]["accuracy"] > 0.9


def test_counts_are_counts_whatever_the_threshold():
    model = network(last=(Layer(op="spikes", neuron=LIF),), steps=4)
    data = sample_data(model, blobs(), objective=create("objective", "spike_count"), quiet=True)
    x = torch.from_numpy(blobs()[0]) * 20
    out = data.task.outputs(model, x, model)
    assert torch.equal(out, out.round())
    assert not torch.equal(model(x), model(x).round())


def test_numbers_and_labels_for_every_step():
    draw = np.random.default_rng(1)
    x = draw.normal(size=(80, 10, 2)).astype(np.float32)
    trainer = fit(over_time(classes=1), (x, x[:, :, 0].mean(1)), steps=200, task="regression")
    assert trainer.history[-1]["r2"] > 0.5
    labels = (x[:, :, 0] > 0).astype(np.int64)
    labels[0, 5:] = -100
    trainer = fit(over_time(classes=2), (x, labels), steps=200)
    assert trainer.task.kind == "labelling"
    assert trainer.history[-1]["accuracy"] > 0.9
    one = trainer.task.rows(torch.zeros(1, 10, 2), torch.from_numpy(labels[:1]))[1]
    assert one.sum() == 5


def test_a_stopped_run_goes_on_to_the_bit(tmp_path):
    how = {"checkpoint_every": 20, "change": ["noise:0.1"], "eval_every": 30}
    how |= {"schedule": "constant", "warmup": 0.0}
    whole = fit(network(), blobs(), out=tmp_path / "a", **how)
    fit(network(), blobs(), steps=20, out=tmp_path / "b", **how)
    again = fit(network(), blobs(), out=tmp_path / "b", resume=True, **how)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name


def test_pieces_and_class_weights_are_the_whole_batch():
    x, y = blobs()
    for weights in (None, "balanced", [1.0, 5.0, 0.1]):
        rows = []
        for pieces in (1, 4):
            trainer = fit(network(), (x, y), steps=3, accumulate=pieces, class_weights=weights, log_every=1)
            rows.append(trainer.history[0])
        assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-5)
        assert rows[0]["gradient_norm"] == pytest.approx(rows[1]["gradient_norm"], rel=1e-4)
    few = (x[:40], np.repeat([0, 1, 2], [30, 5, 5]))
    data = sample_data(network(), few, class_weights="balanced", holdout=0.0, quiet=True)
    torch.testing.assert_close(data.task.weights, torch.tensor([40 / 90, 40 / 15, 40 / 15]))


def test_every_step_draws_its_own_changes():
    data = sample_data(network(), (X[:4], Y[:4]), change=["noise:0.1"], holdout=0.0, quiet=True)
    batches = data.batches(TrainConfig(batch_size=4))
    rows = [batches.next()[0].sort(0).values for _ in range(2)]
    assert not torch.equal(*rows)
    batches.begin(1, None, {})
    assert torch.equal(batches.next()[0].sort(0).values, rows[1])


def test_a_bundle_keeps_the_task_and_its_classes(tmp_path):
    x, y = blobs()
    trainer = fit(network(), (x, np.array(["ape", "bee", "cat"])[y]), steps=5)
    bundle.save(trainer.model, tmp_path / "m.snn")
    found = bundle.load(tmp_path / "m.snn").meta["milestones"][-1]
    assert found["task"] == "classification"
    assert found["classes"] == ["ape", "bee", "cat"]


def test_early_stopping_and_the_best_weights(tmp_path):
    stop = create("tracker", "early_stopping", patience=2, figure="accuracy", largest=True)
    trainer = fit(network(), blobs(), steps=2000, out=tmp_path, eval_every=10, trackers=(stop,), bundle="best")
    assert trainer.step < 2000


# -- what is read -------------------------------------------------------------------------------------------------


def idx(array, path):
    kind = {"uint8": 8, "float32": 13}[str(array.dtype)]
    head = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    raw = head + array.astype(array.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def digits(n=20):
    return (np.arange(n * 16).reshape(n, 4, 4) % 251).astype(np.uint8), (np.arange(n) % 3).astype(np.uint8)


def test_int8_weights_are_not_trained():
    whole = Sequential(input=(3,), layers=(Layer(op="linear", size=2, bits=8),)).build()
    with pytest.raises(FastSNNError, match=r"layers\.0\.weight is INT8"):
        fit(whole, (np.zeros((8, 3), "float32"), np.arange(8) % 2))


def test_every_source_gives_the_same_samples(tmp_path):
    x, y = digits()
    for name in ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte"):
        idx(x, tmp_path / name)
        idx(y, tmp_path / name.replace("images-idx3", "labels-idx1"))
    np.savez(tmp_path / "one.npz", x=x, y=y)
    np.savez(tmp_path / "two.npz", x_train=x, y_train=y, x_test=x[:5], y_test=y[:5])
    (tmp_path / "pictures").mkdir()
    image = pytest.importorskip("PIL.Image")
    for i, (picture, label) in enumerate(zip(x, y)):
        (tmp_path / "pictures" / "abc"[label]).mkdir(exist_ok=True)
        image.fromarray(picture).save(tmp_path / "pictures" / "abc"[label] / f"{i:02}.png")

    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return len(x)

        def __getitem__(self, i):
            return torch.from_numpy(x[i])[None].float() / 255, int(y[i])

    tables = {
        "idx": tmp_path, "npz": tmp_path / "one.npz", "arrays": (x, y),
        "tensors": (torch.from_numpy(x), torch.from_numpy(y)),
        "dataset": Pairs(), "splits": tmp_path / "two.npz", "columns": {"image": x, "label": y},
        "tensor_dataset": torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y)),
        "pictures": tmp_path / "pictures",
    }  # fmt: skip
    order = np.argsort(y, kind="stable")
    for name, source in tables.items():
        data = sample_data(network((1, 4, 4)), source, holdout=0.0, quiet=True)
        from fastsnn_train.samples.batches import read_samples

        rows, labels = read_samples(data.train, [3, 7], (1, 4, 4), 3)
        where = order[[3, 7]] if name == "pictures" else [3, 7]
        torch.testing.assert_close(rows[:, 0] * 255, torch.from_numpy(x[where]).float(), msg=name)
        assert labels.tolist() == y[where].tolist(), name
        assert (data.held_out is not None) == (name in ("idx", "splits")), name


def test_hub_columns_of_images_and_sequences():
    datasets = pytest.importorskip("datasets")
    x, y = digits()
    image = pytest.importorskip("PIL.Image")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    rows = {"image": [image.fromarray(p) for p in x], "label": y.tolist()}
    found = sample_data(network((1, 4, 4)), datasets.Dataset.from_dict(rows, features), holdout=0.0, quiet=True).train
    assert found.classes == ("a", "b", "c")
    torch.testing.assert_close(found.batch([2])[0] * 255, torch.from_numpy(x[2:3]).float())
    series = datasets.Dataset.from_dict({"sequence": np.ones((6, 5, 2)).tolist(), "label": [0, 1, 2] * 2})
    assert sample_data(over_time(), series, holdout=0.0, quiet=True).train.batch([1])[0].shape == (1, 5, 2)


def test_tables_of_series(tmp_path):
    wide, long = tmp_path / "wide.csv", tmp_path / "long.csv"
    wide.write_text("label,v0,v1,v2\nup,1,2,3\ndown,3,2,1\nup,2,3,4\n")
    found = sample_sets(wide)["train"]
    assert found.classes == ("down", "up")
    assert found.targets.tolist() == [1, 0, 1]
    assert found.inputs.shape == (3, 3, 1)
    long.write_text(
        "id,time,a,b,label\n" + "".join(f"{s},{t},{t},{s},{s % 3}\n" for s in range(4) for t in range(2 + s))
    )
    ragged = sample_sets(long)["train"]
    assert ragged.targets.tolist() == [0, 1, 2, 0]
    with pytest.raises(DataError, match=r"sample 1 of long.csv has the shape \(3, 2\), sample 0 .* has \(2, 2\)"):
        ragged.batch([0, 1])
    padded = sample_data(over_time(), long, change=["pad"], holdout=0.0, quiet=True)
    assert padded.train.inputs.shape == (4, 5, 2)
    assert padded.train.inputs[1, 2].tolist() == [2.0, 1.0]
    assert not padded.train.inputs[1, 3:].any()
    assert padded.milestone()["length"] == 5


# -- what is refused ----------------------------------------------------------------------------------------------


def change(table, place, value):
    table = table.copy()
    table[place] = value
    return table


X, Y = blobs()
BAD = {
    "label too large": ((X, change(Y, 17, 3)), r"sample 17.*label 3 is outside 0 … 2"),
    "label negative": ((X, change(Y, 5, -1)), r"sample 5.*label -1 is outside"),
    "label a fraction": ((X, change(Y.astype(np.float32), 5, 0.5)), r"sample 5.*label 0.5 is no whole number"),
    "label NaN": ((X, change(Y.astype(np.float32), 6, np.nan)), r"sample 6, target is nan"),
    "pixel NaN": ((change(X, (4, 2), np.nan), Y), r"sample 4 holds nan at \[2\]"),
    "pixel infinite": ((change(X, (40, 0), np.inf), Y), r"sample 40 holds inf at \[0\]"),
    "ragged": (
        ([[1.0] * 6] * 4 + [[1.0] * 5] + [[1.0] * 6] * 4, [0, 1, 2] * 3),
        r"sample 4 of .* has the shape \(5,\)",
    ),
    "ragged inside": (([[[1.0], [1.0, 2.0]]] * 3, [0, 1, 2]), r"sample 0 of the dataset is ragged: .* 1 to 2"),
    "fewer labels": ((X, Y[:-1]), r"90 inputs and 89 targets"),
    "another shape": ((X[:, :5], Y), r"sample \d+ of .* has the shape \[5\]; the network takes \[6\], or \[T, 6\]"),
    "no samples": ((X[:0], Y[:0]), r"holds no sample"),
    "texts": ((np.array([["a"] * 6] * 9), np.arange(9) % 3), r"must be numbers, got <U1"),
    "no label": ((X[:3], [0, None, 1]), r"sample 1 of the dataset has no label"),
    "missing column": ({"x": X, "z": Y}, r"no column whose name says target; it has x, z"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_samples_are_named(case):
    data, says = BAD[case]
    with pytest.raises(FastSNNError, match=says):
        sample_data(network(), data, task="classification", quiet=True)


def test_bad_samples_met_on_the_way_lose_nothing(tmp_path):
    class Late(torch.utils.data.Dataset):
        def __len__(self):
            return len(X)

        def __getitem__(self, i):
            x = torch.from_numpy(X[i])
            return (x * float("nan") if i == 33 else x), int(Y[i])

    with pytest.raises(DataError, match=r"sample 33 of the dataset holds nan at \[0\] \(step \d+ is kept in .*step-0"):
        fit(network(), Late(), out=tmp_path, holdout=0.0, batch_size=4)
    assert list((tmp_path / "checkpoints").glob("step-*"))


def test_broken_files_are_named(tmp_path):
    x, y = digits()
    idx(x, tmp_path / "train-images-idx3-ubyte")
    idx(y, tmp_path / "train-labels-idx1-ubyte")
    whole = (tmp_path / "train-images-idx3-ubyte").read_bytes()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(whole[: 16 + 16 * 7 + 3])
    with pytest.raises(DataError, match=r"cut off: 115 of 320 bytes; sample 7 of 20"):
        sample_sets(tmp_path)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:200])
    with pytest.raises(DataError, match=r"b.npz is no whole \.npz"):
        sample_sets(tmp_path / "b.npz")
    (tmp_path / "c.csv").write_text("label,v\n0,1\n1,x\n")
    with pytest.raises(DataError, match=r"line 3 \(sample 1\), column 'v': 'x' is no number"):
        sample_sets(tmp_path / "c.csv")
    (tmp_path / "d" / "cat").mkdir(parents=True)
    (tmp_path / "d" / "dog").mkdir()
    (tmp_path / "d" / "dog" / "1.png").write_bytes(b"\x89PNG no")
    with pytest.raises(DataError, match=r"class folder .*cat holds no image"):
        sample_sets(tmp_path / "d")
    (tmp_path / "d" / "cat").rmdir()
    with pytest.raises(DataError, match=r"sample 0 \(.*1.png\) is no whole picture"):
        sample_sets(tmp_path / "d")["train"].batch([0])


# -- figures and transforms ---------------------------------------------------------------------------------------


def test_figures_by_hand():
    found = agreement(np.array([0, 0, 1, 2, -100]), np.array([0, 1, 1, 1, 0]), 3)
    assert found["confusion"] == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert found["accuracy"] == 0.5
    assert found["f1"] == pytest.approx((2 / 3 + 2 / 4 + 0) / 3)
    assert errors(np.array([[0.0], [2.0]]), np.array([[1.0], [2.0]])) == {"rmse": np.sqrt(0.5), "mae": 0.5, "r2": 0.5}


def test_transforms():
    x = torch.zeros(64, 1, 9, 9)
    x[:, :, 4, 4] = 1.0
    moved = transforms(["shift:2"]).augmented(x, np.random.default_rng(0))
    torch.testing.assert_close(moved.sum((1, 2, 3)), torch.ones(64))  # the dot is still inside
    rows = (moved.sum((1, 3)) * torch.arange(9)).sum(1) - 4
    assert rows.abs().max() <= 2
    assert rows.abs().max() > 1
    line = torch.zeros(32, 1, 9, 9)
    line[:, :, 4] = 1.0
    turned = transforms(["rotate:45"]).augmented(line, np.random.default_rng(0))
    assert (turned[:, 0, 4, 4] > 0.9).all()
    assert (turned[:, 0, 0].sum(1) > 0).any()
    erased = transforms(["erase:0.3"]).augmented(torch.ones(32, 2, 9, 9), np.random.default_rng(0))
    assert 0 < (erased == 0).float().mean() < 0.3
    assert torch.equal(erased[:, 0], erased[:, 1])
    flipped = transforms(["flip"]).augmented(torch.arange(8.0).expand(50, 1, 1, 8), np.random.default_rng(0))
    assert {row[0].item() for row in flipped[:, 0, 0]} == {0.0, 7.0}
    with pytest.raises(FastSNNError, match="did you mean 'shift'"):
        transforms(["shfit:2"])
