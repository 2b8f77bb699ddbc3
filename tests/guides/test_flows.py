"""Guides that are flows whose transforms have no inverse: their own draws need none."""

import functools
from typing import Any

import flowjax.bijections
import flowjax.distributions
import flowjax.flows
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import constraints
from numpyro.distributions import transforms as nt

import ppl
from ppl import dist

KEY = jax.random.key(0)
W = {"a": np.array([0.3, -0.2]), "b": np.array([0.1, 0.4]), "loc": np.array([0.5, -0.3])}


@pytest.fixture
def x64() -> Any:
    with jax.enable_x64(True):
        yield


class Triangular(nt.Transform):
    """y_0 = e^a0 x_0 + b0, y_1 = e^a1 x_1 + b1 y_0: an event of two."""

    domain = codomain = constraints.real_vector

    def __init__(self, a: Any, b: Any) -> None:
        self.a, self.b = a, b

    def __call__(self, x: Any) -> Any:
        first = jnp.exp(self.a[..., 0]) * x[..., 0] + self.b[..., 0]
        second = jnp.exp(self.a[..., 1]) * x[..., 1] + self.b[..., 1] * first
        return jnp.stack([first, second], -1)

    def log_abs_det_jacobian(self, x: Any, y: Any, intermediates: Any = None) -> Any:
        return jnp.broadcast_to(jnp.sum(self.a, -1), x.shape[:-1])


class Invertible(Triangular):
    def _inverse(self, y: Any) -> Any:
        first = (y[..., 0] - self.b[..., 0]) * jnp.exp(-self.a[..., 0])
        second = (y[..., 1] - self.b[..., 1] * y[..., 0]) * jnp.exp(-self.a[..., 1])
        return jnp.stack([first, second], -1)


class Bend(nt.Transform):
    """Elementwise."""

    domain = codomain = constraints.real

    def __call__(self, x: Any) -> Any:
        return jnp.sinh(x)

    def log_abs_det_jacobian(self, x: Any, y: Any, intermediates: Any = None) -> Any:
        return jnp.log(jnp.cosh(x))


class Bent(Bend):
    def _inverse(self, y: Any) -> Any:
        return jnp.arcsinh(y)


def triangular(kind: Any, w: Any) -> Any:
    base = dist.Normal(w["loc"], 1.0)
    return dist.TransformedDistribution(base, [kind(w["a"], w["b"]), nt.ExpTransform()])


def bent(kind: Any, w: Any) -> Any:
    return dist.TransformedDistribution(dist.Normal(w["loc"], jnp.exp(w["a"])), kind())


TRIANGULAR, BENT = (Triangular, Invertible), (Bend, Bent)
MASK = jnp.array([True, False])
FLOWS = {
    "event": (TRIANGULAR, lambda k, w: triangular(k, w).expand((3,)).to_event(1)),
    "masked": (BENT, lambda k, w: bent(k, w).mask(MASK).to_event(1)),
    "masked event": (TRIANGULAR, lambda k, w: triangular(k, w).expand((2,)).mask(MASK)),
}


def total(z: Any) -> Any:
    return jnp.sum(jnp.sin(z))


def flows(kind: int, w: Any) -> Any:
    """All of them, as two elements of a vmap."""

    def each(shift: Any) -> Any:
        there = {k: v + shift for k, v in w.items()}
        makes = [functools.partial(make, kinds[kind]) for kinds, make in FLOWS.values()]
        return sum(total(ppl.sample(f"z{i}", d(there))) for i, d in enumerate(makes))

    return jnp.sum(jax.vmap(each)(jnp.array([0.0, 0.4])))


def controlled(kind: int, w: Any) -> Any:
    """In a loop, in a branch, in a selected branch, and nested, compiled and checkpointed."""

    def draw(w: Any, estimator: Any = None) -> Any:
        return total(ppl.sample("z", bent(BENT[kind], w), estimator))

    def step(so_far: Any, _: Any) -> Any:
        return so_far + draw({k: v + 0.1 * so_far for k, v in w.items()}), None

    def branch(u: Any) -> Any:
        scaled = lambda: draw({k: u * v for k, v in w.items()}, ppl.reinforce())
        return jax.lax.cond(u > 0.5, scaled, lambda: 0.0)

    programs = {
        "loop": lambda: jax.lax.scan(step, 0.0, None, length=2)[0],
        "branch": lambda: branch(ppl.sample("u", dist.Uniform(0.0, 1.0), ppl.reinforce())),
        "selected": lambda: jnp.sum(jax.vmap(branch)(jnp.array([0.2, 0.7]))),
        "jit": lambda: jax.jit(jax.checkpoint(draw))(w),
    }
    return sum(ppl.sample(name, ppl.gen(f)()) for name, f in programs.items())


@pytest.mark.parametrize("program", [flows, controlled])
def test_as_the_same_flow_with_its_inverse(x64: Any, program: Any) -> None:
    """Deterministic: the two are the same function of the key."""

    def run(kind: int) -> Any:
        guide = ppl.gen(lambda w: program(kind, w))

        @ppl.expectation
        def f(w: Any) -> Any:
            q = guide(w).simulate()
            return q.retval - 0.7 * q.log_density

        return f.value_and_grad(KEY, W)

    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9)
    jax.tree.map(close, run(0), run(1))


# --- against quadrature ---------------------------------------------------------------------------


class Planar(nt.Transform):
    """x + u tanh(w x + b): two dimensions, no inverse."""

    domain = codomain = constraints.real_vector

    def __init__(self, u: Any, w: Any, b: Any) -> None:
        self.u, self.w, self.b = u, w, b

    def __call__(self, x: Any) -> Any:
        return x + self.u * jnp.tanh(x @ self.w + self.b)[..., None]

    def log_abs_det_jacobian(self, x: Any, y: Any, intermediates: Any = None) -> Any:
        slope = 1.0 - jnp.tanh(x @ self.w + self.b) ** 2
        return jnp.log(jnp.abs(1.0 + slope * (self.u @ self.w)))


def log_model(z: Any) -> Any:
    """A correlated, skewed target."""
    log_p = -0.5 * (z[..., 0] ** 2 + (z[..., 1] - 0.5 * z[..., 0] ** 2) ** 2)
    return log_p - np.log(2 * np.pi)


def planar(p: Any) -> Any:
    base = dist.Normal(p["loc"], jnp.exp(p["scale"]))
    return dist.TransformedDistribution(base, Planar(p["u"], p["w"], p["b"]))


P = {
    "loc": np.array([0.2, -0.1]),
    "scale": np.array([0.1, -0.3]),
    "u": np.array([0.6, 0.3]),
    "w": np.array([0.8, -0.4]),
    "b": np.array(0.2),
}


def by_quadrature(p: Any) -> Any:
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    e = jnp.stack(jnp.meshgrid(nodes, nodes, indexing="ij"), -1)
    x = p["loc"] + jnp.exp(p["scale"]) * e
    t = Planar(p["u"], p["w"], p["b"])
    log_q = dist.Normal(p["loc"], jnp.exp(p["scale"])).log_prob(x).sum(-1)
    f = log_model(t(x)) - log_q + t.log_abs_det_jacobian(x, None)
    return jnp.sum(np.outer(weights, weights) * f) / (2 * np.pi)


exact = jax.jit(jax.value_and_grad(by_quadrature))


@pytest.mark.parametrize(
    "estimator", [None, ppl.reinforce(), ppl.mvd()], ids=lambda e: e and e.name
)
def test_a_planar_guide(x64: Any, estimator: Any) -> None:
    """Means of n = 40 x 500 draws within 5 standard errors of the 10 numbers, for each estimator:
    false alarms 6e-6."""
    guide = ppl.gen(lambda p: ppl.sample("z", planar(p), estimator))

    @ppl.expectation
    def elbo(p: Any) -> Any:
        q = guide(p).simulate()
        return log_model(q.choices["z"]) - q.log_density

    run = lambda key: elbo.value_and_grad(key, P, samples=500)
    found = jax.vmap(run)(jax.random.split(KEY, 40))

    def close(x: Any, y: Any) -> None:
        error = x.std(0, ddof=1) / 40**0.5
        assert (np.abs(x.mean(0) - y) < 5 * error + 1e-12).all()
        assert (error < 0.3).all()

    jax.tree.map(close, *jax.device_get((found, exact(P))))


# --- a bijection of the user's ------------------------------------------------------------------


COVARIANCE = [[1.0, 0.9], [0.9, 1.0]]


@ppl.gen
def correlated():
    ppl.sample("x", dist.MultivariateNormal(jnp.zeros(2), jnp.array(COVARIANCE)))


def test_a_flow_of_flowjax(x64: Any) -> None:
    """The Cholesky factor as a bijection: its own density, and an ELBO of 0."""
    lower = jnp.asarray(np.linalg.cholesky(COVARIANCE))
    affine = lambda key, n: flowjax.bijections.TriangularAffine(jnp.zeros(n), lower)
    guide, params = ppl.guides.flow(correlated(), {}, key=KEY, bijection=affine, scale=1.0)
    params["continuous"]["loc"] = jnp.zeros(2)

    @jax.jit
    def densities(params: Any) -> Any:
        trace = guide(params).simulate(KEY)
        return trace.log_density, guide(params).log_density(trace.choices)

    np.testing.assert_allclose(*densities(params))
    elbo = ppl.expectation(lambda p: ppl.elbo(correlated(), guide(p), {}))
    value, grad = elbo.value_and_grad(KEY, params, samples=1)
    np.testing.assert_allclose(value, 0.0, atol=1e-12)
    assert jax.tree.structure(grad) == jax.tree.structure(params)  # its sizes are no parameters
    assert np.max(np.abs(grad["continuous"]["log_scale"])) > 0.0


def test_a_flow_of_networks_carries_its_density(x64: Any) -> None:
    base = lambda n: flowjax.distributions.Normal(jnp.zeros(n))
    spline = lambda key, n: flowjax.flows.coupling_flow(key, base_dist=base(n), nn_width=4)
    guide, params = ppl.guides.flow(correlated(), {}, key=KEY, bijection=spline)

    @jax.jit
    def densities(params: Any) -> Any:
        trace = guide(params).simulate(KEY)
        x, scale = trace.choices["x"], jnp.exp(params["continuous"]["log_scale"])
        flow = spline(jax.random.fold_in(KEY, 1), 2)
        own = flow.log_prob((x - params["continuous"]["loc"]) / scale) - jnp.sum(jnp.log(scale))
        return trace.log_density, guide(params).log_density({"x": x}), own

    drawn, asked, own = densities(params)
    np.testing.assert_allclose(drawn, own, rtol=1e-9)
    np.testing.assert_allclose(asked, own, rtol=1e-9)


def test_what_is_no_bijection_is_refused() -> None:
    with pytest.raises(ppl.UnsupportedError, match="has no transform_and_log_det"):
        ppl.guides.flow(correlated(), {}, key=KEY, bijection=lambda key, n: jnp.sinh)
