"""Evaluation: perplexity, loss by position, recall."""
