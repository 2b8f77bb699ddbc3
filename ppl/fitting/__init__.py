"""Fits: loops, batches, checkpoints."""
