"""FastSNN networks in NeuroBench: its model class around ours, and its metrics by their definitions without it."""

from fastsnn_neurobench.adapter import neurobench_model
from fastsnn_neurobench.metrics import NeuroBenchMetrics, neurobench_metrics

__version__ = "0.1.0"
__all__ = ["NeuroBenchMetrics", "neurobench_metrics", "neurobench_model"]
