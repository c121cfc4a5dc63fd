"""Old import paths of this distribution, kept for one release."""

from __future__ import annotations

from fastsnn_core.moved import add

add(
    "fastsnn_serve",
    {
        "answering": "http.request_task",
        "cache": "engine.prefix_cache",
        "chat": "http.chat_template",
        "fields": "http.strict_json",
        "memory": "engine.state_budget",
        "protocol": "http.protocol",
        "ray_app": "http.ray_app",
        "reading": "engine.prefill_runner",
        "replies": "http.replies",
        "routes": "http.routes",
        "running": "http.server",
        "streams": "engine.streams",
        "writer": "engine.detokenizer",
    },
)
