"""Metrics of the server, in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable

FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BETWEEN = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

COUNTERS = {
    "fastsnn_requests_total": "HTTP requests answered, by endpoint and status code.",
    "fastsnn_prompt_tokens_total": "Prompt tokens of streams that were started.",
    "fastsnn_cached_prompt_tokens_total": "Prompt tokens that came from the prefix cache.",
    "fastsnn_generated_tokens_total": "Tokens generated.",
    "fastsnn_shared_tokens_total": "Tokens of steps in which several streams shared a pass over the weights.",
    "fastsnn_draft_tokens_total": "Tokens drafted.",
    "fastsnn_draft_tokens_accepted_total": "Drafted tokens that the stream took.",
    "fastsnn_prefix_cache_queries_total": "Prompts looked up in the prefix cache.",
    "fastsnn_prefix_cache_hits_total": "Prompts that resumed from the prefix cache.",
    "fastsnn_streams_cancelled_total": "Streams dropped because their client went away.",
    "fastsnn_spike_channels_total": "Channels looked at in sampled decoding steps.",
    "fastsnn_spike_channels_silent_total": "Those of them with no spike.",
}
HISTOGRAMS = {
    "fastsnn_time_to_first_token_seconds": ("From the request to its first token.", FIRST),
    "fastsnn_inter_token_seconds": ("Between two tokens of one stream.", BETWEEN),
}


class Metrics:
    """Counters, histograms, and gauges that are read on each scrape; thread-safe."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.counts: dict[str, dict[str, float]] = {name: {} for name in COUNTERS}
        self.buckets = {name: [0] * (len(edges) + 1) for name, (_, edges) in HISTOGRAMS.items()}
        self.sums = dict.fromkeys(HISTOGRAMS, 0.0)
        self.gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "fastsnn_spike_silent_fraction": ("Share of channels without a spike in sampled steps.", self.silent)
        }

    def add(self, name: str, value: float = 1, labels: str = "") -> None:
        """Raise a counter; `labels` as they stand between the braces."""
        with self.lock:
            self.counts[name][labels] = self.counts[name].get(labels, 0) + value

    def total(self, name: str) -> float:
        """A counter's sum over its labels."""
        with self.lock:
            return sum(self.counts[name].values())

    def observe(self, name: str, seconds: float) -> None:
        """Put a duration into a histogram."""
        with self.lock:
            self.buckets[name][bisect_left(HISTOGRAMS[name][1], seconds)] += 1
            self.sums[name] += seconds

    def gauge(self, name: str, help: str, read: Callable[[], float]) -> None:
        """Declare a gauge that `read` answers."""
        self.gauges[name] = (help, read)

    def silent(self) -> float:
        """Silent channels over all channels looked at; NaN before the first sample."""
        seen = self.total("fastsnn_spike_channels_total")
        return self.total("fastsnn_spike_channels_silent_total") / seen if seen else float("nan")

    def render(self) -> str:
        """The page."""
        lines: list[str] = []
        for name, (help, read) in self.gauges.items():
            lines += [f"# HELP {name} {help}", f"# TYPE {name} gauge", f"{name} {prometheus_number(read())}"]
        with self.lock:
            for name, help in COUNTERS.items():
                lines += [f"# HELP {name} {help}", f"# TYPE {name} counter"]
                rows = self.counts[name] or ({} if name == "fastsnn_requests_total" else {"": 0.0})
                for labels, value in sorted(rows.items()):
                    lines.append(
                        f"{name}{{{labels}}} {prometheus_number(value)}"
                        if labels
                        else f"{name} {prometheus_number(value)}"
                    )
            for name, (help, edges) in HISTOGRAMS.items():
                lines += [f"# HELP {name} {help}", f"# TYPE {name} histogram"]
                running = 0
                for edge, count in zip((*edges, float("inf")), self.buckets[name], strict=True):
                    running += count
                    lines.append(f'{name}_bucket{{le="{prometheus_number(edge)}"}} {running}')
                lines += [f"{name}_sum {prometheus_number(self.sums[name])}", f"{name}_count {running}"]
        return "\n".join(lines) + "\n"


def prometheus_number(value: float) -> str:
    """A value as Prometheus writes it."""
    if value != value:
        return "NaN"
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if value == int(value) else repr(float(value))
