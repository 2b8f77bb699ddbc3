"""Gradient estimators, one file for each; users import :mod:`ppl`."""
