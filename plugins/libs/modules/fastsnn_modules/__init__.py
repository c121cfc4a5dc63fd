"""What layers share: checks of operands, inputs and states at their front doors, and how modules show themselves."""

__version__ = "0.1.0"
