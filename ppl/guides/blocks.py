"""Normal laws by blocks: the choices of each element of a plate depend on each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular

from transforms import _jax
from transforms.errors import Address, AddressError, UnsupportedError, nearest, show

from ..programs.generative import Generative
from ..programs.given import Choices
from ..programs.space import Space
from .gaussian import Made, made
from .guide import start
from .joint import Joint, standard


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Blocks(Joint):
    """loc + L x of standard normal x, with L in blocks.

    ``places`` has, for each group of blocks of one size, which numbers they are made of:
    i[blocks, numbers in one].
    """

    size: int
    places: tuple[np.ndarray, ...]

    def law(self, params: Any) -> dist.Distribution:
        return standard(self.size)

    def push(self, params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        moved = [
            jnp.einsum("bij,bj->bi", tril, x[at])
            for at, tril in zip(self.places, self._trils(params), strict=True)
        ]
        return params["loc"] + self._together(moved), jnp.sum(params["log_scale"])

    def pull(self, params: Any, u: jax.Array) -> jax.Array:
        off = u - params["loc"]
        solve = jax.vmap(lambda tril, b: solve_triangular(tril, b, lower=True))
        pairs = zip(self.places, self._trils(params), strict=True)
        return self._together([solve(tril, off[at]) for at, tril in pairs])

    def _together(self, parts: list[jax.Array]) -> jax.Array:
        order = np.argsort(np.concatenate([at.ravel() for at in self.places]))
        return jnp.concatenate([p.ravel() for p in parts])[order]

    def _trils(self, params: Any) -> list[jax.Array]:
        return [
            jnp.exp(params["log_scale"][at])[..., None]
            * (jnp.tril(lower, -1) + jnp.eye(at.shape[1]))
            for at, lower in zip(self.places, params["lower"], strict=True)
        ]

    def start(self, point: jax.Array, scale: float) -> Any:
        log_scale = jnp.full((self.size,), jnp.log(scale), point.dtype)
        lower = [jnp.zeros((*at.shape, at.shape[1]), point.dtype) for at in self.places]
        return {"loc": point, "log_scale": log_scale, "lower": lower}


def blocks(
    g: Generative,
    data: Choices,
    *,
    key: jax.Array,
    plates: Sequence[Sequence[str | Address]] | None = None,
    scale: float = 0.1,
) -> Made:
    """A normal law with a covariance for each element of a plate, and one for all other choices.

    Args:
        g: a generative function that was called.
        data: nested dict of observed choices.
        key: for the draws of the prior, at whose median the guide begins.
        plates: the addresses that stand in each plate, whose first axis it is. By default those
            under a ``jax.vmap`` or ``jax.lax.scan`` of one size are one.
        scale: the standard deviations that it begins with.

    Returns:
        ``guide, params``; ``params["continuous"]`` has ``loc`` and ``log_scale`` f[n], and a list
        ``lower`` of f[elements, k, k], one for each plate and one for the rest; see
        :func:`full_rank`, which this is within an element.

    Raises:
        AddressError: a plate has an unknown address, or one that is in another.
        UnsupportedError: as :func:`full_rank`; or addresses of a plate have first axes of
            different sizes.

    Example:
        >>> guide, params = ppl.guides.blocks(model(), data, key=key)
        >>> list(guide(params).simulate(key).choices)
        ['x']
    """
    space, point, discrete = start(g, data, key, "ppl.guides.blocks")
    groups = _by_size(space) if plates is None else [list(map(_address, p)) for p in plates]
    joint = Blocks(space.size, tuple(_places(space, groups)))
    return made("blocks", space, joint, space.join(point), discrete, scale)


def _address(a: str | Address) -> Address:
    return (a,) if isinstance(a, str) else tuple(a)


def _by_size(space: Space) -> list[list[Address]]:
    """The addresses in plates, by the sizes of these."""
    groups: dict[int, list[Address]] = {}
    for a, (_, shape) in space.slices.items():
        choice = space.entries[a].choice
        if choice.lengths or choice.site.axes:
            groups.setdefault(shape[0], []).append(a)
    return list(groups.values())


def _places(space: Space, groups: Sequence[Sequence[Address]]) -> list[np.ndarray]:
    rest, out = set(space.slices), []
    for group in groups:
        for a in group:
            if a not in rest:
                raise AddressError(
                    f"the plates at {_jax.user_line()} have {show(a)}, which is no latent "
                    f"continuous choice, or in two of them.{nearest(a, space.slices)}"
                )
            rest.discard(a)
        sizes = {space.slices[a][1][:1] for a in group}
        if len(sizes) != 1 or () in sizes:
            raise UnsupportedError(
                f"the addresses {', '.join(map(show, group))} of one plate at {_jax.user_line()} "
                "have no common first axis. Give those of each plate in a list of their own."
            )
        ((n,),) = sizes
        out.append(np.concatenate([_numbers(space, a).reshape(n, -1) for a in group], axis=1))
    left = [np.zeros(0, int), *(_numbers(space, a) for a in space.slices if a in rest)]
    return [*out, np.concatenate(left)[None]]


def _numbers(space: Space, a: Address) -> np.ndarray:
    return np.arange(space.size)[space.slices[a][0]]
