"""What an estimator asks of the continuation, as a program of its own.

An estimator is given the continuation k as a function, which is traced as one primitive. So the
values that are asked for are known before any is answered, and those of many choices are answered
together.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from .. import _jax
from ..program.operands import constant_of
from ..program.segments import Run, run_of

Asked = Generator[list[jax.Array], list[jax.Array], Any]
"""Yields values, ``[rows, ...]`` each, and is sent the payoffs of these rows."""


def _refuse(**params: Any) -> NoReturn:
    raise AssertionError("the continuation is answered, not run")


def _batch(size: int, args: Any, dims: Any, *, batch: tuple[int, ...], payoff: Any) -> Any:
    (x,), (d,) = args, dims
    x = jnp.broadcast_to(x, (size, *x.shape)) if d is None else jnp.moveaxis(x, d, 0)
    return continued_p.bind(x, batch=(size, *batch), payoff=payoff), [0]


def _jvp(primals: Any, tangents: Any, **params: Any) -> Any:
    outs = continued_p.bind(*primals, **params)
    return outs, [jnp.zeros_like(o) for o in outs]


continued_p = _jax.define_primitive(
    "continued",
    abstract=lambda _, batch, payoff: [_jax.ShapedArray((*batch, *payoff.shape), payoff.dtype)],
    batch=_batch,
    jvp=_jvp,
    refuse=_refuse,
)


class Asking:
    """``f(k, *args)``, with what it asks of k in rounds: the program of each, and its questions."""

    def __init__(self, f: Callable[..., Any], payoff: Any, args: Sequence[Any]) -> None:
        payoff = _jax.ShapedArray(payoff.shape, payoff.dtype)
        k = lambda x: continued_p.bind(x, batch=(), payoff=payoff)[0]
        leaves, tree = jax.tree.flatten(args)
        run = lambda *xs: f(k, *jax.tree.unflatten(tree, xs))
        self._closed, consts, _ = _jax.trace(run, *leaves)
        self._operands = [*consts, *leaves]
        self._rounds = _rounds(self._closed)

    @property
    def is_known(self) -> bool:
        """Whether no question stands inside of a loop, a branch or a function."""
        eqns = self._closed.jaxpr.eqns
        return not any(e.primitive is not continued_p and _jax.holds(e, continued_p) for e in eqns)

    def asked(self) -> Asked:
        """The questions of ``f``; returns its value."""
        jaxpr = self._closed.jaxpr
        env = dict(zip(jaxpr.invars, self._operands, strict=True))
        read = lambda v: env[v] if isinstance(v, _jax.Var) else constant_of(v)
        for run, questions in self._rounds:
            outs = _jax.evaluate(run.jaxpr, *map(env.get, run.invars))
            env.update(zip(run.outvars, outs, strict=True))
            if questions:
                n = [len(q.params["batch"]) for q in questions]
                values = [read(q.invars[0]) for q in questions]
                rows = [x.reshape(-1, *x.shape[m:]) for x, m in zip(values, n, strict=True)]
                answers = yield rows
                for q, a in zip(questions, answers, strict=True):
                    shape = (*q.params["batch"], *q.params["payoff"].shape)
                    env[q.outvars[0]] = a.reshape(shape)
        return read(jaxpr.outvars[0])


def _rounds(closed: _jax.ClosedJaxpr) -> list[tuple[Run, list[_jax.JaxprEqn]]]:
    """What is computed before each round of questions, and these."""
    jaxpr = closed.jaxpr
    level: dict[Any, int] = {}
    parts: list[tuple[list[_jax.JaxprEqn], list[_jax.JaxprEqn]]] = [([], [])]
    for eqn in jaxpr.eqns:
        at = max((level.get(v, 0) for v in eqn.invars if isinstance(v, _jax.Var)), default=0)
        asks = eqn.primitive is continued_p
        parts += [([], [])] if at + asks == len(parts) else []
        parts[at][asks].append(eqn)
        level.update((v, at + asks) for v in eqn.outvars)
    needed = {v for v in jaxpr.outvars if isinstance(v, _jax.Var)}
    found = []
    for eqns, questions in reversed(parts):
        needed |= {v for q in questions for v in q.invars if isinstance(v, _jax.Var)}
        run = run_of(jaxpr, eqns, needed)
        needed |= set(run.invars)
        found.append((run, questions))
    return found[::-1]


__all__ = ["Asked", "Asking"]
