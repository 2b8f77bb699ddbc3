"""Normalizing flows: inverse autoregressive ones, by NumPyro's networks and transforms; or a
bijection of the user's, as those of flowjax."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.example_libraries import stax
from numpyro.distributions.flows import InverseAutoregressiveTransform
from numpyro.nn import AutoregressiveNN

from transforms import _jax
from transforms.errors import UnsupportedError, describe
from transforms.program.compiled import computed

from ..programs.generative import Generative
from ..programs.given import Choices, as_count, as_key
from .gaussian import Made, made
from .guide import start
from .joint import Joint, standard


@final
@dataclasses.dataclass(frozen=True)
class Autoregressive(Joint):
    """loc + exp(log_scale) T_n(.. T_1(x)) of standard normal x; each T reverses the order first."""

    size: int
    networks: tuple[Any, ...]
    init: Any

    def law(self, params: Any) -> dist.Distribution:
        return standard(self.size)

    def _layers(self, params: Any) -> list[Any]:
        pairs = zip(self.networks, params["networks"], strict=True)
        return [InverseAutoregressiveTransform(functools.partial(f, p)) for f, p in pairs]

    def push(self, params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = jnp.sum(params["log_scale"])
        for layer in self._layers(params):
            x = x[::-1]
            y, step = layer.call_with_intermediates(x)
            total += layer.log_abs_det_jacobian(x, y, step)
            x = y
        return params["loc"] + jnp.exp(params["log_scale"]) * x, total

    def pull(self, params: Any, u: jax.Array) -> jax.Array:
        x = (u - params["loc"]) * jnp.exp(-params["log_scale"])
        for layer in self._layers(params)[::-1]:
            x = layer.inv(x)[::-1]
        return x

    def start(self, point: jax.Array, scale: float) -> Any:
        log_scale = jnp.full((self.size,), jnp.log(scale), point.dtype)
        return {"loc": point, "log_scale": log_scale, "networks": self.init}


@final
@dataclasses.dataclass(frozen=True)
class Bijective(Joint):
    """loc + exp(log_scale) b(x) of standard normal x, with a bijection b, of which the floating
    point arrays are parameters."""

    size: int
    bijection: Any

    def law(self, params: Any) -> dist.Distribution:
        return standard(self.size)

    def push(self, params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, log_det = self._with(params).transform_and_log_det(x)
        u = params["loc"] + jnp.exp(params["log_scale"]) * y
        return u, jnp.sum(params["log_scale"]) + log_det

    def pull(self, params: Any, u: jax.Array) -> jax.Array:
        y = (u - params["loc"]) * jnp.exp(-params["log_scale"])
        return self._with(params).inverse(y)

    def _with(self, params: Any) -> Any:
        fitted = lambda ours, theirs: theirs if ours is None else ours
        is_none = lambda x: x is None
        return jax.tree.map(fitted, params["bijection"], self.bijection, is_leaf=is_none)

    def start(self, point: jax.Array, scale: float) -> Any:
        log_scale = jnp.full((self.size,), jnp.log(scale), point.dtype)
        weights = jax.tree.map(lambda x: x if _is_weight(x) else None, self.bijection)
        return {"loc": point, "log_scale": log_scale, "bijection": weights}


def flow(
    g: Generative,
    data: Choices,
    *,
    key: jax.Array,
    layers: int = 3,
    hidden: Sequence[int] | None = None,
    bijection: Callable[[jax.Array, int], Any] | None = None,
    scale: float = 0.1,
) -> Made:
    """A normalizing flow over all unconstrained numbers: inverse autoregressive layers, or yours.

    Discrete choices have free laws of their own, as in :func:`mean_field`. A draw carries its
    density; the density at other choices inverts the flow, number by number.

    Args:
        g: a generative function that was called.
        data: nested dict of observed choices.
        key: for the draws of the prior, at whose median the guide begins, and for the networks.
        layers: how many.
        hidden: the sizes of the hidden layers of each network, n at least; by default two of
            size n, or 8.
        bijection: of a key and n, instead of these layers: a pytree with
            ``transform_and_log_det(x)`` and ``inverse(y)`` of f[n], such as those of flowjax
            (``pip install flowjax``), or a distribution of flowjax, whose ``bijection`` is taken.
            It acts on standard normal numbers.
        scale: the standard deviations that it begins with, nearly independent ones.

    Returns:
        ``guide, params``; ``params["continuous"]`` has ``loc`` and ``log_scale`` f[n], and
        ``networks``, a list of the parameters of NumPyro's ``AutoregressiveNN``, or the
        ``bijection``, None in place of what is no floating point array.

    Raises:
        UnsupportedError: as :func:`full_rank`; a hidden layer is too small; what ``bijection``
            makes is none.

    Source: Kingma et al., "Improving variational inference with inverse autoregressive flow",
    NeurIPS 2016.

    Example:
        >>> guide, params = ppl.guides.flow(model(), data, key=key)
        >>> list(guide(params).simulate(key).choices)
        ['x']

        With a flow of flowjax, which is made to draw (``invert=False``):

            def spline(key, n):
                base = flowjax.distributions.Normal(jnp.zeros(n))
                return flowjax.flows.coupling_flow(key, base_dist=base, invert=False)

            guide, params = ppl.guides.flow(model(), data, key=key, bijection=spline)
    """
    space, point, discrete = start(g, data, key, "ppl.guides.flow")
    n, own = space.size, jax.random.fold_in(as_key(key), 1)
    if bijection is not None:
        joint = Bijective(n, _bijection(bijection(own, n)))
        return made("flow", space, joint, space.join(point), discrete, scale)
    widths = list(hidden) if hidden is not None else [max(n, 8)] * 2
    if any(w < n for w in widths):
        raise UnsupportedError(
            f"the hidden layers of ppl.guides.flow at {_jax.user_line()} have sizes {widths}, and "
            f"{g.name} has {n} unconstrained numbers: an autoregressive network needs as many at "
            "least. Leave hidden out for two layers of that size."
        )
    keys = jax.random.split(own, as_count(layers, "layers"))
    pairs = [AutoregressiveNN(n, widths, nonlinearity=stax.Elu) for _ in keys] if n else []
    both = list(zip(pairs, keys, strict=False))
    init = computed(lambda: [_nearly_zero(f(k, (n,))[1]) for (f, _), k in both])
    joint = Autoregressive(n, tuple(f for _, f in pairs), init)
    return made("flow", space, joint, space.join(point), discrete, scale)


def _is_weight(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray) and jnp.issubdtype(x.dtype, jnp.floating)


def _bijection(found: Any) -> Any:
    found = getattr(found, "bijection", found)
    if not all(hasattr(found, name) for name in ("transform_and_log_det", "inverse")):
        raise UnsupportedError(
            f"bijection= of ppl.guides.flow at {_jax.user_line()} makes {describe(found)}, which "
            "has no transform_and_log_det(x) and inverse(y). Return a bijection of flowjax, or a "
            "flow of it: bijection=lambda key, n: flowjax.flows.coupling_flow(key, base_dist="
            "flowjax.distributions.Normal(jnp.zeros(n)), invert=False)."
        )
    return found


def _nearly_zero(params: Any) -> Any:
    """A network whose outputs are small, so that its layer is near the identity."""
    last = max(i for i, p in enumerate(params) if p)
    return [jax.tree.map(lambda w: 0.01 * w, p) if i == last else p for i, p in enumerate(params)]
