"""Inference in one line: posteriors, and whether to trust them."""
