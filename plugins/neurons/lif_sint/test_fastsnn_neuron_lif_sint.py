"""The conformance kit over this plugin."""

from fastsnn_core.testing import conformance

test_lif_sint = conformance("lif_sint")
