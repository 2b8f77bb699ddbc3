"""Functions of three pathwise draws that jump where no comparison is in sight, and their twins.

``JUMPS`` and ``SMOOTH`` extend the tables of ``test_soundness.py``, which measures what they are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ppl import dist

W = np.array([1.0, -0.5, 2.0])
KNOTS = np.array([-1.0, -0.2, 0.3, 0.9])
HEIGHTS = np.array([0.0, 1.0, -1.0, 2.0])


def slope(f):
    """The derivative of the sum of a function."""
    return jax.grad(lambda x: jnp.sum(f(x)))


def slope_forward(f):
    return lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]


def curvature(f):
    return jax.vmap(jax.grad(jax.grad(f)))


def median_of_three(x):
    return jnp.median(jnp.stack([x, 0.0 * x + 0.4, 0.0 * x + 5.0]), axis=0)


def one_norm(x):
    return jnp.linalg.norm(x[:, None], axis=1)


def shear(x):
    return jnp.stack([jnp.stack([x[0], x[1]]), jnp.stack([0.5 + 0.0 * x[2], x[2]])])


def symmetric(x):
    return jnp.outer(x, x) + jnp.diag(x) + 0.3


class Stairs(dist.transforms.ParameterFreeTransform):
    """A transform of the user's."""

    domain = dist.constraints.real
    codomain = dist.constraints.real

    def __call__(self, x):
        return x + 0.5 * jnp.floor(x)

    def _inverse(self, y):
        return jnp.where(y > 0.0, 0.5 * y + 0.7, y)

    def log_abs_det_jacobian(self, x, y, intermediates=None):
        return jnp.zeros_like(x)


class Bend(Stairs):
    def __call__(self, x):
        return jnp.where(x > 0.0, 2.0 * x, x)


LAPLACE = dist.Laplace(0.1, 1.0)

DERIVATIVES = {
    "slope of a Laplace density": lambda x: slope(LAPLACE.log_prob)(x) @ W,
    "slope of an asymmetric density": lambda x: slope(dist.AsymmetricLaplace(0.1).log_prob)(x) @ W,
    "slope of a uniform's distribution": lambda x: slope(dist.Uniform(-1.0, 1.0).cdf)(x) @ W,
    "slope of leaky_relu": lambda x: slope(jax.nn.leaky_relu)(x) @ W,
    "slope of selu": lambda x: slope(jax.nn.selu)(x) @ W,
    "slope of relu6": lambda x: slope(jax.nn.relu6)(x) @ W,
    "slope of clip": lambda x: slope(lambda x: jnp.clip(x, -0.3, 0.6))(x) @ W,
    "slope of interp": lambda x: slope(lambda x: jnp.interp(x, KNOTS, HEIGHTS))(x) @ W,
    "slope of median": lambda x: slope(median_of_three)(x) @ W,
    "slope of quantile": lambda x: slope(lambda x: jnp.quantile(x, 0.2))(x) @ W,
    "slope of sort": lambda x: slope(lambda x: jnp.sort(x) * W)(x) @ W,
    "slope of top_k": lambda x: slope(lambda x: lax.top_k(x, 2)[0])(x) @ W,
    "slope of cummax": lambda x: slope(lax.cummax)(x) @ W,
    "slope of the norm of order 1": lambda x: slope(lambda x: jnp.linalg.norm(x, 1))(x) @ W,
    "slope of the largest norm": lambda x: slope(lambda x: jnp.linalg.norm(x, jnp.inf))(x) @ W,
    "slope of hard_tanh by jvp": lambda x: slope_forward(jax.nn.hard_tanh)(x) @ W,
    "slope of hard_sigmoid by jvp": lambda x: slope_forward(jax.nn.hard_sigmoid)(3.0 * x) @ W,
    "slope by vjp": lambda x: jax.vjp(jax.nn.leaky_relu, x)[1](jnp.asarray(W))[0].sum(),
    "slope by jacfwd": lambda x: jnp.diagonal(jax.jacfwd(jax.nn.leaky_relu)(x)) @ W,
    "slope of a checkpoint": lambda x: slope(jax.checkpoint(jax.nn.leaky_relu))(x) @ W,
    "slope under jit": lambda x: jax.jit(slope(jax.nn.leaky_relu))(x) @ W,
    "slope of a scan": lambda x: (
        slope(lambda x: lax.scan(lambda c, x: (c + jax.nn.leaky_relu(x), None), 0.0, x)[0])(x) @ W
    ),
    "slope of a network": lambda x: (
        slope(lambda x: jnp.tanh(jax.nn.leaky_relu(x * W) @ jnp.ones((3, 2))))(x) @ W
    ),
    "curvature of a huber loss": lambda x: curvature(optax.huber_loss)(x) @ W,
    "curvature of elu": lambda x: curvature(lambda x: jax.nn.elu(x, 2.0))(x) @ W,
    "curvature of a squared hinge": lambda x: curvature(lambda x: jax.nn.relu(x) ** 2)(x) @ W,
}

POLES = {
    "abs over x": lambda x: (jnp.abs(x) / x) @ W,
    "relu over x": lambda x: (jax.nn.relu(x) / x) @ W,
    "x over its norm": lambda x: (x / one_norm(x)) @ W,
    "x over the root of a square": lambda x: (x * lax.rsqrt(x**2)) @ W,
    "arctan of 1/x": lambda x: jnp.arctan(1.0 / x) @ W,
    "sigmoid of 1/x": lambda x: jax.nn.sigmoid(1.0 / (x - 0.2)) @ W,
    "tanh of a negative power": lambda x: jnp.tanh(x**-3) @ W,
    "tanh of a product over x": lambda x: jnp.tanh(x[0] / (x[1] * x[2])),
    "arctan of tan": lambda x: jnp.arctan(jnp.tan(2.0 * x)) @ W,
    "sign by a product of poles": lambda x: jnp.cos(jnp.arctan(x[0] / x[1]) + 1.0),
    "ratio of sums": lambda x: jnp.sin(jnp.arctan(x.sum() / (x @ W))),
    "tanh of 1/x in a scan": lambda x: lax.scan(lambda c, x: (c + jnp.tanh(1.0 / x), None), 0.0, x)[
        0
    ],
}

FRAMES = {
    "distribution function of integers": lambda x: dist.DiscreteUniform(-2, 2).cdf(x) @ W,
    "transform of the user's": lambda x: Stairs()(x) @ W,
    "transforms of the user's in numpyro": lambda x: (
        dist.transforms.ComposeTransform([Stairs(), dist.transforms.ExpTransform()])(x) @ W
    ),
    "density through a transform of the user's": lambda x: (
        dist.TransformedDistribution(dist.Normal(0.5, 1.0), Stairs()).log_prob(x) @ W
    ),
    "is in the support": lambda x: dist.Uniform(-0.5, 0.5).support(x) @ W,
}

NAMES = {
    "interp with its left": lambda x: jnp.interp(x, KNOTS, HEIGHTS, left=-1.5) @ W,
    "interp with its right": lambda x: jnp.interp(x, KNOTS, HEIGHTS, right=1.0) @ W,
    "interp with knots that meet": lambda x: (
        jnp.interp(x, np.array([-1.0, 0.1, 0.1, 2.0]), HEIGHTS) @ W
    ),
    "interp with a period": lambda x: jnp.interp(x, KNOTS, HEIGHTS, left=0.5, right=3.0) @ W,
    "quantile, nearest": lambda x: (
        jnp.quantile(jnp.asarray(KNOTS), jax.nn.sigmoid(x), method="nearest") @ W
    ),
    "percentile, lower": lambda x: (
        jnp.percentile(jnp.asarray(KNOTS), 100.0 * jax.nn.sigmoid(x), method="lower") @ W
    ),
    "sign of a determinant": lambda x: jnp.linalg.slogdet(shear(x))[0],
    "norm of order 0": lambda x: jnp.linalg.norm(jax.nn.relu(x), 0),
    "rank by least squares": lambda x: (
        jnp.linalg.lstsq(jnp.diag(jax.nn.relu(x[:2])), jnp.ones(2))[2] * 1.0
    ),
    "matrix_rank": lambda x: jnp.linalg.matrix_rank(jnp.diag(x), 0.5) * 1.0,
    "pinv with a cut": lambda x: jnp.linalg.pinv(jnp.diag(x[:2] + 2.0), rtol=0.6)[0, 0],
    "nan_to_num of a root": lambda x: jnp.nan_to_num(jnp.sqrt(x), nan=1.0) @ W,
    "number of nonzeros": lambda x: jnp.count_nonzero(jax.nn.relu(x)) * 1.0,
}

PREDICATES = {
    "isfinite of a log": lambda x: jnp.isfinite(jnp.log(x)) @ W,
    "isfinite of the log of a relu": lambda x: jnp.isfinite(jnp.log(jax.nn.relu(x))) @ W,
    "isnan of a power": lambda x: jnp.where(jnp.isnan(x**0.5), 1.0, x) @ W,
    "isinf of a log": lambda x: jnp.isinf(jnp.log(jax.nn.relu(x))) @ W,
    "nansum": lambda x: jnp.nansum(jnp.sqrt(x) + 1.0),
}

CUTS = {
    "imaginary part of a log": lambda x: jnp.imag(jnp.log(lax.complex(x, x[::-1]))) @ W,
    "complex root": lambda x: jnp.imag(jnp.sqrt(lax.complex(x - 0.5, x[::-1]))) @ W,
    "complex power": lambda x: jnp.real(lax.complex(x, x[::-1]) ** 0.5 * 1j) @ W,
    "angle": lambda x: jnp.angle(lax.complex(x, x[::-1])) @ W,
    "angle of real numbers": lambda x: jnp.angle(x + 0j) @ W,
}

ORDERS = {
    "unique": lambda x: jnp.unique(jax.nn.relu(x), size=3, fill_value=-1.0) @ W,
    "sign of an eigenvector": lambda x: (
        jnp.linalg.eigh(symmetric(x))[1][2] @ np.array([-1.0, 1.0, 0.0])
    ),
    "sign of a singular vector": lambda x: (
        jnp.linalg.svd(symmetric(x))[0][0] @ np.array([0.0, 1.0, -1.0])
    ),
    "sign of an orthogonal factor": lambda x: jnp.linalg.qr(jnp.diag(x) + 0.3)[0][1] @ W,
}

JUMPS = DERIVATIVES | POLES | FRAMES | NAMES | PREDICATES | CUTS | ORDERS

SMOOTH = {
    "slope of a normal density": lambda x: slope(dist.Normal(0.1, 2.0).log_prob)(x) @ W,
    "slope of a gamma density": lambda x: slope(dist.Gamma(2.0, 1.0).log_prob)(jnp.exp(x)) @ W,
    "slope of a beta density": lambda x: slope(dist.Beta(2.0, 1.5).log_prob)(jax.nn.sigmoid(x)) @ W,
    "slope of a mixture": lambda x: jax.grad(lambda x: jax.nn.logsumexp(x * W))(x) @ W,
    "slope of an attention": lambda x: slope(lambda x: jax.nn.softmax(x[:, None] * x) @ x)(x) @ W,
    "slope of activations": lambda x: slope(lambda x: jax.nn.gelu(x) + jax.nn.silu(x))(x) @ W,
    "slope of elu": lambda x: slope(jax.nn.elu)(x) @ W,
    "slope of a squared hinge": lambda x: slope(lambda x: jax.nn.relu(x) ** 2)(x) @ W,
    "slope of a norm": lambda x: slope(jnp.linalg.norm)(x) @ W,
    "slope of a solution": lambda x: (
        slope(lambda x: jnp.linalg.solve(jnp.outer(x, x) + 2 * jnp.eye(3), jnp.ones(3)))(x) @ W
    ),
    "slope of a determinant": lambda x: (
        slope(lambda x: jnp.linalg.slogdet(jnp.outer(x, x) + jnp.eye(3))[1])(x) @ W
    ),
    "ratio": lambda x: (x / (1.0 + x**2)) @ W,
    "ratio of exponentials": lambda x: (x / jnp.exp(x)) @ W,
    "mean of positive weights": lambda x: (lambda w: w @ W / w.sum())(jax.nn.softplus(x)),
    "x over x": lambda x: (x**2 / x) @ W,
    "root of real numbers": lambda x: jnp.abs(jnp.sqrt(x + 3j)) @ W,
    "x by the cosine of its angle": lambda x: (jnp.abs(x) * jnp.cos(jnp.angle(x + 0j))) @ W,
    "sine over x": lambda x: (jnp.sin(x) / x) @ W,
    "exp of a pole of one sign": lambda x: jnp.exp(-1.0 / x**2) @ W,
    "x over the norm of three": lambda x: (x / jnp.linalg.norm(x)) @ W,
    "standardized": lambda x: ((x - x.mean()) / jnp.std(x)) @ W,
    "eigenvalues": lambda x: jnp.linalg.eigvalsh(symmetric(x)) @ W,
    "projection by eigenvectors": lambda x: (lambda v: jnp.outer(v, v) @ W)(
        jnp.linalg.eigh(symmetric(x))[1][:, 0]
    ).sum(),
    "pinv": lambda x: jnp.linalg.pinv(jnp.outer(x, x) + jnp.eye(3)).sum(),
    "lstsq": lambda x: jnp.linalg.lstsq(jnp.outer(x, x) + jnp.diag(np.array([1.0, 2.0, 4.0])), W)[
        0
    ].sum(),
    "isfinite of an exponential": lambda x: jnp.where(jnp.isfinite(jnp.exp(x)), x, 0.0) @ W,
    "modulus of a complex number": lambda x: jnp.abs(jnp.exp(lax.complex(x, x[::-1]))) @ W,
    "log of a complex number, then exp": lambda x: (
        jnp.real(jnp.exp(2.0 * jnp.log(lax.complex(x, x[::-1])))) @ W
    ),
    "transform with a kink": lambda x: Bend()(x) @ W,
    "distribution function": lambda x: dist.Laplace(0.1, 1.0).cdf(x) @ W,
    "stick breaking": lambda x: (
        dist.transforms.StickBreakingTransform()(x) @ jnp.array([1.0, 2.0, 3.0, 0.5])
    ),
}
