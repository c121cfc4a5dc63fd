"""What `FastSNN.fit` or a spec's [data] was given, as samples with their task: found, split, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from torch import Tensor, nn

from fastsnn_core import Objective, create
from fastsnn_core.errors import ArgumentError, FastSNNError
from fastsnn_train.config import TrainConfig
from fastsnn_train.data.documents import DataError
from fastsnn_train.samples.batches import SampleBatches, read_samples
from fastsnn_train.samples.image_folders import holds_images, image_folders
from fastsnn_train.samples.labels import check_classes, renumbered, weights_of
from fastsnn_train.samples.names import builtin, read_named
from fastsnn_train.samples.readers import dataset as torch_dataset
from fastsnn_train.samples.readers import idx_sets, inputs_and_targets, named_columns, npz
from fastsnn_train.samples.sample_set import SampleSet
from fastsnn_train.samples.shapes import wanted_shape
from fastsnn_train.samples.tables import hub_table, read_series
from fastsnn_train.samples.task import KINDS, SampleTask, output_width
from fastsnn_train.samples.transforms import Transforms, series_of, transforms

Sets = dict[str, SampleSet]


@attrs.frozen(eq=False)
class SampleData:
    """Training samples, held-out ones, and what is learnt."""

    train: SampleSet
    held_out: SampleSet | None
    task: SampleTask
    transforms: Transforms
    note: str
    length: int | None = None  # of padded series

    def batches(self, config: TrainConfig) -> SampleBatches:
        """Training batches in the seeded order."""
        return SampleBatches(self.train, config, self.task.shape, self.task.classes, self.transforms)

    def milestone(self) -> dict[str, Any]:
        """What the model's meta says of the data."""
        found = {"data": self.note, "task": self.task.kind, "samples": len(self.train)}
        found |= {"length": self.length} if self.length is not None else {}
        return found | ({"classes": list(self.train.classes)} if self.train.classes else {})


def sample_sets(source: Any, x: str = "", y: str = "") -> Sets:
    """``train`` and, where the source has one, ``test``: arrays, files, folders, Datasets."""
    if isinstance(source, SampleSet):
        return {"train": source}
    if isinstance(source, str) and source.startswith("builtin:"):
        return builtin(source)
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if isinstance(source, str) and not path.exists() and not path.suffix and not source.startswith((".", "/", "~")):
            return read_named(source, lambda found: sample_sets(found, x, y))
        return samples_from_path(path, x, y)
    if type(source).__module__.split(".")[0] == "datasets":
        if not isinstance(source, Mapping):
            return {"train": hub_table(source, x, y)}
        rows = {name: hub_table(part, x, y, name) for name, part in source.items()}
        return split_names(rows)
    if isinstance(source, Mapping):
        if all(isinstance(name, str) for name in source) and "train" in source:
            return split_names({name: sample_sets(part, x, y)["train"] for name, part in source.items()})
        return {"train": named_columns(source, "the dataset", x, y)}
    if isinstance(source, tuple | list) and len(source) == 2 and all(is_table(part) for part in source):
        return {"train": inputs_and_targets(source[0], source[1], "the dataset")}
    if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, Tensor | np.ndarray):
        return {"train": torch_dataset(source)}
    given = "None" if source is None else f"a {type(source).__name__}"
    raise ArgumentError(
        f"cannot read samples from {given}; give (inputs, targets), a torch Dataset, a datasets.Dataset, or a path: "
        ".npz, IDX files, a folder of class folders with images, CSV or parquet of time series"
    )


def is_table(part: Any) -> bool:
    """Arrays, tensors and lists of samples."""
    return isinstance(part, Tensor | np.ndarray) or (isinstance(part, list) and len(part) != 2)


def split_names(sets: Sets) -> Sets:
    """Splits by the two names used here."""
    other = next((name for name in ("test", "validation", "valid", "val", "dev") if name in sets), None)
    if "train" not in sets:
        raise DataError(f"there is no split 'train'; there are {', '.join(sets)}")
    return {"train": sets["train"]} | ({"test": sets[other]} if other else {})


def samples_from_path(path: Path, x: str, y: str) -> Sets:
    """Samples of a file or folder."""
    if not path.exists():
        raise DataError(f"{path} is not there")
    if path.is_file():
        if path.suffix == ".npz":
            return npz(path, x, y)
        if path.suffix in (".csv", ".tsv", ".parquet"):
            return {"train": read_series(path, y)}
        if "idx" in path.name and "images" in path.name:
            return chosen(idx_sets(path.parent), path)
        raise DataError(f"{path} is no .npz, .csv, .tsv, .parquet or IDX file (…-images-idx3-ubyte)")
    if found := idx_sets(path):
        return found
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        from datasets import load_from_disk

        return sample_sets(load_from_disk(str(path)), x, y)
    files = {p.stem: p for p in sorted(path.iterdir()) if p.suffix in (".csv", ".tsv", ".parquet", ".npz")}
    if "train" in files:
        return split_names({name: samples_from_path(p, x, y)["train"] for name, p in files.items()})
    if holds_images(path) or any(holds_images(p) for p in path.iterdir() if p.is_dir()):
        return image_folders(path)
    raise DataError(
        f"{path} holds no samples: no IDX files (train-images-idx3-ubyte), no train.csv, .parquet or .npz, no class "
        "folders with images"
    )


def chosen(sets: Sets, path: Path) -> Sets:
    """The set that an images file belongs to."""
    split = "train" if path.name.startswith("train") else "test"
    if split not in sets:
        raise DataError(f"{path} has no labels file beside it")
    return {"train": sets[split]}


def task_of(samples: SampleSet) -> str:
    """What the targets ask for."""
    kind = samples.targets if samples.targets is not None else np.asarray(samples.item(0)[1])[None]
    if np.issubdtype(kind.dtype, np.floating):
        return "regression"
    return "labelling" if kind.ndim > 1 else "classification"


def sample_data(
    model: nn.Module,
    source: Any,
    *,
    task: str = "",
    objective: Objective | None = None,
    holdout: float = 0.1,
    held_out: Any = None,
    class_weights: Any = None,
    change: Sequence[Any] = (),
    x: str = "",
    y: str = "",
    seed: int = 0,
    quiet: bool = False,
    names: tuple[str, ...] = (),
) -> SampleData:
    """Samples for `model`: every label is one of its outputs, every number is one, every shape fits.

    Classes that have names are numbered in their sorted order, those of held-out samples (and all, where `names` are
    given) as in training.

    Errors (ArgumentError, DataError): no such task, an objective of another one, a share outside 0 to 1, labels or
    shapes that do not fit; the sample's index is named.
    """
    if task and task not in KINDS:
        raise ArgumentError(f"task is {', '.join(map(repr, KINDS))} (or 'language'), got {task!r}")
    if not 0 <= holdout < 1:
        raise ArgumentError(f"holdout is a share of the samples, from 0 to below 1, got {holdout}")
    sets, how = sample_sets(source, x, y), transforms(change)
    if held_out is not None:
        sets["test"] = sample_sets(held_out, x, y)["train"]
    sets = {name: part.checked(quiet) for name, part in sets.items()}
    known = names or sets["train"].classes
    sets = {name: renumbered(part, known) for name, part in sets.items()}
    length = how.length
    if length is not None:
        length = how.length or max(len(np.asarray(part.item(i)[0])) for part in sets.values() for i in range(len(part)))
        sets = {name: series_of(part, length) for name, part in sets.items()}
    train, test = sets["train"], sets.get("test")
    if test is None and holdout:
        order = np.random.default_rng([seed, 0]).permutation(len(train))
        n = min(len(train) - 1, round(holdout * len(train)))
        train, test = train.part(np.sort(order[n:])), train.part(np.sort(order[:n])) if n else None
    kind = task or task_of(train)
    if objective is None:
        objective = create("objective", "mean_squared" if kind == "regression" else "cross_entropy")
    assert objective is not None
    needed = "regression" if kind == "regression" else "classification"
    if objective.task != needed:
        raise ArgumentError(f"the objective {objective.name} is for {objective.task}; the task is {kind}")
    shape = wanted_shape(model)
    sample, _ = read_samples(train, [0], shape, 0)
    outputs = output_width(model, sample, objective)
    train = with_targets(train, kind, outputs)
    test = None if test is None else with_targets(test, kind, outputs)
    classes = 0 if kind == "regression" else outputs
    if classes:
        for part in (train, test):
            if part is not None:
                check_classes(part, classes)
    elif class_weights not in (None, "none"):
        raise ArgumentError("class_weights are for classes; this is a regression")
    found = SampleTask(kind, objective, classes, weights_of(class_weights, train, classes) if classes else None, shape)
    return SampleData(train, test, found, how, train.where, length)


def with_targets(samples: SampleSet, kind: str, outputs: int) -> SampleSet:
    """Targets in the shape of the task: ``[N]``, ``[N, C]`` or ``[N, T]``."""
    targets = samples.targets
    if targets is None:
        return samples
    if kind == "regression":
        targets = targets[:, None] if targets.ndim == 1 else targets
        if targets.ndim != 2 or targets.shape[1] != outputs:
            raise FastSNNError(
                f"targets of {samples.where} are {list(targets.shape[1:])} numbers, the network gives {outputs}"
            )
    elif targets.ndim != (2 if kind == "labelling" else 1):
        wanted = "one for every step" if kind == "labelling" else "one for every sample"
        raise DataError(f"{kind} takes {wanted}; the labels of {samples.where} have the shape {list(targets.shape)}")
    return attrs.evolve(samples, targets=targets)
