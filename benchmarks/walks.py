"""Files of this repository that run on three ways: a decoded token, a prompt, and a Hugging Face directory to a bundle.

    FASTSNN_DATA=data python benchmarks/walks.py [--only token prompt convert] [--files]

A file counts where one of its functions is called; importing it, and what runs meanwhile, does not count. The model is
snn-tiny with INT8 weights, warmed up; the conversion is of stories260k/hf under FASTSNN_DATA, with what
`fastsnn convert` does by default.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from fastsnn import FastSNN
from fastsnn_core.plugins import registry
from fastsnn_integer.quantization import quantise

ROOT = Path(__file__).resolve().parents[1]
WAYS = {"token_and_prompt": ("token", "prompt"), "conversion": ("convert",)}


@contextlib.contextmanager
def called_files() -> Iterator[Counter[str]]:
    """Path in the repository → functions of it that are called inside the block, in every thread."""
    seen: set[Any] = set()
    found: Counter[str] = Counter()
    importing = threading.local()

    def look(frame: Any, event: str, _: Any) -> None:
        if frame.f_code.co_name == "<module>":
            importing.modules = getattr(importing, "modules", 0) + {"call": 1, "return": -1}.get(event, 0)
        elif event == "call" and not getattr(importing, "modules", 0):
            seen.add(frame.f_code)

    threading.setprofile(look)
    sys.setprofile(look)
    try:
        yield found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        for code in seen:
            path = Path(code.co_filename)
            ours = path.is_relative_to(ROOT / "plugins") or path.is_relative_to(ROOT / "fastsnn_core")
            if ours:
                found[str(path.relative_to(ROOT))] += 1


def token_and_prompt(_: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The two walks of a language model; everything has been compiled and made before."""
    torch.manual_seed(0)
    model = quantise(FastSNN.build("snn-tiny")).eval()
    ids = torch.randint(0, 257, (1, 64))

    def prompt() -> Any:
        with torch.no_grad():
            return model(ids, last=True, return_state=True)[1]

    prompt()
    stream = model.fast(prompt())
    if stream is None:
        raise SystemExit(f"no fused step: {model.fast_step['why']}")
    stream.step(5)
    yield "token", lambda: stream.step(7)
    yield "prompt", prompt


def conversion(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """From the directory to a bundle; finding the plugins is no part of it."""
    registry()
    if "FASTSNN_DATA" not in os.environ:
        raise SystemExit("FASTSNN_DATA is not set: the folder that holds stories260k/hf")
    source = Path(os.environ["FASTSNN_DATA"]) / "stories260k" / "hf"
    yield "convert", lambda: FastSNN.convert(source).save(folder / "converted.snn")


def main() -> None:
    """Print a row for every walk, and with ``--files`` the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=("token", "prompt", "convert"), default=["token", "prompt", "convert"]
    )
    parser.add_argument("--files", action="store_true", help="name every file and how many of its functions ran")
    opts = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for way in (token_and_prompt, conversion):
            if set(opts.only).isdisjoint(WAYS[way.__name__]):
                continue
            for title, walk in way(Path(name)):
                if title in opts.only:
                    with called_files() as found, contextlib.redirect_stderr(io.StringIO()):
                        walk()
                    report(title, found, opts.files)


def report(title: str, found: Counter[str], files: bool) -> None:
    """``token: 6 files, 11 functions: kernels/numba 4, models/decoder 2``."""
    parts = Counter("/".join(path.split("/")[1:3]) if path.startswith("plugins/") else "core" for path in found)
    said = ", ".join(f"{part} {n}" for part, n in parts.most_common())
    print(f"{title}: {len(found)} files, {sum(found.values())} functions: {said}")
    for path in sorted(found) if files else ():
        print(f"  {found[path]:3} {path}")


if __name__ == "__main__":
    main()
