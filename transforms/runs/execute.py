"""*simulate*, *log_density* and *generate*: one transformation of a generative program.

:func:`execute` runs a program with the choices in ``given`` fixed and the others drawn. It
returns the choices, the return value, the log density of all choices, and the part of it that
belongs to the addresses in ``select`` (and to factors): simulate is ``given = {}``, log_density
is ``given`` = everything, and the log weight of *generate* is the part of what was given. Of a
choice in a loop or a ``vmap`` some elements may be given and the others drawn (``Some``). The
draws are left as random choices of the surrounding program, so an objective that simulates is
itself a program whose choices an estimator can treat.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from .. import _jax
from ..errors import Address, UnsupportedError, show
from ..estimation import inside
from ..estimation.elements import absent, apart, is_masked
from ..estimation.flows import base_of, is_one_way, push
from ..program import marks
from ..program.choices import Choice, Path, abstract_distribution, choices
from ..program.interpret import Record, Rule, entering, interpret
from ..program.site import Call, Densities, Factor, Site, own_density, per_element, sample_p
from ..program.sums import sum_over
from .addresses import Choices, Entry, entries, flatten, match, nest
from .parts import Group, Part

LOG_DENSITY = "ppl.log_density"  # marks densities, for the checks and for the checker


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Execution:
    """One run of a program (a pytree).

    ``log_absent`` is the log density of what the masks of choices hide, of those that are not
    selected (None where nothing is masked): it counts in none of the others, and yet the choices
    are drawn from it. ``made`` says of the choices in branches whether they are in one that is
    taken, by element; others are absent, and weigh nothing. ``parts`` has the log density by
    choices, and ``factors`` the log weights by address; together they are ``log_density``. ``laws``
    has the operands of the choices that were asked for, with all the axes around them in front.
    """

    choices: Choices
    retval: Any
    log_density: jax.Array
    log_weight: jax.Array
    log_absent: jax.Array | None = None
    made: dict[Address, jax.Array] = dataclasses.field(default_factory=dict)
    parts: dict[Group, Part] = dataclasses.field(default_factory=dict)
    factors: dict[Address, jax.Array] = dataclasses.field(default_factory=dict)
    laws: dict[Address, list[jax.Array]] = dataclasses.field(default_factory=dict)

    @property
    def densities(self) -> dict[Group, Part]:
        """``parts``; without them all of the choices are one group."""
        group = tuple(flatten(self.choices))
        joint = {} if self.parts or not group else {group: Part(self.log_density)}
        return self.parts or joint

    @property
    def log_integrand(self) -> jax.Array:
        """What is integrated over the choices that are not selected to get a marginal density:
        the log density, those that are masked included."""
        return self.log_density if self.log_absent is None else self.log_density + self.log_absent


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Some:
    """Values of a choice that are given for some elements: where ``known``, bool of the axes around
    the choice, or the first of them."""

    values: Any
    known: jax.Array

    def beside(self, drawn: jax.Array) -> jax.Array:
        """The values, and where they are not known those that are drawn."""
        known = self.known.reshape(self.known.shape + (1,) * (drawn.ndim - self.known.ndim))
        return jnp.where(known, self.values, drawn)


# --- the transformation ------------------------------------------------------------------------


def log_density_of(
    site: Site,
    operands: Sequence[Any],
    value: Any,
    *,
    own: bool = False,
    other: bool = False,
    hidden: bool = False,
) -> jax.Array:
    """Log density of each element of a site at ``value``: f32[*sizes of the surrounding vmaps].

    ``own`` says that the value is the draw of the site; the density of each element has a name
    then, by which it is found among the terms of an objective. ``other`` says that in a branch that
    is not taken the value is that of another choice. With ``hidden``, that of the elements which a
    mask hides.
    """

    def one(operands: list[Any], value: Any) -> jax.Array:
        d = site.rebuild(site.live(operands))
        if other and site.masked:  # the derivative may be no number there
            value = jnp.where(site.mask(operands), value, jnp.asarray(0.5, value.dtype))
        try:
            if own:
                parts = [checkpoint_name(apart(d).log_prob(value), own_density(site))]
            else:
                parts = [
                    inside.log_prob(p, value, site.address, site.source, site.masked)
                    for p in (absent(d) if hidden else [d])
                ] or [jnp.zeros(())]
        except NotImplementedError as error:
            raise UnsupportedError(_no_density(site, d)) from error
        log_density = functools.reduce(jnp.add, map(sum_over, parts))
        return jnp.where(site.mask(operands), log_density, 0.0) if site.masked else log_density

    with marks.mark(marks.DENSITY):
        return per_element(site.axes, one, 1)(list(operands), value)


def _no_density(site: Site, d: Any) -> str:
    return (
        f"the density of {show(site.address)} ~ {type(d).__name__} at {site.source} is not "
        "implemented, or that of a part, or the inverse of a transform, which the density at a "
        "value needs that is not drawn there. Define it (log_prob, cdf, or the _inverse of the "
        "transform)."
    )


def execute(
    closed: _jax.ClosedJaxpr,
    args: Sequence[Any],
    given: Mapping[str, Any],
    *,
    name: str,
    exact: bool = False,
    select: Callable[[Address], bool] = lambda address: False,
    laws: Collection[Address] = (),
    some: Mapping[Address, Some] | None = None,
) -> Execution:
    """Run a program with the choices in ``given`` fixed; see the module docstring."""
    program, weights = entries(closed), weights_of(closed)
    values = nest({**flatten(given), **{a: s.values for a, s in (some or {}).items()}}.items())
    fixed = match(program, values, name, exact=exact)
    fixed |= _known_in_part(program, fixed, some or {})
    rule, acc = scoring(program, weights, fixed, select, laws)
    retval, sums, record = interpret(closed, args, rule, given=fixed, acc=acc)
    named = _by_address(program, weights, record, laws)
    summed: list[Any] = list(map(jnp.asarray, sums))
    return Execution(named.pop("choices"), retval, *summed, **named)


def scoring(
    program: Sequence[Entry],
    weights: Mapping[Path, Address],
    fixed: Collection[Path],
    select: Callable[[Address], bool],
    laws: Collection[Address] = (),
) -> tuple[Rule, tuple[Any, ...]]:
    """The rule that draws and scores the choices of a program, those at ``fixed`` paths as given.

    It records of each choice its value, its log density and (of those in ``laws``) its operands,
    and accumulates log densities: of all of them, of what is selected, and of what masks hide,
    where there are masks. Also what it starts from.
    """
    by_path = {c.path: e for e in program for c in e.parts}
    masked = masked_choices(program)
    one_way = _one_way(program, fixed)

    @entering
    def rule(
        choice: Any, operands: list[Any], *, path: Path, key: Any, given: Record, acc: Any
    ) -> Any:
        total, selected, *missing = acc
        if isinstance(choice, Factor):
            weight = sum_over(operands[0])
            acc = (_add(total, weight), _add(selected, weight), *missing)
            return [], acc, {path: (None, weight, ())}
        if isinstance(choice, Site) and choice.role == "hidden":
            site = dataclasses.replace(choice, drawn=True)
            return sample_p.bind(*operands, site=site), acc, {}
        entry = by_path[path]
        address, known = entry.address, None
        if isinstance(choice, Site):
            site = dataclasses.replace(choice, address=address, drawn=True)
            if path in one_way:
                value, score = _taken_through(site, operands)
            else:
                value, known = _drawn_or_given(site, operands, given.get(path))
                score = functools.partial(
                    log_density_of, site, operands, value, other=entry.branches
                )
            outs, lp = [value.astype(choice.dtype)], score(own=path not in given)
            if address in masked and not select(address):
                missing = [_add(missing[0], _whole(score(hidden=True)))]
        else:
            value, outs, lp = _call(choice, operands, given.get(path))
        weighs = path in weights  # an evidence
        whole = _whole(lp)
        mine = whole if known is None else _whole(jnp.where(known, lp, 0.0))
        add = _add(selected, mine) if weighs or select(address) else selected
        made = (value, choice.taken(operands)) if entry.conditional else value
        law = broadcast_operands(choice, operands) if address in laws else ()
        record = {path: (made, whole if weighs else lp, law)}
        return outs, (_add(total, whole), add, *missing), record

    return rule, (np.zeros((), jnp.result_type(float)),) * (3 if masked else 2)


def _known_in_part(
    program: Sequence[Entry], fixed: Mapping[Path, Any], some: Mapping[Address, Some]
) -> dict[Path, Some]:
    """The values of choices that are known for some elements, as the interpreter has them.

    Raises:
        UnsupportedError: they are elements of one draw.
    """
    found: dict[Path, Some] = {}
    for e in program:
        if e.address not in some:
            continue
        known = some[e.address].known
        if known.ndim > e.n_axes or not isinstance(e.choice.random, Site):
            raise UnsupportedError(
                f"{show(e.address)} at {e.source} is given in part ({_jax.user_line()}), and what "
                f"is told apart are elements of one draw: around the choice are {e.n_axes} axes of "
                f"jax.vmap and jax.lax.scan, and observed has {known.ndim}. Make a draw of each "
                "element, jax.vmap(lambda m: ppl.sample(...))(means), or a step of a scan."
            )
        axes = jnp.shape(some[e.address].values)[: e.n_axes]
        whole = jnp.broadcast_to(known.reshape(known.shape + (1,) * (e.n_axes - known.ndim)), axes)
        found |= {path: Some(fixed[path], known) for path, known in e.split(whole).items()}
    return found


def _drawn_or_given(
    site: Site, operands: Sequence[Any], given: Any
) -> tuple[jax.Array, jax.Array | None]:
    """The value of a choice, and which elements are given, if these are not all or none."""
    if given is not None and not isinstance(given, Some):
        return given, None
    drawn = sample_p.bind(*operands, site=site)[0]
    return (drawn, None) if given is None else (given.beside(drawn), given.known)


def values_in(record: Record) -> Record:
    """What choices took, of what the rule records."""
    return {path: value for path, (value, _, _) in record.items() if value is not None}


def _one_way(program: Sequence[Entry], fixed: Collection[Path]) -> set[Path]:
    """The choices that are drawn here and could not be scored at another value."""
    sites = [c for e in program for c in e.parts if isinstance(c.random, Site)]
    for c in sites:
        if c.site.role == "carried" and c.path in fixed:
            _refuse_carried(c)
    free = [c for c in sites if c.path not in fixed]
    return {c.path for c in free if is_one_way(abstract_distribution(c))}


def _by_address(
    program: Sequence[Entry],
    weights: Mapping[Path, Address],
    record: Record,
    laws: Collection[Address],
) -> dict[str, Any]:
    """What a run has recorded, as fields of an :class:`Execution`."""
    made = values_in(record)
    densities = {path: lp for path, (_, lp, _) in record.items()}
    law = {path: operands for path, (_, _, operands) in record.items()}
    parts = [e for e in program if e.choice.path not in weights]
    factors: dict[Address, jax.Array] = {}
    for path, address in weights.items():
        weight = sum_over(jnp.asarray(densities[path]))
        factors[address] = factors[address] + weight if address in factors else weight
    return {
        "choices": nest((e.address, e.join(made)) for e in program),
        "made": {e.address: e.made(made) for e in program if e.conditional},
        "parts": {e.group: Part(e.added(densities), e.n_axes) for e in parts},
        "factors": factors,
        "laws": {e.address: e.join(law) for e in program if e.address in laws},
    }


def broadcast_operands(site: Site, operands: Sequence[Any]) -> list[jax.Array]:
    """The operands of a site, all with all of its axes."""
    return per_element(site.axes, lambda ops: [jnp.asarray(v) for v in ops], 0)(list(operands))


def weights_of(closed: _jax.ClosedJaxpr) -> dict[Path, Address]:
    """Where the weights of a program are: its factors, and evidences that are sites of it."""
    return {
        c.path: c.address
        for c in choices(closed)
        if isinstance(c.random, Factor) or (isinstance(c.random, Call) and _is_evidence(c.random))
    }


def _is_evidence(call: Call) -> bool:
    return isinstance(call.program, Densities) and not jax.tree.leaves(call.program.choices)


def _whole(lp: jax.Array) -> jax.Array:
    with marks.mark(marks.DENSITY):
        return sum_over(lp)


def _taken_through(site: Site, operands: list[Any]) -> tuple[jax.Array, Callable[..., jax.Array]]:
    """A draw of a flow that is one-way, and its log density: the draw of its base, taken through
    the transforms."""
    base, below = base_of(site, operands)
    x = sample_p.bind(*below, site=base)[0]
    value, volume = push(site, operands, x)

    def score(own: bool = False, hidden: bool = False) -> jax.Array:
        more = push(site, operands, x, hidden=True)[1] if hidden else volume
        return log_density_of(base, below, x, own=own, hidden=hidden) + more

    return value, score


def masked_choices(program: Sequence[Entry]) -> set[Address]:
    """The addresses of the choices of a program that have a mask."""
    return {
        e.address
        for e in program
        for c in e.parts
        if isinstance(c.random, Site) and is_masked(abstract_distribution(c))
    }


def hidden_masks(program: Sequence[Entry]) -> set[Address]:
    """The addresses of masked choices of programs inside that are known by their densities."""
    calls = [(e.address, e.choice.random) for e in program if isinstance(e.choice.random, Call)]
    return {
        (*address, *inside)
        for address, call in calls
        if isinstance(call.program, Densities)
        for inside in call.program.masked
    }


def _add(acc: jax.Array, term: Any) -> jax.Array:
    term = jnp.asarray(term).astype(acc.dtype)
    return term if isinstance(acc, np.ndarray) else acc + term  # the first of all


def _call(call: Call, operands: Sequence[Any], given: Any) -> Any:
    """Simulate or score a nested program that is known by its densities."""
    p = call.program
    assert isinstance(p, Densities)
    if given is None:
        if p.weighted and jax.tree.leaves(p.choices):
            _refuse_weighted(call, p)
        outs = _jax.evaluate(p.simulate, *operands)
        leaves = outs[p.n_retval : -1]
        value = jax.tree.unflatten(jax.tree.structure(p.choices), leaves)
    else:
        shapes = jax.tree.leaves(p.choices)
        leaves = [v.astype(s.dtype) for v, s in zip(jax.tree.leaves(given), shapes, strict=True)]
        outs = _jax.evaluate(p.log_density, *operands, *leaves)
        value = given
    return value, outs[: p.n_retval], outs[-1]


def _refuse_weighted(call: Call, program: Densities) -> NoReturn:
    raise UnsupportedError(
        f"{show(call.address)} at {call.source} is drawn from {program.name}, a program of which "
        "has weights (ppl.factor, ppl.observe): its draws come from the program without them, its "
        "density has them, and what is missing would be lost here. Give its value as data; or type "
        "the data as a choice, ppl.sample, and use ppl.normalize(g, data), whose draws have it."
    )


def _refuse_carried(c: Choice) -> NoReturn:
    raise UnsupportedError(
        f"{show(c.address)} at {c.source} is a function of noise, whose log density is known "
        "at its own draws alone, and a value is given for it. Draw it (simulate); for densities at "
        "given values take a guide that has them."
    )


def refuse_nested_density(closed: _jax.ClosedJaxpr, name: str) -> None:
    """Inside ``@ppl.gen`` a density would be lost: say so (found by its mark)."""
    for eqn in closed.jaxpr.eqns:
        if eqn.primitive.name == "name" and eqn.params.get("name") == LOG_DENSITY:
            line = _jax.line_of(eqn) or _jax.user_line()  # none for a run with a key of its own
            raise UnsupportedError(
                f"the density of a generative function is taken inside {name} at {line}, where it "
                "adds nothing to the program's own density. Inside @ppl.gen use "
                'ppl.sample("name", g(...)), or ppl.factor("name", log_weight) for a weight.'
            )
        for sub in _jax.sub_jaxprs(eqn):
            refuse_nested_density(sub, name)
