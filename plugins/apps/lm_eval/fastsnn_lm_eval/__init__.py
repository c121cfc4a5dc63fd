"""FastSNN bundles in EleutherAI's lm-evaluation-harness: `fastsnn lm-eval BUNDLE --tasks …`; its model ``fastsnn``.

The harness takes seconds to import, so it is imported only where it is used.
"""

__version__ = "0.1.0"
