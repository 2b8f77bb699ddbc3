"""Several players: as a loop by hand, with state and schedule, and no derivative across."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ppl
from ppl import dist

KEY = jax.random.key(0)
DOWN, UP = optax.sgd(0.1), optax.adam(0.05)


def loss(x, game):
    value = jnp.sum(x**2) + x[0] * game.params["up"] + 0.1 * game.step * x[1] + game.state
    return value, 0.9 * game.state + x[0]


def gain(y, game):
    return -((y - game.params["down"][0]) ** 2) + y * game.state


START = {"down": jnp.array([1.0, -0.5]), "up": jnp.array(0.3)}


def test_it_is_the_loop_that_one_writes_by_hand():
    players = {
        "down": ppl.Player(ppl.expectation(loss, has_aux=True), DOWN, minimize=True, turns=2),
        "up": ppl.Player(gain, UP, every=3),
    }
    played = ppl.play(players, START, key=KEY, steps=7, progress=False, state=0.5)

    x, y, state = START["down"], START["up"], 0.5
    a, b = DOWN.init(x), UP.init(y)
    downs, ups = [], []
    for step in range(7):
        for _ in range(2):
            value = jnp.sum(x**2) + x[0] * y + 0.1 * step * x[1] + state
            grad = 2.0 * x + jnp.array([y, 0.1 * step])
            state = 0.9 * state + x[0]
            moved, a = DOWN.update(grad, a)
            x = x + moved
        downs.append(value)
        ups.append(np.nan)
        if step % 3 == 0:
            ups[-1] = -((y - x[0]) ** 2) + y * state
            moved, b = UP.update(2.0 * (y - x[0]) - state, b)
            y = y + moved
    np.testing.assert_allclose(played.params["down"], x, rtol=1e-5)
    np.testing.assert_allclose(played.params["up"], y, rtol=1e-5)
    np.testing.assert_allclose(played.state, state, rtol=1e-5)
    np.testing.assert_allclose(played.history["down"], downs, rtol=1e-5)
    np.testing.assert_allclose(played.history["up"], ups, rtol=1e-4)


def test_random_players_reach_the_saddle():
    """E[(x + e)(y - 1)] + x² - y² has its saddle where 2 x = 1 - y and x = 2 y: (.4, .2)."""

    def f(x, y):
        e = ppl.sample("e", dist.Normal(0.0, 0.1))
        k = ppl.sample("k", dist.Bernoulli(jax.nn.sigmoid(x)), ppl.reinforce())
        return (x + e) * (y - 1.0) + x**2 - y**2 + 0.0 * k

    players = {
        "x": ppl.Player(lambda x, g: f(x, g.params["y"]), optax.sgd(0.1), minimize=True),
        "y": ppl.Player(lambda y, g: f(g.params["x"], y), optax.sgd(0.1)),
    }
    start = {"x": jnp.array(0.0), "y": jnp.array(0.0)}
    played = ppl.play(players, start, key=KEY, steps=200, progress=False, samples=20)
    np.testing.assert_allclose(played.params["x"], 0.4, atol=0.03)
    np.testing.assert_allclose(played.params["y"], 0.2, atol=0.03)


def test_what_is_wrong_is_told():
    with pytest.raises(ppl.UnsupportedError, match="Give each player its own"):
        ppl.play({"a": ppl.Player(gain, UP)}, {"b": 1.0}, key=KEY, steps=1, progress=False)
    diverging = ppl.Player(lambda x, game: jnp.log(1.0 - x), optax.sgd(-0.6))
    with pytest.raises(ppl.NonFiniteError, match=r"player a is not finite in round 2"):
        ppl.play({"a": diverging}, {"a": jnp.array(0.0)}, key=KEY, steps=6, progress=False)


def test_what_is_not_fitted_stays_as_it_is():
    """A function and integers among the parameters, as in a module of Equinox."""

    def loss(own, game):
        scale, f, index = own
        other, g, _ = game.params["other"]
        return jnp.sum((f(scale)[index] - g(other)[0]) ** 2)

    start = {
        "one": (jnp.array([1.0, 2.0]), jnp.sin, jnp.array([1])),
        "other": (jnp.array([0.3]), jnp.cos, jnp.array([0])),
    }
    players = {name: ppl.Player(loss, DOWN, minimize=True) for name in start}
    played = ppl.play(players, start, key=KEY, steps=1, progress=False).params

    x, y = np.float32([1.0, 2.0]), np.float32(0.3)
    x[1] -= 0.1 * 2 * (np.sin(2.0) - np.cos(y)) * np.cos(2.0)
    np.testing.assert_allclose(played["one"][0], x, rtol=1e-5)
    assert played["other"][0] == y  # its loss is 0
    assert played["one"][1] is jnp.sin
    assert played["one"][2].tolist() == [1]


def test_an_error_names_the_player():
    wrong = lambda own, game: jnp.zeros(3) @ jnp.zeros(4) + own
    players = {"right": ppl.Player(lambda own, game: own, DOWN), "wrong": ppl.Player(wrong, DOWN)}
    with pytest.raises(TypeError) as raised:
        ppl.play(players, {"right": 1.0, "wrong": 1.0}, key=KEY, steps=1, progress=False)
    assert any("player wrong" in note for note in raised.value.__notes__)


def pulled(own, game):
    noise = ppl.sample("e", dist.Normal(0.0, 1.0))
    return -((own - jnp.mean(game.batch) + noise) ** 2), 0.9 * game.state + own


def chase(own, game):
    return (own - game.params["lead"]) ** 2 + own * game.state * 1e-3


CHASE = {
    "lead": ppl.Player(ppl.expectation(pulled, has_aux=True), UP),
    "follow": ppl.Player(chase, DOWN, minimize=True, every=2),
}
ROWS = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
HOW = {"key": KEY, "state": 0.0, "progress": False}
ORIGIN = {"lead": 0.0, "follow": 1.0}


@pytest.mark.parametrize("batches", [list(ROWS), ppl.minibatches(ROWS, 4)], ids=["host", "device"])
def test_a_game_resumes_as_if_it_had_not_stopped(batches, tmp_path):
    """In the middle of a chunk and of the rows; the history too."""
    whole = ppl.play(CHASE, ORIGIN, steps=230, batches=batches, **HOW)
    file = tmp_path / "game.npz"
    for steps in (130, 230):
        parts = ppl.play(CHASE, ORIGIN, steps=steps, batches=batches, checkpoint=file, **HOW)
    again = ppl.play(CHASE, ORIGIN, steps=230, batches=batches, checkpoint=file, **HOW)
    for other in (parts, again):
        for name in CHASE:
            np.testing.assert_array_equal(whole.history[name], other.history[name])
            assert whole.params[name] == other.params[name]
        assert whole.state == other.state
    slower = CHASE | {"follow": ppl.Player(chase, optax.sgd(0.05), minimize=True, every=2)}
    with pytest.raises(ValueError, match=r"What differs: optimizer \(other code"):
        ppl.play(slower, ORIGIN, steps=240, batches=batches, checkpoint=file, **HOW)


def test_batches_come_in_order_and_progress_is_shown(capsys):
    """Rounds see the rows of the host one by one, from the first again when they end."""
    sees = ppl.Player(lambda own, game: own + game.batch[0], optax.sgd(0.0))
    played = ppl.play({"a": sees}, {"a": 0.0}, key=KEY, steps=9, batches=list(ROWS))
    np.testing.assert_array_equal(played.history["a"], ROWS[np.arange(9) % 7, 0])
    shown = capsys.readouterr().err
    assert "9/9" in shown and f"a {ROWS[1, 0]:.4g}" in shown
    with pytest.raises(ppl.UnsupportedError, match="no file can be written"):
        ppl.play({"a": sees}, {"a": 0.0}, key=KEY, steps=1, checkpoint="/nowhere/at/all.npz")
