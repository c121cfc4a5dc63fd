"""What layers share: checks of operands, inputs and states at their front doors, and how modules show themselves."""

from fastsnn_core import moved

__version__ = "0.1.0"

moved.add("fastsnn_modules", {"imported_later": "operands", "token_ids": "inputs"})
