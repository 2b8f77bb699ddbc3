"""The compiled part of ``ppl.play``: rounds, in which each player takes its turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import optax
from jax import lax

from transforms.program.marks import hold

from ..objectives.expectation import Expectation
from .steps import completed


class Game(NamedTuple):
    """What a player sees of the game: a pytree, which no derivative reaches.

    Attributes:
        params: the parameters of all players, by name.
        step: how many rounds there were, i32[].
        state: what the last objective that carries a state has returned.
        batch: that of this round, where ``batches`` are given.
    """

    params: dict[str, Any]
    step: jax.Array
    state: Any
    batch: Any = None


@final
@dataclasses.dataclass(frozen=True)
class Player:
    """An objective ``f(own, game)`` of :func:`play`, and how its parameters move.

    Attributes:
        objective: an ``@ppl.expectation``, or a function. With ``has_aux`` it returns ``(value,
            state)``, and its state is what the next objective sees.
        optimizer: of optax.
        minimize: whether it goes down.
        turns: how many steps it takes in a round.
        every: it takes them in each round whose number this divides.

    Example:
        >>> player = ppl.Player(lambda own, game: own**2, optax.sgd(0.1), minimize=True)
    """

    objective: Expectation | Callable[..., Any]
    optimizer: optax.GradientTransformation
    minimize: bool = False
    turns: int = 1
    every: int = 1


@final
@dataclasses.dataclass(frozen=True)
class Rounds:
    """Up to ``chunk`` rounds; ``whole`` has what is not fitted, ``draw`` makes a batch of a key.

    ``estimates``: the arguments ``samples`` and ``chunk`` of each objective."""

    players: Mapping[str, Player]
    whole: Mapping[str, Any]
    estimates: Mapping[str, Any]
    draw: Callable[[jax.Array], Any] | None
    chunk: int

    def __call__(self, at: Any, key: jax.Array, first: Any, n: Any, rows: Any) -> Any:
        def one(i: jax.Array, carry: Any) -> Any:
            at, history = carry
            own = jax.random.fold_in(key, first + i)
            batch = jax.tree.map(lambda a: a[i], rows)
            if self.draw is not None:
                batch = self.draw(jax.random.fold_in(own, len(self.players)))
            game = Game(at[0], first + i, at[2], batch)
            at, found = _round(self.players, self.whole, at, game, own, self.estimates)
            return at, {k: v.at[i].set(found[k].astype(v.dtype)) for k, v in history.items()}

        history = {name: jnp.full(self.chunk, jnp.nan) for name in self.players}
        return lax.fori_loop(0, n, one, (at, history))


def _round(
    players: Mapping[str, Player],
    whole: Mapping[str, Any],
    at: Any,
    game: Game,
    key: jax.Array,
    estimates: Mapping[str, Any],
) -> Any:
    values = {}
    for i, (name, p) in enumerate(players.items()):
        own_key = jax.random.fold_in(key, i)

        def turns(at: Any, name: str = name, p: Player = p, key: jax.Array = own_key) -> Any:
            turn = lambda at, k: _turn(name, p, whole, at, game, k, estimates)
            at, found = lax.scan(turn, at, jax.random.split(key, p.turns))
            return at, found[-1]

        if p.every == 1:
            at, values[name] = turns(at)
        else:
            like = jax.eval_shape(turns, at)[1]
            rest = lambda at, like=like: (at, jnp.full(like.shape, jnp.nan, like.dtype))
            at, values[name] = lax.cond(game.step % p.every == 0, turns, rest, at)
    return at, values


def _turn(
    name: str,
    p: Player,
    whole: Mapping[str, Any],
    at: Any,
    game: Game,
    key: jax.Array,
    estimates: Mapping[str, Any],
) -> Any:
    """A step of one player, and its value before it; ``whole`` has what is not fitted."""
    params, optimizers, state = at
    f = p.objective if isinstance(p.objective, Expectation) else Expectation(p.objective)
    held, step, seen, batch = hold((params, game.step, state, game.batch))
    game = Game(completed(held, dict(whole)), step, seen, batch)

    def value(own: Any) -> Any:
        own = completed(own, whole[name])
        how = {**estimates, "direction": -1 if p.minimize else 1}
        out = f.surrogate(key, own, game, **how)
        value, new = out if f.has_aux else (out, state)
        return (value if p.minimize else -value), (value, new)

    try:
        grads, (found, new) = jax.grad(value, has_aux=True)(params[name])
    except Exception as error:
        error.add_note(f"This is the objective of the player {name} of ppl.play.")
        raise
    new = jax.tree.map(lambda old, v: jnp.asarray(v).astype(old.dtype), state, new)
    updates, moved = p.optimizer.update(grads, optimizers[name], params[name])
    params = {**params, name: optax.apply_updates(params[name], updates)}
    return (params, {**optimizers, name: moved}, lax.stop_gradient(new)), found
