"""A causal language model that transformers holds in memory: written to a folder for a while, and read from there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastsnn_convert.language.hf_config import FAMILIES

BESIDE_WEIGHTS = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "chat_template.jinja",
)  # fmt: skip
"""Files of the tokenizer, which the model itself does not hold: taken from the directory it was loaded from."""


def is_loaded(source: Any) -> bool:
    """A model of transformers, for causal language, whose family can be read."""
    kind = type(source)
    family = getattr(getattr(source, "config", None), "model_type", None)
    ours = kind.__module__.startswith("transformers.") and kind.__name__.endswith("ForCausalLM")
    return ours and family in FAMILIES


@contextmanager
def written_folder(source: Any) -> Iterator[Path]:
    """The folder of `source` as it is now, tuned or not; it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="fastsnn-") as folder:
        path = Path(folder, Path(str(getattr(source, "name_or_path", ""))).name or "model")
        source.save_pretrained(path)
        origin = Path(str(getattr(source, "name_or_path", "")) or "nowhere")
        for name in BESIDE_WEIGHTS if origin.is_dir() else ():
            if (origin / name).is_file():
                shutil.copyfile(origin / name, path / name)
        yield path
