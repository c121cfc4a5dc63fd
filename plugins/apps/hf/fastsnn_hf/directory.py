"""A model as a Hugging Face directory: config.json, safetensors (in shards where it is large), a card with figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from fastsnn_core import bundle as bundles
from fastsnn_core.errors import FileError
from fastsnn_core.files import beside, write_text
from fastsnn_hf.configuration import TYPE, of_table, plain_json

CONFIG, WEIGHTS, INDEX, GENERATION, CARD = (
    "config.json", "model.safetensors", "model.safetensors.index.json", "generation_config.json", "README.md",
)  # fmt: skip
PREFIX = "model."


def local(name: Any, hub: dict[str, Any]) -> Path:
    """The folder of a model: `name` itself, or a repository's files, fetched as transformers fetches them."""
    path = Path(name)
    if path.is_dir():
        return path / (hub.get("subfolder") or "")
    if path.exists() or not isinstance(name, str) or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise FileError(f"{name} is neither a .snn bundle nor a folder that save_pretrained wrote")
    from huggingface_hub import snapshot_download

    words = {k: v for k, v in hub.items() if k != "subfolder" and v is not None}
    return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja"], **words))


def read_table(path: Path) -> dict[str, Any]:
    """A JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise FileError(f"{path} holds no table")
    return found


def shards(folder: Path) -> list[Path]:
    """The files of the weights."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise FileError(f"{folder} has no weights: neither {WEIGHTS} nor {INDEX}")
    table = read_table(folder / INDEX).get("weight_map")
    names = (
        sorted(set(table.values()))
        if isinstance(table, dict) and all(isinstance(v, str) for v in table.values())
        else []
    )
    if not names or any(Path(name).name != name for name in names):
        raise FileError(f"{folder / INDEX} has no weight_map of file names")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise FileError(f"{folder / missing[0]} is missing; {INDEX} names it")
    return [folder / name for name in names]


def load_network(folder: Path) -> nn.Module:
    """The network of a directory that `write_directory` made, every tensor checked."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_table(folder / CONFIG)
    if config.get("model_type") != TYPE or not isinstance(config.get("table"), dict):
        raise FileError(f"{folder / CONFIG} is not of a FastSNN model (model_type {config.get('model_type')!r})")
    table, files = config["table"], shards(folder)
    model: Any = bundles.uninitialized(folder / CONFIG, table)
    found: dict[str, Any] = {}
    for file in files:
        try:
            found |= load_file(file)
        except SafetensorError as error:
            raise FileError(f"{file} is damaged: {error}") from None
    found = {name.removeprefix(PREFIX): tensor for name, tensor in found.items()}
    found |= {name: found[other] for name, other in table.get("tied", {}).items() if other in found}
    bundles.copy_weights(model, found, files[0])
    model.meta, model.sections = config.get("meta") or {}, table.get("sections", {})
    if (folder / "tokenizer.json").is_file():
        from fastsnn_text import attach, load_tokenizer

        attach(model, load_tokenizer(folder))
    return model.eval()


def read_generation(model: Any, folder: Path) -> None:
    """Generation settings of the directory, where it has some."""
    if (folder / GENERATION).is_file() and not (folder / "meta.json").is_file():
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(folder)


def write_directory(model: Any, folder: Path, state: dict[str, Any] | None, shard: int | str) -> None:
    """Write the directory; files of weights that were there under other names go."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    if folder.is_file():
        raise FileError(f"{folder} is a file; a model is saved into a folder")
    table = bundles.config(model.model)
    kept, tied = bundles.unique_tensors(model.model)
    if state is not None:
        kept = {n: state[PREFIX + n].detach().cpu().contiguous() for n in kept if PREFIX + n in state}
    table |= {"tied": tied} if tied else {}
    model.config.table = table
    model.config.meta = dict(getattr(model.model, "meta", {}))
    for key, value in of_table(table, model.config.meta).items():
        if key not in ("model_type", "architectures", "eos_token_id", "bos_token_id", "pad_token_id"):
            setattr(model.config, key, value)
    folder.mkdir(parents=True, exist_ok=True)
    named = {PREFIX + name: tensor for name, tensor in kept.items()}
    plan = split_torch_state_dict_into_shards(named, max_shard_size=shard)
    for file, names in plan.filename_to_tensors.items():
        with beside(folder / file) as scratch:
            save_file({name: named[name] for name in names}, scratch, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_text(folder / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
    write_text(folder / GENERATION, model.generation_config.to_json_string())
    write_text(folder / CARD, hf_readme(model))
    write_text(folder / CONFIG, plain_json(model.config))
    for old in folder.glob("model*.safetensors*"):
        if old.name not in {*plan.filename_to_tensors, *([INDEX] if plan.is_sharded else [])}:
            old.unlink()


def hf_readme(model: Any) -> str:
    """README.md: what the model is, what was measured, how to use it."""
    spec, meta = model.model.spec, getattr(model.model, "meta", {})
    kinds = ", ".join(dict.fromkeys(a.name for a in spec.attention))
    size = sum(p.numel() for p in model.model.parameters())
    lines = [
        "---", "library_name: transformers", "pipeline_tag: text-generation", "tags:", "- spiking", "- fastsnn", "---",
        "",
        f"# {Path(model.config.name_or_path or 'FastSNN model').name}", "",
        f"A spiking causal language model: {spec.n_layers} layers of {spec.d_model} channels, attention {kinds}, "
        "spikes "
        f"({spec.neuron.name}) at {', '.join(spec.sites) or 'no site'}, {size:,} parameters.", "",
        "```python", "import fastsnn_hf", "from transformers import pipeline", "",
        'print(pipeline("text-generation", model="PATH")("Once upon a time"))', "```", "",
        "`pip install fastsnn-hf`; no code comes with the model.",
    ]  # fmt: skip
    if rows := figures(meta):
        lines += ["", "| figure | value |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines) + "\n"


def figures(meta: dict[str, Any]) -> list[tuple[str, str]]:
    """Numbers of the milestones and metrics."""
    found: list[tuple[str, str]] = []
    for stone in meta.get("milestones", []):
        if isinstance(stone, dict):
            what = str(stone.get("what", "milestone"))
            quality = stone.get("quality")
            for key, value in (stone | (quality if isinstance(quality, dict) else {})).items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    found.append((f"{what}: {key.replace('_', ' ')}", f"{value:.6g}"))
    metrics = meta.get("metrics", {})
    for key, value in metrics.items() if isinstance(metrics, dict) else ():
        if isinstance(value, int | float) and not isinstance(value, bool):
            found.append((str(key).replace("_", " "), f"{value:.6g}"))
    return found
