"""The random choice as a JAX primitive.

``sample`` binds one primitive, :data:`sample_p`. Its operands are the leaves of the
distribution (a pytree); its parameter is a :class:`Site`. Each surrounding ``jax.vmap``
prepends an :class:`Axis` to the site that says which operands it maps; drawing and scoring
are then ``jax.vmap``\\ s over the distribution rebuilt from its leaves
(:func:`per_element`), which works for every distribution, and gives independent draws also
where no operand is mapped.

Three more primitives stand beside it: :data:`factor_p` (a weight), :data:`call_p` (a
generative function used as a site) and :data:`expect_p` (an expectation inside another).
None of them can run: an interpreter (``interpret.py``) gives them their meaning.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn

import jax
import jax.numpy as jnp

from .. import _jax
from ..errors import Address, KeyRequiredError, UnsupportedError, show
from . import opened
from .drawn import draw_like

PyTree = Any


@jax.tree_util.register_static
class Opaque:
    """A parameter that is compared by identity, so that any object may be one."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return ".."


@dataclasses.dataclass(frozen=True)
class Axis:
    """A surrounding ``vmap``: its size and, for each operand, whether it is mapped.

    ``loops`` counts the ``scan``\\s that stand between it and the choice.
    """

    size: int
    mapped: tuple[bool, ...]
    loops: int = 0


Role = Literal["", "hidden", "optional", "carried"]
"""What a choice is to a generative program:

- ``hidden``    noise without an address: drawn in every run, also in that which takes a density,
  and it weighs nothing. A density is then one of the others given the noise: an unbiased estimate;
- ``optional``  a choice that may be left out of given values, and is then drawn;
- ``carried``   a draw that brings its log density along, which is not known at other values.
"""

Arm = tuple[Opaque, int]
"""A branch of a ``cond`` that has become a selection: which ``cond``, and which branch."""


@dataclasses.dataclass(frozen=True)
class Site:
    """One random choice of a program, all but the numbers.

    ``shape`` and ``dtype`` are those of a draw without the surrounding ``vmap``\\ s, whose
    sizes are in ``axes``, outermost first. ``loops`` counts the ``scan``\\s around the choice that
    the next ``vmap`` will stand outside of. ``drawn`` marks a draw that ``simulate`` has
    already accounted for, as opposed to a site of the program that is being read. ``role`` is what
    it is to a generative program, see :data:`Role`.
    """

    address: Address
    source: str
    shape: tuple[int, ...]
    dtype: Any
    distribution: Opaque  # treedef of the distribution, with concrete integers as leaves
    static: tuple[tuple[int, Any], ...]  # those integers, by position
    estimator: Opaque | None  # treedef of the estimator
    n_estimator: int = 0
    axes: tuple[Axis, ...] = ()
    loops: int = 0
    masked: bool = False
    arms: tuple[Arm, ...] = ()
    drawn: bool = False
    role: Role = ""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the surrounding ``vmap``\\ s, outermost first."""
        return tuple(a.size for a in self.axes)

    @property
    def elements(self) -> int:
        """How many independent copies of the distribution the site holds."""
        return math.prod(self.sizes)

    def rebuild(self, operands: Sequence[Any]) -> Any:
        """The distribution, from operands without their ``vmap`` axes."""
        n = len(operands) - self.n_estimator - self.masked
        leaves = opened.put_back(self.static, operands[:n])
        return jax.tree.unflatten(self.distribution.value, leaves)

    def rebuild_estimator(self, operands: Sequence[Any]) -> Any:
        """The estimator, from operands without their ``vmap`` axes; None if none was chosen."""
        if self.estimator is None:
            return None
        end = len(operands) - self.masked
        leaves = list(operands[end - self.n_estimator : end])
        estimator = jax.tree.unflatten(self.estimator.value, leaves)
        return estimator.value if isinstance(estimator, Opaque) else estimator

    def live(self, operands: Sequence[Any]) -> list[Any]:
        """The operands, with harmless ones for a branch not taken: those need not be finite."""
        if not self.masked:
            return list(operands)
        *rest, mask = operands
        return [*(jnp.where(mask, v, jnp.asarray(0.5, v.dtype)) for v in rest), mask]

    def mask(self, operands: Sequence[Any]) -> Any:
        """The mask operand, without its ``vmap`` axes; True where the site has none."""
        return operands[-1] if self.masked else True

    def taken(self, operands: Sequence[Any]) -> jax.Array:
        """Which elements of the ``vmap``\\ s are in a branch that is taken."""
        return _taken(self.axes, operands, self.masked)


def _taken(axes: Sequence[Axis], operands: Sequence[Any], masks: int) -> jax.Array:
    """Where the last operands, ``masks`` of them, are all true."""
    first = len(operands) - masks
    own = [dataclasses.replace(a, mapped=a.mapped[len(a.mapped) - masks :]) for a in axes]
    every = lambda masks: functools.reduce(jnp.logical_and, masks, jnp.ones((), bool))
    return per_element(own, every, 0)(list(operands[first:]))


def own_density(site: Site) -> str:
    """The name of the log density of a choice at its own draw."""
    return f"{OWN_DENSITY}{show(site.address)} {site.source}"


OWN_DENSITY = "ppl.own_density "


def same_names(closed: _jax.ClosedJaxpr) -> _jax.ClosedJaxpr:
    """The program where log densities of choices at their own draws are no longer told apart."""

    def named(eqn: _jax.JaxprEqn) -> _jax.JaxprEqn:
        own = _names_own_density(eqn)
        return eqn.replace(params={**eqn.params, "name": OWN_DENSITY}) if own else eqn

    return _jax.with_equations(closed, list(map(named, closed.jaxpr.eqns)))


def unnamed(closed: _jax.ClosedJaxpr) -> _jax.ClosedJaxpr:
    """The program where log densities of choices at their own draws are those of any value."""
    values: dict[Any, Any] = {}
    of = lambda v: values.get(v, v) if isinstance(v, _jax.Var) else v
    eqns = []
    for eqn in closed.jaxpr.eqns:
        if _names_own_density(eqn):
            values[eqn.outvars[0]] = of(eqn.invars[0])
        else:
            eqns.append(eqn.replace(invars=list(map(of, eqn.invars))))
    outvars = list(map(of, closed.jaxpr.outvars))
    return _jax.with_outputs(_jax.with_equations(closed, eqns), outvars)


def _names_own_density(eqn: _jax.JaxprEqn) -> bool:
    name = eqn.params.get("name") if eqn.primitive.name == "name" else ""
    return isinstance(name, str) and name.startswith(OWN_DENSITY)


def per_element(axes: Sequence[Axis], f: Callable[..., Any], n_mapped: int) -> Callable[..., Any]:
    """``f(operands, *mapped)`` for each element of the surrounding ``vmap``\\ s.

    The ``n_mapped`` arguments after the operands carry all the axes, outermost first.
    """
    for axis in reversed(axes):
        in_axes = ([0 if m else None for m in axis.mapped], *[0] * n_mapped)
        f = jax.vmap(f, in_axes=in_axes, axis_size=axis.size)
    return f


def element_keys(key: jax.Array, axes: Sequence[Axis]) -> jax.Array:
    """A key for each element of the surrounding ``vmap``\\ s."""
    return jax.random.split(key, tuple(a.size for a in axes)) if axes else key


def advance(
    axis_size: int, args: Sequence[Any], dims: Sequence[Any], loops: int = 0
) -> tuple[Axis, list[Any]]:
    """The record of one more ``vmap``, and the operands with its axis in front."""
    moved = [a if d is None else jnp.moveaxis(a, d, 0) for a, d in zip(args, dims, strict=True)]
    return Axis(axis_size, tuple(d is not None for d in dims), loops), moved


def _keyless(site: Site) -> NoReturn:
    if site.role == "hidden":
        raise KeyRequiredError(
            f"the program draws the noise {show(site.address)} at {site.source} in every run, also "
            "where it takes a density. Pass a key: g(...).log_density(choices, key)."
        )
    if jnp.issubdtype(site.dtype, jax.dtypes.prng_key):  # the key of an expectation
        _keyless_expectation(site.address[-1], site.source)
    raise KeyRequiredError(
        f"the random choice {show(site.address)} at {site.source} was reached where no "
        "randomness is available. Randomness is implicit inside @ppl.gen, @ppl.expectation and "
        "ppl.seed(f); elsewhere pass a key: g(...).simulate(key), objective.value(key, ...), or "
        "ppl.seed(f)(key, ...)."
    )


def _refuse_jvp(what: str, source: str) -> NoReturn:
    raise UnsupportedError(
        f"{what} at {source} is differentiated inside the program (by jax.grad, jax.jvp or a "
        "relative). The derivative of a random program is not the derivative of its draws. Put "
        "the differentiated part into an @ppl.expectation of its own and differentiate that: "
        "jax.grad(inner)(x)."
    )


# --- sample ------------------------------------------------------------------------------


def _sample_batch(axis_size: int, args: Any, dims: Any, *, site: Site) -> Any:
    axis, args = advance(axis_size, args, dims, site.loops)
    site = dataclasses.replace(site, axes=(axis, *site.axes))
    return sample_p.bind(*args, site=site), [0]


sample_p = _jax.define_primitive(
    "sample",
    abstract=lambda *_, site: [_jax.ShapedArray((*site.sizes, *site.shape), site.dtype)],
    batch=_sample_batch,
    jvp=lambda primals, tangents, *, site: _refuse_jvp(
        f"the random choice {show(site.address)}", site.source
    ),
    refuse=lambda *, site: _keyless(site),
)


def sample(
    address: Address,
    d: Any,
    estimator: Any = None,
    source: str | None = None,
    *,
    drawn: bool = False,
    role: Role = "",
) -> Any:
    """Bind one draw of the distribution ``d`` (a pytree with ``sample(key, shape)``)."""
    leaves, tree = opened.flatten(d)
    static, kept = opened.set_apart(leaves)
    est_leaves, est_tree = ([], None) if estimator is None else flatten_estimator(estimator)
    source = _jax.user_line() if source is None else source
    draw = draw_like(address, source, d, leaves, tree)
    site = Site(
        address=address,
        source=source,
        shape=draw.shape,
        dtype=draw.dtype,
        distribution=Opaque(tree),
        static=static,
        estimator=est_tree,
        n_estimator=len(est_leaves),
        drawn=drawn,
        role=role,
    )
    return sample_p.bind(*map(jnp.asarray, [*kept, *est_leaves]), site=site)[0]


def flatten_estimator(estimator: Any) -> tuple[list[Any], Opaque]:
    """The arrays of an estimator, which are operands, and the rest, which is a parameter."""
    leaves, tree = jax.tree.flatten(estimator)
    if len(leaves) == 1 and leaves[0] is estimator:  # of a class that is not registered as a pytree
        leaves, tree = jax.tree.flatten(Opaque(estimator))
    return leaves, Opaque(tree)


class Noise:
    """A distribution without parameters, through whose draws no gradient flows."""


@jax.tree_util.register_static
class FreshKey(Noise):
    """The distribution of a new random key."""

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        like = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
        return jax.random.wrap_key_data(
            jax.random.bits(key, (*sample_shape, *like.shape), like.dtype)
        )


# --- factor ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Factor:
    """A weight of a program; all the elements of its one operand add up."""

    address: Address
    source: str
    arms: tuple[Arm, ...] = ()


def _factor_batch(axis_size: int, args: Any, dims: Any, *, factor: Factor) -> Any:
    axis, (weight,) = advance(axis_size, args, dims)
    if not axis.mapped[0]:
        weight = jnp.broadcast_to(weight, (axis_size, *weight.shape))
    return factor_p.bind(weight, factor=factor), []


def refuse_factor(factor: Factor) -> NoReturn:
    raise UnsupportedError(
        f"the factor {show(factor.address)} at {factor.source} is outside @ppl.gen, where it has "
        "no density to add to. In an objective, add the term to the value that is returned."
    )


factor_p = _jax.define_primitive(
    "factor",
    abstract=lambda *_, factor: [],
    batch=_factor_batch,
    jvp=lambda primals, tangents, *, factor: _refuse_jvp(
        f"the factor {show(factor.address)}", factor.source
    ),
    refuse=lambda *, factor: refuse_factor(factor),
)


def factor(address: Address, log_weight: Any, source: str | None = None) -> None:
    """Bind a weight; all the elements of ``log_weight`` add up."""
    source = _jax.user_line() if source is None else source
    factor_p.bind(jnp.asarray(log_weight), factor=Factor(address, source))


# --- a generative function as a site -------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Body:
    """A program with addresses: its jaxpr, whose sites are those of the program."""

    jaxpr: _jax.ClosedJaxpr

    def batch(self, axis_size: int, mapped: Sequence[bool]) -> Body:
        return Body(_batch_jaxpr(self.jaxpr, axis_size, mapped))

    @property
    def out_avals(self) -> list[Any]:
        return list(self.jaxpr.out_avals)


@dataclasses.dataclass(frozen=True, eq=False)
class Densities:
    """A distribution over choices that is known by two programs, each random in itself.

    ``simulate``: operands -> (retval leaves, choice leaves, log density);
    ``log_density``: (operands, choice leaves) -> (retval leaves, log density).
    ``choices`` is the tree of the choices with their shapes, ``masked`` the addresses of those
    whose masks hide a part of the density; ``weighted`` says that the density is not that of draws.
    """

    simulate: _jax.ClosedJaxpr
    log_density: _jax.ClosedJaxpr
    n_retval: int
    choices: PyTree
    name: str
    masked: tuple[Address, ...] = ()
    weighted: bool = False

    def batch(self, axis_size: int, mapped: Sequence[bool]) -> Densities:
        n = len(jax.tree.leaves(self.choices))
        stacked = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct((axis_size, *s.shape), s.dtype), self.choices
        )
        return dataclasses.replace(
            self,
            simulate=_batch_jaxpr(self.simulate, axis_size, mapped),
            log_density=_batch_jaxpr(self.log_density, axis_size, [*mapped, *[True] * n]),
            choices=stacked,
        )

    @property
    def out_avals(self) -> list[Any]:
        return list(self.simulate.out_avals[: self.n_retval])


def _batch_jaxpr(
    closed: _jax.ClosedJaxpr, axis_size: int, mapped: Sequence[bool]
) -> _jax.ClosedJaxpr:
    in_axes = tuple(0 if m else None for m in mapped)
    f = jax.vmap(lambda *xs: _jax.evaluate(closed, *xs), in_axes=in_axes, axis_size=axis_size)
    args = [
        jax.ShapeDtypeStruct((axis_size, *a.shape) if m else a.shape, a.dtype)
        for a, m in zip(closed.in_avals, mapped, strict=True)
    ]
    batched, consts, _ = _jax.trace(f, *args)
    assert not consts
    return batched


@dataclasses.dataclass(frozen=True)
class Call:
    """A generative function used as a site; the operands are those of its program.

    ``masks`` of them, the last ones, say whether a branch around it is taken.
    """

    address: Address
    source: str
    program: Body | Densities
    axes: tuple[Axis, ...] = ()
    loops: int = 0
    masks: int = 0
    arms: tuple[Arm, ...] = ()

    def taken(self, operands: Sequence[Any]) -> jax.Array:
        """Which elements of the ``vmap``\\ s are in a branch that is taken."""
        return _taken(self.axes, operands, self.masks)


def _call_batch(axis_size: int, args: Any, dims: Any, *, call: Call) -> Any:
    axis, args = advance(axis_size, args, dims, call.loops)
    program = call.program.batch(axis_size, axis.mapped)
    call = dataclasses.replace(call, program=program, axes=(axis, *call.axes))
    outs = call_p.bind(*args, call=call)
    return outs, [0] * len(outs)


call_p = _jax.define_primitive(
    "call",
    abstract=lambda *_, call: [_jax.ShapedArray(a.shape, a.dtype) for a in call.program.out_avals],
    batch=_call_batch,
    jvp=lambda primals, tangents, *, call: _refuse_jvp(
        f"the generative function {show(call.address)}", call.source
    ),
    refuse=lambda *, call: _keyless(call),
)


# --- an expectation inside another ----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Expect:
    """An expectation used inside another: its jaxpr, and how its estimators are chosen.

    It stands for the mean of ``draws`` independent estimates; if ``counted``, of as many as its
    last operand says.
    """

    source: str
    name: str
    jaxpr: _jax.ClosedJaxpr
    choose: Any
    axes: tuple[Axis, ...] = ()
    draws: int = 1
    counted: bool = False

    @property
    def address(self) -> Address:
        return (self.name,)


def _expect_batch(axis_size: int, args: Any, dims: Any, *, expect: Expect) -> Any:
    axis, args = advance(axis_size, args, dims)
    outs = expect_p.bind(*args, expect=dataclasses.replace(expect, axes=(axis, *expect.axes)))
    return outs, [0] * len(outs)


expect_p = _jax.define_primitive(
    "expect",
    abstract=lambda *_, expect: [
        _jax.ShapedArray((*(a.size for a in expect.axes), *o.shape), o.dtype)
        for o in expect.jaxpr.out_avals
    ],
    batch=_expect_batch,
    refuse=lambda *, expect: _keyless_expectation(expect.name, expect.source),
)


def _keyless_expectation(name: str, source: str) -> NoReturn:
    raise KeyRequiredError(
        f"the expectation {name} at {source} was called where no randomness is available. Inside "
        f"another @ppl.expectation, {name}(...) is one unbiased draw of it; elsewhere use "
        f"{name}.value(key, ...) or {name}.value_and_grad(key, ...), which pass a key."
    )
