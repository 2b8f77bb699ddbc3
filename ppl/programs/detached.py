"""``ppl.detach``: what an objective depends on without a derivative."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, final

import jax
import jax.numpy as jnp

from transforms import _jax
from transforms.program.marks import hold
from transforms.runs.execute import Execution

from .generative import Generative, Select
from .given import Choices
from .sites import Written


def detach(x: Any) -> Any:
    """Hold something constant on purpose: a generative function, or any pytree of arrays.

    Of a Generative: the same distribution with everything that it closes over held constant. No
    gradient flows into its parameters, neither through its draws nor through its density;
    gradients still flow through the choices at which a density is taken. This is what the
    sticking-the-landing, doubly reparameterised and wake-sleep objectives are made of.

    Of arrays: ``jax.lax.stop_gradient``, which the soundness checker takes for a mistake where it
    drops the derivative of a pathwise draw or of a parameter; what is detached is taken as meant.

    Example:
        >>> @ppl.expectation
        ... def landing(phi):  # ppl.stl
        ...     q = guide(phi).simulate()
        ...     log_q = ppl.detach(guide(phi)).log_density(q.choices)
        ...     return model().log_density(q.choices | data) - log_q
        >>> grad = landing.grad(key, phi)
    """
    return _Detached(x) if isinstance(x, Generative) else hold(x)


@final
class _Detached(Generative):
    def __init__(self, inner: Generative):
        self.name, self._inner = inner.name, inner

    def written(self) -> Written:
        written = super().written()
        return dataclasses.replace(written, args=hold(list(written.args)))

    def as_program(self) -> Any:
        program = super().as_program()
        return None if program is None else program.detached()

    def execute(
        self, given: Choices, *, exact: bool = False, select: Select = lambda address: False
    ) -> Execution:
        inner = self._inner
        assert inner is not None

        def run(given: Mapping[str, Any]) -> Execution:
            return inner.execute(given, exact=exact, select=select)

        given = jax.tree.map(jnp.asarray, dict(given))
        closed, consts, out = _jax.trace(run, given)
        constants = hold(consts)
        outs = _jax.evaluate(closed, *constants, *jax.tree.leaves(given))
        return jax.tree.unflatten(jax.tree.structure(out), outs)
