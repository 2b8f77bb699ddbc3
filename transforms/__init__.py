"""Program transformations over jaxprs; users import :mod:`ppl`."""

from .gradient import surrogate as surrogate  # registers the derivative of an expectation inside
from .program import (
    batching as batching,  # registers what vmap does to control flow that holds choices
)
