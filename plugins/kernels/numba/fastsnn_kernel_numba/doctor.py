"""What ``fastsnn doctor`` says of the compiled kernels."""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from pathlib import Path
from typing import Any


def kernels() -> dict[str, str]:
    """Numba's threads, where compiled code is kept, and for how many functions there is some."""
    import numba
    from numba.core.dispatcher import Dispatcher

    import fastsnn_kernel_numba as package

    found: dict[str, Any] = {}
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            if isinstance(value, Dispatcher) and value.py_func.__module__.startswith(package.__name__):
                found[f"{value.py_func.__module__}.{value.py_func.__qualname__}"] = value
    folders = {Path(f.stats.cache_path) for f in found.values() if f.stats.cache_path}
    kept = {path.name.rsplit("-", 1)[0] for folder in folders for path in folder.glob("*.nbi")}
    # a file is called module.function-line.version.nbi
    have = sum(any(f.py_func.__qualname__ in name for name in kept) for f in found.values())
    size = sum(path.stat().st_size for folder in folders for path in folder.glob("*.nbc"))
    return {
        "numba": f"{importlib.metadata.version('numba')}, {numba.threading_layer()}, {numba.get_num_threads()} threads",
        "kept at": ", ".join(sorted(map(str, folders))) or "nowhere: compiled anew in every process",
        "compiled": f"{have} of {len(found)} functions, {size / 2**20:.0f} MiB (the others when they first run)",
    }
