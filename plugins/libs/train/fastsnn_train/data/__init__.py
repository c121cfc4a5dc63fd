"""Data: sources, tokenising, packing, streaming and batches."""
