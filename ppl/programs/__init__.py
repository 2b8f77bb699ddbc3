"""Generative programs, and what their densities are made of."""
