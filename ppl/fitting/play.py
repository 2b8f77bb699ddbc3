"""``ppl.play``: several objectives, each with its own parameters, that are fitted in turn."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

from transforms import _jax
from transforms.errors import NonFiniteError, UnsupportedError, describe
from transforms.program.compiled import compiled

from ..objectives.expectation import counts
from ..programs.given import as_count, as_key
from .arguments import check_arguments
from .checkpoint import VERSIONS, Checkpoint
from .devices import is_first
from .feed import Feed, length
from .fingerprint import program_digest
from .plan import CHUNK
from .resuming import shapes
from .rounds import Player, Rounds
from .steps import completed, fitted, strong


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
        >>> ppl.play({"a": player}, {"a": 1.0}, key=key, steps=3, progress=False).history["a"].shape
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
    chunk: int | None = None,
    state: Any = None,
    batches: Iterable[Any] | Callable[[jax.Array], Any] | None = None,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
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
        chunk: how many of them are in memory at a time, a divisor.
        state: what is carried at first, a pytree of arrays.
        batches: as in ``ppl.maximize``, a batch for each round, which all players find in
            ``game.batch``.
        progress: whether to show a progress bar.
        checkpoint: file that is written every 100 rounds and resumed from if it exists: what
            follows is what would have followed. ``steps`` may be another number then.

    Raises:
        UnsupportedError: players and parameters have different names.
        NonFiniteError: a value is not finite; names the player and the round.
        ValueError: the checkpoint is damaged or of another game; says what differs.

    Example:
        >>> up = lambda own, game: own * game.params["b"] - 0.5 * own**2
        >>> down = lambda own, game: own * game.params["a"] + 0.5 * own**2
        >>> players = {"a": ppl.Player(up, optax.sgd(0.1)),
        ...            "b": ppl.Player(down, optax.sgd(0.1), minimize=True, turns=2)}
        >>> played = ppl.play(players, {"a": 1.0, "b": 1.0}, key=key, steps=100, progress=False)
        >>> abs(float(played.params["a"])) < 0.01
        True
    """
    _check(players, params, batches, checkpoint)
    n, line = as_count(steps, "steps"), _jax.user_line()
    begun = jax.tree.map(strong, fitted(dict(params)))
    carried = jax.tree.map(lambda a: strong(jnp.asarray(a)), state)
    moving = {name: p.optimizer.init(begun[name]) for name, p in players.items()}
    at = (begun, jax.tree.map(strong, moving), carried)
    feed = Feed(None if callable(batches) else batches)
    first = feed.first(1)
    together = length(first[0], CHUNK) if first else CHUNK
    draw = batches if callable(batches) else None
    rounds = Rounds(players, dict(params), counts(samples, chunk), draw, together)
    rows = feed.stack(first, together) if first else None
    given = at, as_key(key), np.int32(0), np.int32(0), rows
    file = None if checkpoint is None else Checkpoint(checkpoint, _identity(rounds, given))
    run = compiled(rounds, *given)
    at, step, history = _begin(at, n, list(players), file)
    ends = [*range(step - step % together + together, n, together), n] if step < n else []
    parts = [end - start for start, end in zip([step, *ends], ends, strict=False)]
    feed.skip(step)
    feed.read_ahead(parts, together)
    bar = tqdm(total=n, initial=step, disable=not (progress and is_first()))
    with bar, contextlib.closing(feed):
        for count in parts:
            at, found = run(at, given[1], np.int32(step), np.int32(count), feed.take())
            for name, values in found.items():
                history[name][step : step + count] = values[:count]
            step += count
            seen = {name: values[:step] for name, values in history.items()}
            _refuse_infinite(seen, players, line)
            bar.update(count)
            last = ((k, v[np.isfinite(v)][-1:]) for k, v in seen.items())
            bar.set_postfix_str(", ".join(f"{k} {x:.4g}" for k, v in last for x in v))
            if file is not None and (step % CHUNK == 0 or step == n):
                file.save(jax.tree.leaves((at, np.int32(step))), np.stack([*seen.values()]))
    ended, moved, carried = at
    return Played(completed(ended, dict(params)), history, carried, moved)


def _begin(
    at: Any, n: int, names: list[str], file: Checkpoint | None
) -> tuple[Any, int, dict[str, np.ndarray]]:
    """Where a game is, how many rounds there were, and its history, with room for ``n``."""
    leaves, tree = jax.tree.flatten((at, np.int32(0)))
    saved = None if file is None else file.restore(leaves)
    history = {name: np.full(n, np.nan, jnp.zeros(()).dtype) for name in names}
    if saved is None:
        return at, 0, history
    at, step = jax.tree.unflatten(tree, saved[0])
    for name, values in zip(names, saved[1], strict=True):
        history[name] = np.concatenate([values, history[name]])[: max(n, int(step))]
    return at, int(step), history


def _identity(rounds: Rounds, given: Any) -> dict[str, str]:
    """What must be the same for a game to be resumed; the optimizers by themselves."""
    still = optax.identity()
    (params, states, carried), *rest = given
    moved = {k: dataclasses.replace(p, optimizer=still) for k, p in rounds.players.items()}
    alone = dataclasses.replace(rounds, players=moved)
    at = params, {k: still.init(p) for k, p in params.items()}, carried
    closed, consts, _ = _jax.trace(alone, at, *rest)

    def optimize(params: Any, states: Any) -> Any:
        update = lambda k, p: p.optimizer.update(params[k], states[k], params[k])
        return {k: update(k, p) for k, p in rounds.players.items()}

    updates, own, _ = _jax.trace(optimize, params, states)
    players = (f"{k} ({p.turns}, {p.every}, {p.minimize})" for k, p in rounds.players.items())
    libraries = ("jax", "numpyro", "optax")
    return {
        "the players, their turns, every and minimize": ", ".join(players),
        "the parameters": shapes(params),
        "the optimizers' state": shapes(states),
        "the state": shapes(carried),
        "optimizer": program_digest(updates, own),
        "objective": program_digest(closed, consts),
        "key": str(np.asarray(jax.random.key_data(given[1])).tolist()),
        VERSIONS: " ".join(f"{n} {importlib.metadata.version(n)}" for n in libraries),
    }


def _check(
    players: Mapping[str, Player], params: Mapping[str, Any], batches: Any, checkpoint: Any
) -> None:
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
        check_arguments(params[name], p.optimizer, (), batches, None, checkpoint)
        as_count(p.turns, f"turns of {name}")
        as_count(p.every, f"every of {name}")


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
