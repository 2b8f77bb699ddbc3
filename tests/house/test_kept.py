"""What passed is known by all that it computes, and by what it was held to."""

import functools

import jax
import jax.numpy as jnp
import kept
import numpy as np
import pytest
from jax import lax

X = np.arange(6.0, dtype=np.float32).reshape(2, 3)


def scanned(factor):
    return lambda x: lax.scan(lambda c, r: (c + factor * r, None), jnp.zeros(3), x)[0]


def drawn(seed):
    return lambda x: x + jax.random.normal(jax.random.key(seed), x.shape)


DIFFERENT = {
    "sine": jnp.sin,
    "cosine": jnp.cos,
    "twice": lambda x: jnp.sin(jnp.sin(x)),
    "a number": lambda x: x + 1.0,
    "another": lambda x: x + 1.001,
    "a sign": lambda x: x - 1.0,
    "operands": lambda x: 1.0 - x,
    "an axis": lambda x: x.sum(0),
    "the other": lambda x: x.sum(1),
    "an array": lambda x: x * np.float32([1.0, 2.0, 3.0]),
    "another array": lambda x: x * np.float32([1.0, 2.0, 4.0]),
    "a loop": scanned(1.0),
    "another loop": scanned(-1.0),
    "a branch": lambda x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x),
    "the branches exchanged": lambda x: lax.cond(x[0, 0] > 0, jnp.cos, jnp.sin, x),
    "a draw": drawn(0),
    "a draw with another key": drawn(1),
    "a type": lambda x: x.astype(jnp.float16),
    "a function": jax.jit(lambda x: x * 2.0),
    "another function": jax.jit(lambda x: x * 3.0),
    "a slope": lambda x: jax.grad(lambda x: jnp.sum(x**2))(x),
    "half of it": lambda x: jax.grad(lambda x: jnp.sum(x**2) / 2)(x),
}


def digest(f, claim=None):
    return kept.digest(jax.jit(f).trace(X).jaxpr, claim)


def test_different_programs_have_different_digests():
    found = {name: digest(f) for name, f in DIFFERENT.items()}
    assert len(set(found.values())) == len(DIFFERENT), found


def test_so_have_different_claims_and_the_same_program_has_the_same():
    claims = [None, 1.0, 1.1, [1.0, 2.0], {"a": np.ones(2)}, {"a": np.zeros(2)}]
    claims += [lambda x: x + 1, lambda x: x + 2]
    assert len({digest(jnp.sin, claim) for claim in claims}) == len(claims)
    for f in DIFFERENT.values():
        assert digest(f) == digest(lambda x, f=f: f(x))


def test_the_order_of_equations_does_not_count():
    def one(x):
        a, b = jnp.sin(x), jnp.cos(x)
        return a * b

    def other(x):
        b, a = jnp.cos(x), jnp.sin(x)
        return a * b

    assert digest(one) == digest(other) != digest(lambda x: jnp.cos(x) * jnp.sin(x))


def test_what_passed_is_not_run_again_and_what_failed_is(monkeypatch, tmp_path):
    monkeypatch.setattr(kept, "FILE", tmp_path / "kept.txt")
    monkeypatch.setattr(kept, "_kept", functools.cache(kept._kept.__wrapped__))
    monkeypatch.setenv(kept.KEEP, "1")
    runs = []
    check = lambda f, wrong=False: kept.passed(
        jax.jit(f), [X], "claim", lambda: runs.append(f) or pytest.fail("wrong") if wrong else None
    )
    measure = lambda: kept.numbers(jax.jit(jnp.tanh), [X], None, lambda: runs.append(0) or [1 / 3])
    check(jnp.sin)
    assert measure() == [0.333333] and len(runs) == 1
    with pytest.raises(pytest.fail.Exception):
        check(jnp.cos, wrong=True)
    monkeypatch.delenv(kept.KEEP)
    monkeypatch.setattr(kept, "_kept", functools.cache(kept._kept.__wrapped__))
    runs.clear()
    check(jnp.sin, wrong=True)  # what its test would say now is not asked
    assert measure() == [0.333333] and not runs
    with pytest.raises(pytest.fail.Exception):
        check(jnp.cos, wrong=True)
