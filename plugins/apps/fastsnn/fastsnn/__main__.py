"""``python -m fastsnn VERB …`` and ``torchrun … -m fastsnn VERB …``: the ``fastsnn`` command."""

import sys

from fastsnn_core.cli import main

sys.exit(main())
