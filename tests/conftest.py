"""What the tests share; the statistical test itself is in ``ztest.py``.

The tests compile thousands of small programs and hardly run them, so XLA compiles cheaply and
random bits are a short hash.
"""

import functools
import gc
import importlib.metadata
import os

import bits  # noqa: F401  quick random bits
import jax
import pytest
from numpyro.distributions import Distribution

QUICKLY = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # an unknown flag ends the process
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICKLY}"

os.environ.setdefault("NPROC", "1")
"""XLA's threads in each worker. The workers share the cores; and the LAPACK kernels of jaxlib 0.10
wait for ever where two of them run in a pool of two threads."""

jax.config.update("jax_disable_most_optimizations", True)  # what modules of tests compute at import
jax.config.update("jax_enable_compilation_cache", False)  # nor a key of each program for it
gc.set_threshold(500_000, 20, 100)  # tracing makes many small objects, most of which stay


def fields_in_order(gather):
    """NumPyro flattens a distribution by a set of names: in another order in every process."""
    return classmethod(functools.cache(lambda cls: tuple(sorted(gather(cls)))))


for name in ("gather_pytree_data_fields", "gather_pytree_aux_fields"):  # the same in all processes
    setattr(Distribution, name, fields_in_order(getattr(Distribution, name).__func__))

AS_FOR_A_USER = {"test_compilation"}
"""Files that count what is compiled."""


@pytest.fixture(autouse=True)
def compiled_quickly(request):
    """Without most optimizations, which cost more than they save."""
    wanted = "as_for_a_user" in request.fixturenames
    optimized = wanted or request.module.__name__ in AS_FOR_A_USER
    jax.config.update("jax_disable_most_optimizations", not optimized)


@pytest.fixture
def as_for_a_user():
    """A test outside these files that needs the optimizations too."""


@pytest.fixture
def x64():
    """64-bit floats: for tests of bias, where rounding must not matter."""
    with jax.enable_x64(True):
        yield
