"""The conformance kit over this plugin."""

from fastsnn_core.testing import conformance

test_mean_squared = conformance("mean_squared")
