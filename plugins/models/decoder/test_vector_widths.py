"""The same bits from vectors of other widths: kernels compiled for older processors beside those for this one."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")
pytest.importorskip("fastsnn_kernel_numba")

OTHERS = {"AVX2, 256 bits": ("haswell", "+avx,+avx2,+fma,+f16c"), "SSE, 128 bits": ("nehalem", "+sse4.2")}
DIGESTS = """
import hashlib, json
import torch
from llvmlite import binding
from numba.core.registry import cpu_target
from test_step_many import MODELS, VOCAB, network

def digest(x):
    return hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()

found = {"processor": cpu_target.target_context.codegen()._tm_features}
for name, fields in MODELS.items():
    torch.manual_seed(1)
    model, tokens = network(**fields), torch.randint(VOCAB, (1, 150))
    with torch.inference_mode():
        logits, state = model(tokens, return_state=True)
        stream = model.fast(state)
        assert stream is not None, model.fast_step
        steps = torch.stack([stream.step(int(token)) for token in tokens[0, :12]])
    assert steps.isfinite().all() and len(steps.unique()) > 12
    found[name] = [digest(logits), digest(steps)]
print(json.dumps(found))
"""


def digests(cache: Path, processor: tuple[str, str] | None) -> dict[str, object]:
    """What a process prints whose kernels are compiled for `processor` (None: this one)."""
    env = os.environ | {"NUMBA_CACHE_DIR": str(cache), "FASTSNN_COMPILE": "wait", "OMP_NUM_THREADS": "1"}
    if processor is not None:
        env |= dict(zip(("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"), processor, strict=True))
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", DIGESTS], cwd=here, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="names processors of x86")
def test_bits_do_not_depend_on_the_width_of_vectors(tmp_path):
    """Prompts and fused steps of every model of `test_step_many`, from a cache that is empty."""
    found = {name: digests(tmp_path / str(i), cpu) for i, (name, cpu) in enumerate({"this": None, **OTHERS}.items())}
    processors = [each.pop("processor") for each in found.values()]
    assert len(set(processors)) == 3, processors
    assert len(found["this"]) > 9
    for name in OTHERS:
        assert found[name] == found["this"], name
