"""The conformance kit: what every component promises, as plain ``check_*`` functions, strategies, and a pytest face.

In a plugin's test file::

    from fastsnn_core.testing import conformance
    test_acme = conformance("acme")

From a shell, with no test file at all: ``pytest --pyargs fastsnn_core.testing --fastsnn acme``.
"""

from fastsnn_core.testing.conformance import conformance

__all__ = ["conformance"]
