"""Random bits that compile fast: importing this replaces the rounds of threefry on the CPU.

Half of what XLA compiles of a small program that draws is threefry. Keys, splits and draws stay
JAX's own; what turns key and counter into bits is a hash of few steps, pcg4d of Jarzynski and
Olano, "Hash functions for GPU rendering" (2020), whose words pass the usual tests of randomness.
"""

import jax.numpy as jnp
from jax import lax
from jax.extend.random import threefry2x32_p
from jax.interpreters import mlir


def _pcg4d(*words):
    """Two hashed words of four, u32[...] each."""
    a, b, c, d = (_with(lax.add, _with(lax.mul, w, 1664525), 1013904223) for w in words)
    a, b, c, d = _mixed(a, b, c, d)
    a, b, c, d = (lax.bitwise_xor(w, _with(lax.shift_right_logical, w, 16)) for w in (a, b, c, d))
    a, _, _, d = _mixed(a, b, c, d)
    return a, d


def _mixed(a, b, c, d):
    a = lax.add(a, lax.mul(b, d))
    b = lax.add(b, lax.mul(c, a))
    c = lax.add(c, lax.mul(a, b))
    return a, b, c, lax.add(d, lax.mul(b, c))


def _with(operation, word, number):
    return operation(word, lax.full_like(word, number))


mlir.register_lowering(
    threefry2x32_p,
    mlir.lower_fun(lambda *words: _pcg4d(*jnp.broadcast_arrays(*words)), multiple_results=True),
    platform="cpu",
)
