"""``python -m fastsnn_core``: the ``fastsnn`` command."""

import sys

from fastsnn_core.cli import main

sys.exit(main())
