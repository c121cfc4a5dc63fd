"""The first layers of a checkpoint, as a checkpoint: so that a real model can be tried, and its costs seen to grow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file


def first_layers(source: Path, folder: Path, layers: int) -> Path:
    """Write the first `layers` blocks of a Hugging Face directory, and everything that is of no block, to `folder`."""
    folder.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix in (".json", ".jinja") and not file.name.endswith("index.json"):
            shutil.copy(file, folder / file.name)
    config = json.loads((source / "config.json").read_text()) | {"num_hidden_layers": layers}
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))
    kept: dict[str, Any] = {}
    for file in source.glob("*.safetensors"):
        with safe_open(file, "pt") as found:
            for name in found.keys():  # noqa: SIM118
                if "layers." not in name or int(name.split("layers.")[1].split(".")[0]) < layers:
                    kept[name] = found.get_tensor(name)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder
