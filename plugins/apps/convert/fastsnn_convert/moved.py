"""Old import paths of this distribution, kept for one release."""

from __future__ import annotations

from fastsnn_core.moved import add

add(
    "fastsnn_convert",
    {
        "attention": "language.attention_swap",
        "calibrate": "language.balance",
        "checkpoint": "language.hf_checkpoint",
        "distil": "modules.output_regression",
        "engine": "modules.rule_engine",
        "exchange": "language.token_replacement",
        "families": "language.families",
        "figures": "language.reference_eval",
        "graph": "modules.fx_trace",
        "heal": "language.distillation",
        "heal_settings": "language.distillation_settings",
        "images": "modules.site_thresholds",
        "language.without_weights": "language.rebuild",
        "measuring": "modules.site_report",
        "outputs": "output_distance",
        "rebuild": "language.rebuild",
        "steps": "modules.accuracy_vs_steps",
        "texts": "language.distillation_data",
        "thresholds": "language.threshold_gradients",
        "weights": "modules.weights",
        "written": "modules.to_spec",
    },
)
