"""The engine of forward analyses: functions, branches, loops, and where variables are."""

import jax
import jax.numpy as jnp
from jax import lax

from transforms.analyses.forward import Analysis


class Reads(Analysis):
    """Which inputs a value is computed from, and how many steps before (3: any number)."""

    nothing = frozenset()

    def equation(self, eqn, ins, at):
        return [self.join(ins)] * len(eqn.outvars)

    def join(self, values):
        return frozenset().union(*values)

    def late(self, loop, carry, at):
        return frozenset((name, min(steps + 1, 3)) for name, steps in carry)


def reads(f, *args):
    closed = jax.make_jaxpr(f)(*args)
    analysis = Reads()
    ins = [frozenset({(name, 0)}) for name, _ in zip("abcdef", args, strict=False)]
    return analysis.run(closed, ins), analysis


def now(*names):
    return {(name, 0) for name in names}


def test_functions_and_branches():
    def f(a, b, c):
        d = jax.jit(lambda x, y: x * y)(a, b)
        e = lax.cond(c > 0, lambda x, y: x, lambda x, y: y + 1.0, a, b)
        return d, jax.checkpoint(jnp.sin)(b), e, 1.0

    (d, s, e, one), analysis = reads(f, 1.0, 2.0, 3.0)
    assert (d, s, e, one) == (now("a", "b"), now("b"), now("a", "b", "c"), frozenset())
    assert len([path for path in analysis.seen if len(path) == 2]) == 2  # the branches


def test_loops_until_nothing_changes():
    """x goes round three carries: what the last one is depends on a step before that, and so on."""

    def f(a, b, x):
        def body(carry, x):
            p, q, r = carry
            return (x, p, q), r * b

        (p, q, r), ys = lax.scan(body, (a, a, a), x)
        return p, q, r, ys

    (p, q, r, ys), _ = reads(f, 1.0, 2.0, jnp.arange(5.0))
    assert p == now("c")
    assert q == {("a", 0), ("c", 1)} and r == {("a", 0), ("a", 1), ("c", 2)}
    assert ys == {("a", n) for n in range(3)} | {("b", 0), ("c", 3)}


def test_what_is_not_entered_is_an_equation_as_any_other():
    def f(a, b):
        return lax.while_loop(lambda c: c[0] < b, lambda c: (c[0] + 1.0, 2 * c[1]), (a, 2.0))

    (first, second), _ = reads(f, 1.0, 2.0)
    assert first == second == now("a", "b")
