"""``ppl.partly``: a value of which some elements are observed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import jax
import jax.numpy as jnp

from transforms import _jax
from transforms.errors import Address, ShapeError, UnsupportedError, show
from transforms.runs.addresses import flatten
from transforms.runs.execute import Some


@final
@jax.tree_util.register_pytree_node_class
class Partly:
    """See :func:`partly`."""

    place = (
        "What is observed in part stands beside a draw of a guide of your own at the same "
        "address, ppl.elbo(model(), guide(params), data), which gives the missing elements alone "
        "a density: d.mask(~observed). Data that end in nothing else need no guide: in the model, "
        "d.mask(observed) leaves the missing ones out."
    )

    def __init__(self, values: Any, observed: Any):
        self.values, self.observed = values, observed  # observed: of the first axes

    def tree_flatten(self) -> tuple[tuple[Any, Any], None]:
        return (self.values, self.observed), None

    @classmethod
    def tree_unflatten(cls, _: None, children: Any) -> Partly:
        return cls(*children)

    def __repr__(self) -> str:
        return f"partly(f{list(jnp.shape(self.values))})"

    def filled(self, address: Address, rest: Any) -> jax.Array:
        """The observed elements, and those of ``rest`` elsewhere.

        Raises:
            ShapeError: ``rest`` has another shape.
        """
        if jnp.shape(rest) != jnp.shape(self.values):
            raise ShapeError(
                f"the value drawn for {show(address)} at {_jax.user_line()} has shape "
                f"{jnp.shape(rest)}, and that observed in part {jnp.shape(self.values)}. Draw all "
                "elements, with the density of those that are missing: d.mask(~observed)."
            )
        return Some(self.values, self.observed).beside(rest)


def partly(values: Any, observed: Any) -> Partly:
    """Data of which some elements are missing, and latent.

    In ``data`` of an objective it stands beside a draw of a guide at the same address, whose
    elements take the place of those that are missing (:func:`ppl.merge`). The guide gives those
    alone a density: ``dist.Normal(m, s).mask(~observed)``.

    In ``g.generate`` the missing elements, steps of a ``scan`` or elements of a ``vmap``, are drawn
    from the program, given what stands before them.

    Args:
        values: f32[*shape], anything finite in the support where an element is missing.
        observed: bool[*shape], or of axes in front of it: which elements are observed. In
            ``g.generate``, axes of ``vmap``\\s and ``scan``\\s.

    Raises:
        ShapeError: ``observed`` has other axes.

    Example:
        >>> seen = jnp.array([True, False])
        >>> pair = ppl.gen(lambda: ppl.sample("y", dist.Normal(jnp.zeros(2), 1.0)))
        >>> rest = ppl.gen(lambda m: ppl.sample("y", dist.Normal(m, 1.0).mask(~seen)))
        >>> known = {"y": ppl.partly(jnp.array([1.0, 0.0]), seen)}
        >>> f = ppl.expectation(lambda m: ppl.elbo(pair(), rest(m), known))
        >>> grad = f.grad(key, jnp.zeros(2))
    """
    shape, mask = jnp.shape(values), jnp.asarray(observed, bool)
    if mask.shape != shape[: mask.ndim]:
        raise ShapeError(
            f"observed has shape {mask.shape} in ppl.partly at {_jax.user_line()}, and the values "
            f"{shape}: it says which elements are observed, by the first of their axes."
        )
    return Partly(jnp.asarray(values), mask)


def refuse_unmasked(data: Mapping[str, Any], name: str, masked: frozenset[Address]) -> None:
    """Refuse a guide with a density for elements that are observed.

    Raises:
        UnsupportedError: its choice has no mask.
    """
    for address, value in flatten(data).items():
        if isinstance(value, Partly) and address not in masked:
            raise UnsupportedError(
                f"{show(address)} is observed in part (ppl.partly, {_jax.user_line()}), and {name} "
                "has no mask there: the density of the elements that it draws for nothing would "
                'count. Type ppl.sample("...", d.mask(~observed)) in the guide.'
            )
