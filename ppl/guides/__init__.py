"""Guides made from a model: each returns ``(guide, params)``, and ``guide(params)`` is a Generative
over the choices of the model that are not in the data."""

from .guide import Family, Guide
from .mean_field import mean_field

__all__ = [
    "Family",
    "Guide",
    "mean_field",
]
