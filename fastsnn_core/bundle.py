"""The ``.snn`` bundle: one folder that holds a model whole.

    model.snn/
        config.json           the filled spec, kinds qualified, and the distributions it needs with their versions
        weights.safetensors   every parameter and neuron constant; in integer models those that bfloat16 holds exactly
                              are one tensor, ``packed``, in the order of the state dict (format 2)
        tokenizer.json        where the model has a Hugging Face tokenizer
        meta.json             tokenizer kind, milestones, metrics, environment, size and sha256 of every file
        spike.report/         SpikeScope's report, where one was made

Everything is verified on load, meta.json included, and a file that meta.json does not list is refused, so that nothing
unverified is ever used; there is no pickle anywhere. ``save(load(b), c)`` gives equal bytes.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import logging
import platform
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastsnn_core import bundle_checks, targets
from fastsnn_core import spec as specs
from fastsnn_core.component import Component, Model, parts
from fastsnn_core.files import beside, reading_tensors
from fastsnn_core.plugins import registry
from fastsnn_core.sealed_folder import BundleError as BundleError
from fastsnn_core.sealed_folder import check_listed, digest, dump, read_json, sealed
from fastsnn_core.versions import installed_version, other_versions

log = logging.getLogger("fastsnn")
FORMAT, PACKED_FORMAT = 1, 2
PACKED = "packed"
CONFIG, WEIGHTS, META = "config.json", "weights.safetensors", "meta.json"
TOKENIZER, REPORT = "tokenizer.json", "spike.report"


def build(spec: Model) -> nn.Module:
    """Build a model; the module keeps its component as ``.spec``. `FastSNNError`: values that do not go together."""
    try:
        module = spec.build()
    except (RuntimeError, TypeError, OverflowError) as error:
        if "allocate memory" not in str(error) and "verflow" not in str(error):
            raise
        raise BundleError(f"a {spec.name} of these sizes does not fit into memory: {error}") from None
    module.spec = spec
    for name in ("meta", "sections"):
        if not hasattr(module, name):
            setattr(module, name, {})
    bundle_checks.remember(module)
    return module


def training_environment() -> dict[str, str]:
    """Where a model was made."""
    from fastsnn_core import __version__

    found = {"fastsnn-core": __version__, "python": platform.python_version(), "torch": torch.__version__}
    return found | {"platform": platform.platform()}


def distributions_of(spec: Component) -> dict[str, str]:
    """Core and the distributions that the spec's components come from, with versions."""
    found = (registry().distribution(part) for part in parts(spec))
    return dict(sorted({("fastsnn-core", installed_version("fastsnn-core")), *(hit for hit in found if hit)}))


def config(model: nn.Module) -> dict[str, Any]:
    """What config.json says of a model."""
    spec: Any = getattr(model, "spec", None)
    if not isinstance(spec, Model):
        raise BundleError(f"{type(model).__name__} has no .spec; build it with fastsnn_core.build or FastSNN.build")
    table = specs.as_table(specs.Spec(spec), qualified=True)
    needed = distributions_of(spec)
    for name, part in extra().items():
        if (found := part.load().as_table(model)) is not None:
            table[name] = found
            needed |= {d: v for used in part.load().components(found) for d, v in distributions_of(used).items()}
    return table | {
        "bundle": FORMAT,
        "distributions": dict(sorted(needed.items())),
        "sections": getattr(model, "sections", {}),
    }


def extra() -> dict[str, importlib.metadata.EntryPoint]:
    """Parts of config.json that libraries write and read, by key (entry points ``fastsnn1.bundle``).

    Each names a module with ``as_table(model) -> dict | None``, ``components(table)``, ``prepare(model, table)``.
    """
    return {point.name: point for point in importlib.metadata.entry_points(group="fastsnn1.bundle")}


def unique_tensors(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """``state_dict`` without repeats, and which name repeats which (tied weights)."""
    kept: dict[str, torch.Tensor] = {}
    seen: dict[tuple[Any, ...], str] = {}
    tied: dict[str, str] = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in seen:
            tied[name] = seen[key]
        else:
            seen[key] = name
            kept[name] = tensor.detach().cpu().contiguous()
    return kept, tied


def pack_vectors(kept: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Everything that bfloat16 holds without loss as one tensor: a name of its own costs a short vector 100 bytes."""
    short = {n: t.to(torch.bfloat16) for n, t in kept.items() if t.dtype in (torch.float32, torch.bfloat16)}
    short = {n: t for n, t in short.items() if torch.equal(t.to(kept[n].dtype), kept[n])}
    if not short or PACKED in kept:
        return kept
    packed = torch.cat([t.reshape(-1) for t in short.values()])
    return {n: t for n, t in kept.items() if n not in short} | {PACKED: packed}


def unpack_vectors(model: nn.Module, found: dict[str, torch.Tensor], tied: dict[str, str], where: Path) -> None:
    """Put the packed numbers of a bundle back under their names: those of the model that the file does not have."""
    packed, at = found.pop(PACKED).float(), 0
    absent = {n: t for n, t in model.state_dict().items() if n not in found and n not in tied}
    size = sum(t.numel() for t in absent.values())
    if size != packed.numel():
        raise BundleError(f"{where} does not fit its config: {packed.numel()} packed numbers, {size} expected")
    for name, tensor in absent.items():
        found[name] = packed[at : at + tensor.numel()].reshape(tensor.shape)
        at += tensor.numel()


def save(model: nn.Module, path: str | Path, *, tokenizer: str | None = None, report: str | Path | None = None) -> Path:
    """Write a bundle at `path`, whole or not at all. `tokenizer` is the text of a tokenizer.json, `report` a folder.

    What a bundle could not hold is refused (`fastsnn_core.bundle_checks`): hooks that change what is computed, modules
    that the spec does not build, weights that are NaN.
    """
    from safetensors.torch import save_file

    model = bundle_checks.unwrapped(model)
    try:
        path = targets.bundle(path)
    except targets.FileError as error:
        raise BundleError(str(error)) from None
    table = config(model)
    bundle_checks.check_savable(model, lambda: uninitialized(path, table))
    kept, tied = unique_tensors(model)
    table |= {"tied": tied} if tied else {}
    if getattr(model.spec, "quant", None) is not None and PACKED in (kept := pack_vectors(kept)):
        table["bundle"] = PACKED_FORMAT
    meta = dict(getattr(model, "meta", {}))
    meta.setdefault("environment", training_environment())
    meta.setdefault("created", datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    meta.setdefault("milestones", [])
    tokenizer = tokenizer if tokenizer is not None else getattr(model, "tokenizer_json", None)
    files = None
    if report is None and (report := fresh_report(model)) is not None:
        files = getattr(model, "report_files", None)
    with beside(path) as scratch:
        scratch.mkdir()
        (scratch / CONFIG).write_text(dump(table), encoding="utf-8")
        save_file(kept, scratch / WEIGHTS)
        if tokenizer is not None:
            (scratch / TOKENIZER).write_text(tokenizer, encoding="utf-8")
        if report is not None and Path(report).is_dir():
            copy_report(Path(report), scratch / REPORT, files)
        files = sorted(p for p in scratch.rglob("*") if p.is_file())
        meta["files"] = {p.relative_to(scratch).as_posix(): digest(p) for p in files}
        (scratch / META).write_text(dump(sealed(meta)), encoding="utf-8")
    model.meta = {k: v for k, v in meta.items() if k not in ("files", "seal")}  # type: ignore[assignment]
    return path


def fresh_report(model: nn.Module) -> Path | None:
    """The folder of the report that was made of `model` as it is; None, with a warning, where it has changed since."""
    report = getattr(model, "report_path", None)
    if report is None or not Path(report).is_dir():
        return None
    if getattr(model, "report_of", None) not in (None, weights_checksum(model)):
        log.warning("the model has changed since its report at %s, which is left out of the bundle", report)
        return None
    return Path(report)


def weights_checksum(model: nn.Module) -> int:
    """A checksum of every parameter and buffer."""
    found = 0
    for name, tensor in model.state_dict().items():
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found = zlib.crc32(data.numpy(), zlib.crc32(name.encode(), found))
    return found


def copy_report(source: Path, target: Path, files: Sequence[str] | None) -> None:
    """Copy a report's `files`, or all that lies in its folder."""
    if files is None:
        shutil.copytree(source, target)
        return
    target.mkdir()
    for name in files:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def verify(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """``(config, meta)`` of a bundle whose every listed file is present and unaltered."""
    name, path = targets.option_text(path, ""), Path(path)
    if not path.is_dir():
        what = "is a file, not a bundle folder" if path.exists() else "does not exist"
        aside = next(iter(sorted(path.parent.glob(f".{path.name}.*.old"))), None) if path.parent.is_dir() else None
        raise BundleError(f"{name} {what}" + (f"; an earlier version was kept at {aside}" if aside else ""))
    check_listed(path, path / META)
    meta = read_json(path / META)
    for name in (CONFIG, WEIGHTS):
        if name not in meta["files"]:
            raise BundleError(f"{path / META} does not list {name}")
    table = read_json(path / CONFIG)
    for name, kind in (("distributions", dict), ("sections", dict), ("tied", dict), ("model", dict)):
        if not isinstance(table, dict) or not isinstance(table.get(name, {}), kind):
            raise BundleError(f"{path / CONFIG} is damaged: its {name} is no table")
    return table, meta


def read_spec(path: Path, table: dict[str, Any]) -> Model:
    """The model component of a bundle's config; a missing plugin says what to install."""
    if table.get("bundle") not in (FORMAT, PACKED_FORMAT):
        raise BundleError(
            f"{path / CONFIG} has bundle format {table.get('bundle')!r}, this fastsnn-core reads {FORMAT} and "
            f"{PACKED_FORMAT}: install a newer fastsnn-core"
        )
    own = {"bundle", "distributions", "sections", "tied", "runtime", *extra()}
    core = {k: v for k, v in table.items() if k not in own}
    try:
        return specs.from_table(core, dump(table), str(path / CONFIG)).model
    except specs.SpecError as error:
        absent = missing(table.get("distributions", {}))
        help = f"\nThis bundle needs: pip install {' '.join(absent)}" if absent else ""
        raise BundleError(f"{error}{help}") from None


def prepare(model: nn.Module, path: Path, table: dict[str, Any]) -> None:
    """Hand the parts that libraries wrote back to them (the codings of an event runtime)."""
    parts = extra()
    if "runtime" in table and "runtime" not in parts:
        raise BundleError(f"{path / CONFIG} was saved with an event runtime: pip install fastsnn-events")
    for name, point in parts.items():
        if name not in table:
            continue
        try:
            point.load().prepare(model, table[name])
        except Exception as error:
            absent = missing(table.get("distributions", {}))
            help = f"\nThis bundle needs: pip install {' '.join(absent)}" if absent else ""
            raise BundleError(f"{path / CONFIG} has a {name} that cannot be set up: {error}{help}") from None


def missing(wanted: dict[str, str]) -> list[str]:
    """Distributions of a bundle that are not installed, ready to paste after ``pip install``."""
    have = {"fastsnn-core", *(p.distribution for p in registry().plugins if p.status == "ok")}
    return [f"'{name}>={version}'" for name, version in wanted.items() if name not in have]


def uninitialized(path: Path, table: dict[str, Any]) -> nn.Module:
    """The network that a config.json describes, with weights of no meaning."""
    with torch.random.fork_rng(devices=[]):
        model = build(read_spec(path, table))
    prepare(model, path, table)
    return model


def load(path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """The model of a bundle, in evaluation mode. `BundleError`: damaged, unlisted files, a missing plugin."""
    import safetensors.torch

    (table, meta), path = verify(path), Path(path)
    if others := other_versions(table.get("distributions", {})):
        log.warning("%s was made by %s; if it behaves differently here, install those versions", path, others)
    model = uninitialized(path, table)
    try:
        with reading_tensors():
            found = safetensors.torch.load_file(path / WEIGHTS)
    except safetensors.SafetensorError as error:
        raise BundleError(f"{path / WEIGHTS} is damaged: {error}") from None
    tied = table.get("tied", {})
    if table["bundle"] == PACKED_FORMAT and PACKED in found:
        unpack_vectors(model, found, tied, path / WEIGHTS)
    found |= {name: found[other] for name, other in tied.items() if other in found}
    copy_weights(model, found, path / WEIGHTS)
    model.meta = {k: v for k, v in meta.items() if k not in ("files", "seal")}  # type: ignore[assignment]
    model.sections = table.get("sections", {})
    if TOKENIZER in meta["files"]:
        model.tokenizer_json = (path / TOKENIZER).read_text(encoding="utf-8")  # type: ignore[assignment]
    if any(name.startswith(f"{REPORT}/") for name in meta["files"]):
        model.report_path = path / REPORT  # type: ignore[assignment]
        model.report_of = weights_checksum(model)  # type: ignore[assignment]
    model.loaded_from = path.resolve()  # type: ignore[assignment]
    return model.to(device).eval()


def copy_weights(model: nn.Module, found: dict[str, torch.Tensor], where: Path) -> None:
    """Copy tensors into a model; every missing, unknown or misshapen one is named."""
    wanted = model.state_dict()
    says = [f"{name} is missing" for name in wanted if name not in found]
    says += [f"{name} is not part of this model" for name in found if name not in wanted]
    for name, tensor in found.items():
        if name in wanted and tensor.shape != wanted[name].shape:
            says.append(f"{name} has shape {tuple(tensor.shape)}, {tuple(wanted[name].shape)} expected")
    if says:
        more = f" (and {len(says) - 5} more)" if len(says) > 5 else ""
        raise BundleError(f"{where} does not fit its config: {'; '.join(says[:5])}{more}")
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name in found and found[name].dtype != tensor.dtype:
                tensor.data = tensor.data.to(found[name].dtype)
    model.load_state_dict(found)
