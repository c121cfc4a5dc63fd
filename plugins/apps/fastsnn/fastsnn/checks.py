"""What `FastSNN`'s methods ask of their arguments before the work: a model, a path, an exporter, where to write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsnn_console import targets
from fastsnn_console.typed import typed
from fastsnn_core import Exporter, create
from fastsnn_core.errors import ArgumentError, FastSNNError, did_you_mean
from fastsnn_core.plugins import LookupFailure, registry

if TYPE_CHECKING:
    from torch import nn


def as_named_table(value: Any) -> Any:
    """A component by its name alone, as a table."""
    return {"kind": value} if isinstance(value, str) else value


def learns_samples(model: nn.Module, task: str, dataset: Any) -> bool:
    """Labelled samples, or language? What `task` says; else samples, unless the model reads tokens."""
    from fastsnn_modules.inputs import vocabulary_of

    if task:
        return task != "language"
    if vocabulary_of(model) is not None:
        return False
    if dataset == "builtin:pydoc":
        raise ArgumentError(
            f"{dataset} holds texts, and this network reads no tokens; give labelled samples as dataset="
        )
    return True


def needs_model(function: str, model: Any) -> None:
    """Raise `ArgumentError` where a model was to be given and something else was."""
    from torch import nn

    if getattr(model, "_is_torch_compile", False) and not isinstance(model, nn.Module):
        raise FastSNNError(
            f"{function}() takes a model, got a compiled function: torch.compile of a model that is compiled already "
            "gives a function, which does not know its model; pass the model itself"
        )
    if not isinstance(model, nn.Module):
        hint = "; load it first: FastSNN.load(path)" if isinstance(model, str | Path) else ""
        raise ArgumentError(f"{function}() takes a model, got {type(model).__name__} {model!r}{hint}")


def needs_spec(model: nn.Module) -> None:
    """Raise `ConversionError` for a converted network that no spec can say: what keeps it out of a bundle."""
    report = getattr(model, "report", None)
    if getattr(model, "spec", None) is None and isinstance(report, dict) and report.get("obstacles"):
        from fastsnn_convert.result import refuse_bundle

        refuse_bundle(report["obstacles"])


def needs_path(function: str, path: Any) -> str | Path:
    """`path`, or an `ArgumentError` where it is none."""
    if not isinstance(path, str | Path):
        raise ArgumentError(f"{function}() takes a model or the path of a bundle, got {type(path).__name__} {path!r}")
    return path


def exporter_of(to: str, **options: Any) -> Exporter | None:
    """The exporter of that name with these options; None for ``snn``, the bundle itself, whose options are checked."""
    if to == "snn":
        check_bundle_options(**options)
        return None
    if to not in registry().names("exporter") and "/" not in to:
        names = ["snn", *registry().names("exporter")]
        raise LookupFailure(f"no exporter called {to!r}", did_you_mean(to, names, "installed"))
    return create("exporter", to, **options)


@typed
def check_bundle_options(report: str | Path | bool | None = None, tokenizer: str | None = None) -> None:
    """The options of a bundle: a report's folder is there."""
    if isinstance(report, str | Path) and not (str(report) and Path(report).is_dir()):
        raise ArgumentError(f"export(report=): there is no folder {str(report)!r}; True looks at the spikes now")


def check_target(
    path: str | Path, exporter: Exporter | None, sources: Sequence[str | Path] = (), option: str = ""
) -> None:
    """Can an export be written at `path`, and is none of `sources` lost by it?"""
    checks = {"bundle": targets.bundle, "file": targets.file, "folder": targets.folder}
    checks.get("bundle" if exporter is None else exporter.writes, targets.anything)(path, sources, option)
