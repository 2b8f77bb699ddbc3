"""One interpreter for all transformations.

:func:`interpret` evaluates a jaxpr as ordinary JAX code, except at random choices, where it
asks the :class:`Rule` of a transformation. What a rule consumes and produces travels with the
program through its control flow:

- ``key``    a random key, split among the choices and among the steps of a ``scan``;
- ``given``  values for choices, by path; a ``scan`` slices them step by step (and is unrolled
  for :class:`Steps`);
- ``acc``    a pytree that is threaded through (a log density, a score), as a carry in a ``scan``;
- ``record`` values that choices emit, by path; a ``scan`` stacks them.

A run *keeps* values of variables that it is asked for, by the path of their program, where that is
run once (outside of loops and branches); they are recorded at :func:`kept_of` the path.

``scan``, ``cond`` and ``checkpoint`` are rebuilt around the interpreted body, so compile time
does not grow with the length of a loop (unless it is enumerated over); ``jit``, ``custom_jvp``
and ``custom_vjp`` functions that hold choices are inlined; functions without choices are left
exactly as they are. Any other primitive that hides a choice is an error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from .. import _jax
from .choices import Path, random_of, refuse
from .computed_once import scan_once
from .control import Branches, Control, Loop, Whole, control
from .operands import constant_of
from .segments import Run, Segments
from .site import Body, Call

Record = dict[Path, Any]
Kept = Mapping[Path, Sequence[Any]]
"""Variables whose values a run keeps, by the path of their program."""


class Rule(Protocol):
    """What a transformation does at a choice: returns its outputs, the new ``acc``, and what it
    records (by path, usually ``{path: value}``)."""

    def __call__(
        self, choice: Any, operands: list[Any], *, path: Path, key: Any, given: Record, acc: Any
    ) -> tuple[Sequence[Any], Any, Record]: ...


def entering(rule: Rule) -> Rule:
    """A rule that sees the choices inside generative functions, not the functions."""

    def enter(choice: Any, operands: list[Any], *, keep: Kept | None = None, **state: Any) -> Any:
        if isinstance(choice, Call) and isinstance(choice.program, Body):
            return interpret(choice.program.jaxpr, operands, enter, keep=keep, **state)
        return rule(choice, operands, **state)

    return enter


def differentiated(rule: Rule) -> Rule:
    """A rule of which the run is differentiated, and not looked at any more: what a step of a loop
    computes twice it computes once."""
    rule.differentiated = True  # type: ignore[attr-defined]
    return rule


# --- the interpreter --------------------------------------------------------------------------


def kept_of(path: Path) -> Path:
    """Where a record has what is kept of the program at a path."""
    return (*path, -1)


def interpret(
    program: _jax.ClosedJaxpr | Segments,
    args: Sequence[Any],
    rule: Rule,
    *,
    key: Any = None,
    given: Record | None = None,
    acc: Any = None,
    path: Path = (),
    keep: Kept | None = None,
) -> tuple[list[Any], Any, Record]:
    """Evaluate a program, with ``rule`` at its random choices; see the module docstring."""
    kept = () if keep is None else keep.get(path, ())
    program = program if isinstance(program, Segments) else Segments(program, kept=kept)
    jaxpr = program.closed.jaxpr
    below = _by_start(given or {}, len(path) + 1)
    record: Record = {}
    inputs, values = [*jaxpr.constvars, *jaxpr.invars], [*program.closed.consts, *args]
    env: dict[Any, Any] = dict(zip(inputs, values, strict=True))

    def read(v: Any) -> Any:
        return env[v] if isinstance(v, _jax.Var) else constant_of(v)

    keys = keys_of(key, program.choices, True)
    for segment in program.all:
        if isinstance(segment, Run):
            env.update(_results(segment, env))
            continue
        (i, eqn), own_key = segment, next(keys)
        handler, what = handler_of(eqn)
        outs, acc, made = handler(
            what,
            [read(v) for v in eqn.invars],
            rule,
            key=own_key and own_key(),
            given=below.get((*path, i), {}),
            acc=acc,
            path=(*path, i),
            **({"keep": keep} if keep is not None and runs_once(what) else {}),
        )
        record.update(made)
        env.update(zip(eqn.outvars, outs, strict=True))
    if kept:
        record[kept_of(path)] = [env[v] for v in kept]
    return [read(v) for v in jaxpr.outvars], acc, record


def _results(run: Run, env: Mapping[Any, Any]) -> dict[Any, Any]:
    outs = _jax.evaluate(run.jaxpr, *map(env.__getitem__, run.invars))
    return dict(zip(run.outvars, outs, strict=True))


def keys_of(key: Any, n: int, all_of_them: bool) -> Iterator[Callable[[], Any]]:
    """A key for each choice, made where it is asked for."""
    if key is None or n < 2:
        return iter([lambda: key] * n)
    if all_of_them:
        return iter([lambda own=own: own for own in jax.random.split(key, n)])
    split = functools.cache(lambda: jax.random.split(key, n))
    return iter([lambda i=i: lax.index_in_dim(split(), i, keepdims=False) for i in range(n)])


def _by_start(given: Record, depth: int) -> dict[Path, Record]:
    """What is given by the first ``depth`` numbers of its path."""
    found: dict[Path, Record] = {}
    for path, value in given.items():
        found.setdefault(path[:depth], {})[path] = value
    return found


def handler_of(eqn: _jax.JaxprEqn) -> tuple[Callable[..., Any], Control | _jax.JaxprEqn]:
    """What runs an equation that makes a choice or hides one, and what of it."""
    inside = None if random_of(eqn) is not None else control(eqn)
    handler = _CONTROL.get(type(inside))
    return (_choice, eqn) if inside is None or handler is None else (handler, inside)


def runs_once(what: Any) -> bool:
    """Whether what is inside is run once, and each of its values can be kept."""
    return not isinstance(what, Control) or (isinstance(what, Whole) and not what.checkpoint)


def _choice(eqn: Any, operands: list[Any], rule: Rule, **state: Any) -> Any:
    random = random_of(eqn)
    if random is None:
        refuse(eqn)
    outs, acc, made = rule(random, operands, **state)
    return _as_declared(outs, eqn.outvars), acc, made


def _run_whole(whole: Whole, operands: list[Any], rule: Rule, **state: Any) -> Any:
    if not whole.checkpoint:
        return interpret(whole.program, operands, rule, **state)
    return _checkpoint(whole, operands, rule, **state)


def _checkpoint(
    whole: Whole, operands: list[Any], rule: Rule, *, key: Any, given: Record, acc: Any, path: Path
) -> Any:
    made_paths: list[Path] = []

    def body(operands: list[Any], key: Any, values: list[Any], acc: Any) -> Any:
        here = dict(zip(given, values, strict=True))
        outs, acc, made = interpret(
            whole.program, operands, rule, key=key, given=here, acc=acc, path=path
        )
        made_paths[:] = made
        return outs, acc, list(made.values())

    outs, acc, values = whole.around(body)(operands, key, list(given.values()), acc)
    return outs, acc, dict(zip(made_paths, values, strict=True))


@jax.tree_util.register_pytree_node_class
class Steps(tuple):
    """Given values for the steps of a ``scan``, one by one: the loop is unrolled for them.

    Each may have ``vmap`` axes of its own then, which earlier steps do not have.
    """

    def tree_flatten(self) -> tuple[list[Any], None]:
        return list(self), None

    @classmethod
    def tree_unflatten(cls, _: None, children: Any) -> Steps:
        return cls(children)


def _unrolled(
    body: Callable[..., Any], carry: Any, xs: Any, *, length: int, reverse: bool, unroll: Any
) -> tuple[Any, Any]:
    """``lax.scan``, step by step in Python."""
    ys: dict[int, Any] = {}
    for t in reversed(range(length)) if reverse else range(length):
        x = jax.tree.map(lambda a: a[t], xs, is_leaf=lambda a: isinstance(a, Steps))
        carry, ys[t] = body(carry, x)
    return carry, jax.tree.map(lambda *y: jnp.stack(y), *(ys[t] for t in range(length)))


def _scan(
    loop: Loop, operands: list[Any], rule: Rule, *, key: Any, given: Record, acc: Any, path: Path
) -> Any:
    consts, carry, xs = loop.operands(operands)
    keys = None if key is None else jax.random.split(key, loop.length)
    carry_vars, _ = loop.results(loop.body.jaxpr.outvars)
    made_paths: list[Path] = []

    def body(state: Any, x: Any) -> Any:
        carry, acc = state
        xs, key, values = x
        outs, acc, made = interpret(
            loop.body,
            [*consts, *carry, *xs],
            rule,
            key=key,
            given=dict(zip(given, values, strict=True)),
            acc=acc,
            path=path,
        )
        made_paths[:] = made
        carry, ys = loop.results(outs)
        return (_as_declared(carry, carry_vars), acc), (ys, list(made.values()))

    stepwise = any(isinstance(v, Steps) for v in given.values())
    once = scan_once if getattr(rule, "differentiated", False) else lax.scan
    (carry, acc), (ys, values) = (_unrolled if stepwise else once)(
        body,
        (_as_declared(carry, carry_vars), acc),
        (xs, keys, list(given.values())),
        length=loop.length,
        reverse=loop.reverse,
        unroll=loop.unroll,
    )
    return [*carry, *ys], acc, dict(zip(made_paths, values, strict=True))


def _cond(
    cond: Branches,
    operands: list[Any],
    rule: Rule,
    *,
    key: Any,
    given: Record,
    acc: Any,
    path: Path,
) -> Any:
    (index, *ops), branches = operands, cond.programs

    def run(b: int) -> Callable[..., Any]:
        def branch(ops: list[Any], key: Any, values: list[Any], acc: Any) -> Any:
            below = _by_start(dict(zip(given, values, strict=True)), len(path) + 1)
            outs, acc, made = interpret(
                branches[b],
                ops,
                rule,
                key=key,
                given=below.get((*path, b), {}),
                acc=acc,
                path=(*path, b),
            )
            paths.setdefault(b, list(made))
            return _as_declared(outs, cond.eqn.outvars), acc, list(made.values())

        return branch

    args = (ops, key, list(given.values()), acc)
    paths: dict[int, list[Path]] = {}
    shapes = [jax.eval_shape(run(b), *args)[2] for b in range(len(branches))]

    def padded(b: int) -> Callable[..., Any]:
        def branch(*args: Any) -> Any:
            outs, acc, values = run(b)(*args)
            absent = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            return outs, acc, [*absent[:b], values, *absent[b + 1 :]]

        return branch

    outs, acc, values = lax.switch(index, [padded(b) for b in range(len(branches))], *args)
    made = {p: v for b in paths for p, v in zip(paths[b], values[b], strict=True)}
    return outs, acc, made


def _as_declared(outs: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
    """Outputs with the dtypes that the program had when it was traced."""
    return [
        o if o.dtype == v.aval.dtype else lax.convert_element_type(o, v.aval.dtype)
        for o, v in zip(outs, variables, strict=True)
    ]


_CONTROL: dict[type, Callable[..., Any]] = {Whole: _run_whole, Branches: _cond, Loop: _scan}
