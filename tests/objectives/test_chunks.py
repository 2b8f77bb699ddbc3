"""Particles a few at a time: the same expectation, and the memory of one chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
from ppl import dist

KEY = jax.random.key(0)


@ppl.gen
def coin(m):
    z = ppl.sample("z", dist.Bernoulli(logits=m))
    ppl.sample("x", dist.Normal(2.0 * z, 1.0))


@ppl.gen
def guess(m):
    ppl.sample("z", dist.Bernoulli(logits=2 * m), ppl.enum())


@ppl.gen
def network(w, x):
    z = ppl.sample("z", dist.Normal(jnp.zeros(len(x)), 1.0).to_event(1))
    ppl.sample("x", dist.Normal(jnp.tanh(w @ jnp.tanh(w @ z)), 1.0).to_event(1))


@ppl.gen
def encoder(w, x):
    ppl.sample("z", dist.Normal(w @ x, 1.0).to_event(1))


@pytest.mark.parametrize("bound", [ppl.iwelbo, lambda *a, **k: ppl.renyi(*a[:3], 0.5, a[3], **k)])
def test_the_gradient_is_that_of_all_at_once(bound, x64):
    """Enumerated, so exact: 2^4 joint values of four particles."""

    def gradient(chunk):
        f = lambda m: bound(coin(m), guess(m), {"x": 0.7}, 4, chunk=chunk)
        return jnp.stack(ppl.expectation(f).value_and_grad(KEY, 0.3))

    np.testing.assert_allclose(gradient(2), gradient(None), rtol=1e-10)


def test_it_takes_the_memory_of_one_chunk(as_for_a_user):
    """What XLA allocates, exactly: 16 chunks, a sixth of the memory and less."""
    w, x = jnp.eye(32), jnp.ones(32)

    def memory(chunk):
        f = ppl.expectation(
            lambda w: ppl.iwelbo(network(w, x), encoder(w, x), {"x": x}, 512, chunk)
        )
        return f.explain(w).memory

    assert memory(32) < memory(None) / 6


def test_chunks_that_do_not_fit_are_refused():
    f = ppl.expectation(lambda m: ppl.iwelbo(coin(m), guess(m), {"x": 0.7}, 4, chunk=3))
    with pytest.raises(ValueError, match="Give a divisor of 4"):
        f.value(KEY, 0.3)
