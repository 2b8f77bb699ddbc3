"""Objectives: their gradients, what is said of them, and the usual ones."""
