"""Old import paths of this distribution, kept for one release."""

from __future__ import annotations

from fastsnn_core.moved import add

add(
    "fastsnn_train",
    {
        "checkpoint": "loop.checkpoint",
        "evaluate": "evaluation.evaluate",
        "extend_cli": "extend.cli",
        "extend_decay": "extend.decay",
        "extend_keep": "extend.storage",
        "extend_report": "extend.report",
        "extend_shape": "extend.reshape",
        "extend_walk": "extend.step",
        "feed": "data.batch_source",
        "following": "loop.callbacks",
        "health": "loop.health",
        "keeping": "loop.resume",
        "optim": "loop.optim",
        "packing": "data.packing",
        "parallel": "loop.parallel",
        "progress": "loop.progress",
        "randomness": "loop.randomness",
        "recall": "evaluation.recall",
        "sequence": "loop.sequence",
        "snapshot": "loop.snapshot",
        "sources": "data.sources",
        "spiking": "loop.firing_rate",
        "step": "loop.optimizer_step",
        "streaming": "data.streaming",
        "tokens": "data.tokenize",
        "trainer": "loop.trainer",
    },
)
