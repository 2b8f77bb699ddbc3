"""``ppl.play``: several objectives, each with its own parameters, that are fitted in turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from transforms import _jax
from transforms.errors import NonFiniteError, UnsupportedError, describe
from transforms.program.compiled import computed
from transforms.program.marks import hold

from ..objectives.expectation import Expectation
from ..programs.given import as_count, as_key
from .steps import completed, fitted


class Game(NamedTuple):
    """What a player sees of the game: a pytree, which no derivative reaches.

    Attributes:
        params: the parameters of all players, by name.
        step: how many rounds there were, i32[].
        state: what the last objective that carries a state has returned.
    """

    params: dict[str, Any]
    step: jax.Array
    state: Any


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
class Played:
    """What :func:`play` returns.

    Attributes:
        params: of all players, by name.
        history: the values of each objective in its last turn of a round, f32[steps] by name; not a
            number in rounds without.
        state: what was carried last.
        optimizers: the states of the optimizers, by name.

    Example:
        >>> player = ppl.Player(lambda own, game: own**2, optax.sgd(0.1), minimize=True)
        >>> ppl.play({"a": player}, {"a": 1.0}, key=key, steps=3).history["a"].shape
        (3,)
    """

    params: dict[str, Any]
    history: dict[str, np.ndarray]
    state: Any
    optimizers: dict[str, Any] = dataclasses.field(repr=False)


def play(
    players: Mapping[str, Player],
    params: Mapping[str, Any],
    *,
    key: jax.Array,
    steps: int,
    samples: int = 1,
    state: Any = None,
) -> Played:
    """Fit several objectives in turn, in one compiled loop.

    In each round every player in the order of ``players`` takes its turns: a step of its own
    optimizer along the gradient of ``objective(own, game)`` in ``own = params[name]``. It sees the
    parameters of the others as they are, in ``game.params``, the number of the round, for weights
    that change with it, and the state that an objective has returned before (a moving average,
    counts of a codebook, a replay buffer). Neither has a derivative.

    Args:
        players: by name.
        params: where they begin, by the same names: any pytrees, such as Equinox modules, whose
            floating point arrays are fitted.
        key: random key.
        steps: how many rounds.
        samples: how many estimates of each objective are averaged; states too.
        state: what is carried at first, a pytree of arrays.

    Raises:
        UnsupportedError: players and parameters have different names.
        NonFiniteError: a value is not finite; names the player and the round.

    Example:
        >>> up = lambda own, game: own * game.params["b"] - 0.5 * own**2
        >>> down = lambda own, game: own * game.params["a"] + 0.5 * own**2
        >>> players = {"a": ppl.Player(up, optax.sgd(0.1)),
        ...            "b": ppl.Player(down, optax.sgd(0.1), minimize=True, turns=2)}
        >>> played = ppl.play(players, {"a": 1.0, "b": 1.0}, key=key, steps=100)
        >>> abs(float(played.params["a"])) < 0.01
        True
    """
    _check(players, params)
    n, line = as_count(steps, "steps"), _jax.user_line()
    begun = jax.tree.map(jnp.asarray, fitted(dict(params)))
    carried = jax.tree.map(jnp.asarray, state)
    optimizers = {name: p.optimizer.init(begun[name]) for name, p in players.items()}

    def run(key: jax.Array, start: Any) -> Any:
        def one_round(at: Any, step: jax.Array) -> Any:
            return _round(players, params, at, step, jax.random.fold_in(key, step), samples)

        return lax.scan(one_round, start, jnp.arange(n))

    (ended, moved, last), history = computed(run, as_key(key), (begun, optimizers, carried))
    found = {name: np.asarray(values) for name, values in history.items()}
    _refuse_infinite(found, players, line)
    return Played(completed(ended, dict(params)), found, last, moved)


def _check(players: Mapping[str, Player], params: Mapping[str, Any]) -> None:
    if set(players) != set(params):
        raise UnsupportedError(
            f"the players at {_jax.user_line()} are {', '.join(players) or 'none'}, and the "
            f"parameters are those of {', '.join(params) or 'none'}. Give each player its own."
        )
    for name, p in players.items():
        if not isinstance(p, Player):
            raise UnsupportedError(
                f"the player {name} at {_jax.user_line()} is {describe(p)}. Type "
                "ppl.Player(objective, optimizer)."
            )
        as_count(p.turns, f"turns of {name}")
        as_count(p.every, f"every of {name}")


def _round(
    players: Mapping[str, Player],
    whole: Mapping[str, Any],
    at: Any,
    step: jax.Array,
    key: jax.Array,
    samples: int,
) -> Any:
    values = {}
    for i, (name, p) in enumerate(players.items()):
        own_key = jax.random.fold_in(key, i)

        def turns(at: Any, name: str = name, p: Player = p, key: jax.Array = own_key) -> Any:
            turn = lambda at, k: _turn(name, p, whole, at, step, k, samples)
            at, found = lax.scan(turn, at, jax.random.split(key, p.turns))
            return at, found[-1]

        if p.every == 1:
            at, values[name] = turns(at)
        else:
            like = jax.eval_shape(turns, at)[1]
            rest = lambda at, like=like: (at, jnp.full(like.shape, jnp.nan, like.dtype))
            at, values[name] = lax.cond(step % p.every == 0, turns, rest, at)
    return at, values


def _turn(
    name: str,
    p: Player,
    whole: Mapping[str, Any],
    at: Any,
    step: jax.Array,
    key: jax.Array,
    samples: int,
) -> Any:
    """A step of one player, and its value before it; ``whole`` has what is not fitted."""
    params, optimizers, state = at
    f = p.objective if isinstance(p.objective, Expectation) else Expectation(p.objective)
    held, step, seen = hold((params, step, state))
    game = Game(completed(held, dict(whole)), step, seen)

    def value(own: Any) -> Any:
        own = completed(own, whole[name])
        out = f.surrogate(key, own, game, samples=samples, direction=-1 if p.minimize else 1)
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


def _refuse_infinite(
    history: Mapping[str, np.ndarray], players: Mapping[str, Player], line: str
) -> None:
    bad = {
        name: int(np.argmax(~np.isfinite(values[:: players[name].every]))) * players[name].every
        for name, values in history.items()
        if not np.all(np.isfinite(values[:: players[name].every]))
    }
    if bad:
        name = min(bad, key=bad.__getitem__)
        raise NonFiniteError(
            f"the objective of the player {name} is not finite in round {bad[name]} of ppl.play at "
            f"{line}. Smaller steps, optax.clip_by_global_norm(1.0) before the optimizer, or "
            "another start may help."
        )
