"""Guides made from a model: each returns ``(guide, params)``, and ``guide(params)`` is a Generative
over the choices of the model that are not in the data."""

from .flow import flow
from .gaussian import full_rank, laplace, low_rank
from .guide import Family, Guide
from .mean_field import mean_field
from .point import map
from .structured import structured

__all__ = [
    "Family",
    "Guide",
    "flow",
    "full_rank",
    "laplace",
    "low_rank",
    "map",
    "mean_field",
    "structured",
]
