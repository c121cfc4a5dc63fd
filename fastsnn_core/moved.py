"""Old import paths: one table, found when an import fails, with a DeprecationWarning that names the new place.

Paths that the project's first documents show (`fastsnn.builder.config` and its kin) are real modules and stay for ever;
these are kept for one release.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULES: dict[str, str] = {
    "fastsnn_convert.attention": "fastsnn_convert.language.attention_swap",
    "fastsnn_convert.calibrate": "fastsnn_convert.language.balance",
    "fastsnn_convert.checkpoint": "fastsnn_convert.language.hf_checkpoint",
    "fastsnn_convert.distil": "fastsnn_convert.modules.output_regression",
    "fastsnn_convert.engine": "fastsnn_convert.modules.rule_engine",
    "fastsnn_convert.exchange": "fastsnn_convert.language.token_replacement",
    "fastsnn_convert.families": "fastsnn_convert.language.families",
    "fastsnn_convert.figures": "fastsnn_convert.language.reference_eval",
    "fastsnn_convert.graph": "fastsnn_convert.modules.fx_trace",
    "fastsnn_convert.heal": "fastsnn_convert.language.distillation",
    "fastsnn_convert.heal_settings": "fastsnn_convert.language.distillation_settings",
    "fastsnn_convert.images": "fastsnn_convert.modules.site_thresholds",
    "fastsnn_convert.measuring": "fastsnn_convert.modules.site_report",
    "fastsnn_convert.outputs": "fastsnn_convert.output_distance",
    "fastsnn_convert.rebuild": "fastsnn_convert.language.rebuild",
    "fastsnn_convert.steps": "fastsnn_convert.modules.accuracy_vs_steps",
    "fastsnn_convert.texts": "fastsnn_convert.language.distillation_data",
    "fastsnn_convert.thresholds": "fastsnn_convert.language.threshold_gradients",
    "fastsnn_convert.weights": "fastsnn_convert.modules.weights",
    "fastsnn_convert.written": "fastsnn_convert.modules.to_spec",
    "fastsnn_core.coding": "fastsnn_events.coder_helpers",
    "fastsnn_core.conversion": "fastsnn_conversion.context",
    "fastsnn_core.folding": "fastsnn_conversion.time_folding",
    "fastsnn_core.leaky": "fastsnn_leaky.neurons",
    "fastsnn_core.ops.decode": "fastsnn_core.lowering",
    "fastsnn_core.ops.exact": "fastsnn_integer.deterministic",
    "fastsnn_core.ops.lif": "fastsnn_leaky.scan",
    "fastsnn_core.ops.linear_scan": "fastsnn_linear_scan",
    "fastsnn_core.ops.rounding": "fastsnn_core.ops.surrogate_gradient",
    "fastsnn_core.ops.rows": "fastsnn_integer.fused_row_ops",
    "fastsnn_core.passing": "fastsnn_conversion.spike_layers",
    "fastsnn_core.quant": "fastsnn_integer.quantization",
    "fastsnn_core.run": "fastsnn_core.training_run",
    "fastsnn_core.runtime": "fastsnn_events.runtime",
    "fastsnn_core.runtime_paths": "fastsnn_scope_paths.runtime_paths",
    "fastsnn_core.testing.rules": "fastsnn_conversion.testing",
    "fastsnn_core.testing.runtimes": "fastsnn_integer.testing",
    "fastsnn_kernel_numba.decode": "fastsnn_kernel_numba.fused_decoder_kernel",
    "fastsnn_kernel_numba.event": "fastsnn_kernel_numba.gemm_events",
    "fastsnn_kernel_numba.exact": "fastsnn_kernel_numba.deterministic",
    "fastsnn_kernel_numba.launch": "fastsnn_kernel_numba.numba_runtime",
    "fastsnn_kernel_numba.lif": "fastsnn_kernel_numba.lif_scan",
    "fastsnn_kernel_numba.linear": "fastsnn_kernel_numba.integer_linear",
    "fastsnn_kernel_numba.memory": "fastsnn_kernel_numba.buffer_pool",
    "fastsnn_kernel_numba.onerow": "fastsnn_kernel_numba.gemv_events",
    "fastsnn_kernel_numba.rows": "fastsnn_kernel_numba.row_epilogues",
    "fastsnn_kernel_numba.step": "fastsnn_kernel_numba.fused_decoder_stages",
    "fastsnn_kernel_numba.stepper": "fastsnn_kernel_numba.fused_decoder_runtime",
    "fastsnn_kernel_numba.sync": "fastsnn_kernel_numba.spin_barrier",
    "fastsnn_kernel_numba.views": "fastsnn_kernel_numba.array_views",
    "fastsnn_model_decoder.fast": "fastsnn_model_decoder.fused_decode",
    "fastsnn_serve.answering": "fastsnn_serve.http.request_task",
    "fastsnn_serve.cache": "fastsnn_serve.engine.prefix_cache",
    "fastsnn_serve.chat": "fastsnn_serve.http.chat_template",
    "fastsnn_serve.fields": "fastsnn_serve.http.strict_json",
    "fastsnn_serve.memory": "fastsnn_serve.engine.state_budget",
    "fastsnn_serve.protocol": "fastsnn_serve.http.protocol",
    "fastsnn_serve.ray_app": "fastsnn_serve.http.ray_app",
    "fastsnn_serve.reading": "fastsnn_serve.engine.prefill_runner",
    "fastsnn_serve.replies": "fastsnn_serve.http.replies",
    "fastsnn_serve.routes": "fastsnn_serve.http.routes",
    "fastsnn_serve.running": "fastsnn_serve.http.server",
    "fastsnn_serve.streams": "fastsnn_serve.engine.streams",
    "fastsnn_serve.writer": "fastsnn_serve.engine.detokenizer",
    "fastsnn_train.checkpoint": "fastsnn_train.loop.checkpoint",
    "fastsnn_train.evaluate": "fastsnn_train.evaluation.evaluate",
    "fastsnn_train.extend_cli": "fastsnn_train.extend.cli",
    "fastsnn_train.extend_decay": "fastsnn_train.extend.decay",
    "fastsnn_train.extend_keep": "fastsnn_train.extend.storage",
    "fastsnn_train.extend_report": "fastsnn_train.extend.report",
    "fastsnn_train.extend_shape": "fastsnn_train.extend.reshape",
    "fastsnn_train.extend_walk": "fastsnn_train.extend.step",
    "fastsnn_train.feed": "fastsnn_train.data.batch_source",
    "fastsnn_train.following": "fastsnn_train.loop.callbacks",
    "fastsnn_train.health": "fastsnn_train.loop.health",
    "fastsnn_train.keeping": "fastsnn_train.loop.resume",
    "fastsnn_train.optim": "fastsnn_train.loop.optim",
    "fastsnn_train.packing": "fastsnn_train.data.packing",
    "fastsnn_train.parallel": "fastsnn_train.loop.parallel",
    "fastsnn_train.progress": "fastsnn_train.loop.progress",
    "fastsnn_train.randomness": "fastsnn_train.loop.randomness",
    "fastsnn_train.recall": "fastsnn_train.evaluation.recall",
    "fastsnn_train.sequence": "fastsnn_train.loop.sequence",
    "fastsnn_train.snapshot": "fastsnn_train.loop.snapshot",
    "fastsnn_train.sources": "fastsnn_train.data.sources",
    "fastsnn_train.spiking": "fastsnn_train.loop.firing_rate",
    "fastsnn_train.step": "fastsnn_train.loop.optimizer_step",
    "fastsnn_train.streaming": "fastsnn_train.data.streaming",
    "fastsnn_train.tokens": "fastsnn_train.data.tokenize",
    "fastsnn_train.trainer": "fastsnn_train.loop.trainer",
    "fastsnn_core.templates": "fastsnn_core.scaffold",
}
NAMES: dict[str, str] = {
    "fastsnn_core.ops.lif_scan": "fastsnn_leaky",
    "fastsnn_core.ops.thresholds": "fastsnn_leaky",
    "fastsnn_core.ops.linear_scan": "fastsnn_linear_scan",
    "fastsnn_core.ops.linear_scan_naive": "fastsnn_linear_scan",
    "fastsnn_core.ops.linear_step": "fastsnn_linear_scan",
}


def attribute(package: str, name: str) -> Any:
    """An attribute that `package` had before; AttributeError for any other."""
    old = f"{package}.{name}"
    if old not in NAMES and old not in MODULES:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    if old in NAMES:
        say(old, NAMES[old])
        return getattr(bring(old, NAMES[old]), name)
    say(old, MODULES[old])
    return bring(old, MODULES[old])


def say(old: str, new: str) -> None:
    """Warn whoever imports `old`."""
    warnings.warn(f"{old} is now {new}; the old path goes with the next release", DeprecationWarning, stacklevel=4)


def bring(old: str, new: str) -> ModuleType:
    """The module at its new place, or an error that says what to install."""
    try:
        return importlib.import_module(new)
    except ModuleNotFoundError as error:
        top = new.partition(".")[0]
        if error.name != top:
            raise
        raise ImportError(f"{old} is now {new}: pip install {top.replace('_', '-')}") from None


class Moved:
    """Finder and loader of the old paths: the old name becomes another name of the new module."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """A spec where `name` is an old path."""
        return importlib.util.spec_from_loader(name, Moved()) if name in MODULES else None  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        """The ordinary empty module; `exec_module` replaces it."""

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Put the new module under the old name."""
        old = module.__name__
        say(old, MODULES[old])
        sys.modules[old] = bring(old, MODULES[old])


def install() -> None:
    """Ask `Moved` after everybody else, once."""
    if not any(finder is Moved for finder in sys.meta_path):
        sys.meta_path.append(Moved)
