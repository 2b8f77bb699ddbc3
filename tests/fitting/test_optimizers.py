"""Every optimizer and schedule that the installed optax exports, in a fit."""

import dataclasses
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ppl
from ppl.fitting.steps import begin, update
from transforms.program.content import ByContent

KEY = jax.random.key(0)
PARAMS = {"w": jnp.full((2, 2), 0.5), "b": jnp.array([1.0, -0.5]), "n": jnp.array(2)}
STEPS = 3
LABELS = {"w": "a", "b": "b", "n": "a"}
BOTH = {"a": optax.sgd(0.1), "b": optax.adam(0.1)}
MASK = {"w": True, "b": False, "n": False}

ARGUMENTS = {
    "learning_rate": 0.1,
    "clipping": 1.0,
    "eta": 0.01,
    "gamma": 0.5,
    "inner": optax.sgd(0.1),
    "max_consecutive_errors": 3,
    "max_delta": 1.0,
    "threshold": 1.0,
    "max_norm": 1.0,
    "should_transform_fn": lambda step: step < 2,
    "decay": 0.9,
    "mask": MASK,
    "freeze_mask": MASK,
    "fast_optimizer": optax.sgd(0.1),
    "sync_period": 2,
    "slow_step_size": 0.5,
    "transforms": BOTH,
    "param_labels": LABELS,
    "max_backtracking_steps": 5,
    "max_linesearch_steps": 5,
    "step_size": -0.1,
    "step_size_fn": lambda step: -0.1 / (step + 1),
    "f": lambda updates, params: jax.tree.map(lambda u: -0.1 * u, updates),
    "optimizer": optax.sgd(0.1),
    "adv_optimizer": optax.sgd(0.05),
    "base_optimizer": optax.sgd(0.1),
    "tx": optax.sgd(0.1),
    "measure_name": "norm",
    "measure": lambda updates, *_, **__: optax.global_norm(updates),
    "measures": {"norm": lambda updates, *_, **__: optax.global_norm(updates)},
    "l2_norm_clip": 1.0,
    "noise_multiplier": 0.1,
    "seed": 0,
}
MORE = {  # that the signature does not show
    "add_noise": {"key": KEY},
    "chain": lambda: optax.chain(optax.clip(1.0), optax.adam(0.1)),
    "named_chain": lambda: optax.named_chain(("clip", optax.clip(1.0)), ("adam", optax.adam(0.1))),
    "stateless_with_tree_map": {"f": lambda u, p: -0.1 * u},
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(0.1), 2),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(
        optax.linear_schedule(0.1, 0.0, 3)
    ),
    "inject_stateful_hyperparams": lambda: optax.inject_stateful_hyperparams(optax.sgd)(0.1),
    "sam/opaque": lambda: optax.contrib.sam(
        optax.sgd(0.1), optax.sgd(0.05), sync_period=2, opaque_mode=True, reset_state=False
    ),
    "lbfgs/backtracking": lambda: optax.lbfgs(linesearch=optax.scale_by_backtracking_linesearch(5)),
    "sgd/chained": lambda: optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()),
}
OUT = {
    "differentially_private_aggregate": "wants a gradient of each example",
    "dpsgd": "wants a gradient of each example",
    "monitor": "its state has another structure after the first step, so no compiled loop takes it",
    "measure_with_ema": "a part of monitor",
    "scale_by_muon": "a part of muon, which prepares its arguments",
}


def exported():
    """The functions that make an optimizer, by name."""
    made = {n: f for n, f in MORE.items() if callable(f)}
    for module in (optax, optax.contrib):
        for name, f in vars(module).items():
            if name in made or name.startswith("_") or not inspect.isfunction(f):
                continue
            signature = inspect.signature(f)
            optimizer = "GradientTransformation" in str(signature.return_annotation)
            if "Callable" in str(signature.return_annotation) or name in OUT:
                continue
            needed = {
                p.name: ARGUMENTS.get(p.name)
                for p in signature.parameters.values()
                if p.default is p.empty and p.kind is not p.VAR_KEYWORD
            }
            if optimizer or set(needed) <= {"measures"}:
                more = MORE.get(name, {})
                made[name] = lambda f=f, given={**needed, **more}: f(**given)
    return made


OPTIMIZERS = exported()


@ppl.expectation
def objective(p):
    return -((p["w"].sum() - 1.0) ** 2) - jnp.sum((p["b"] - 2.0) ** 2) + 0.0 * p["n"]


def cost(values):
    return (values["w"].sum() - 1.0) ** 2 + jnp.sum((values["b"] - 2.0) ** 2)


VALUES = {**PARAMS, "n": optax.MaskedNode()}


@pytest.mark.filterwarnings("ignore:Specifying a key", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_makes_a_step(name):
    """Traced only: the loop of a fit takes what every optimizer keeps and returns."""
    optimizer = OPTIMIZERS[name]()

    def step():
        value, grads = jax.value_and_grad(cost)(VALUES)
        values, state = begin(optimizer, VALUES)
        grown = update(optimizer, grads, state, values, value, cost)
        return (values, state), grown

    before, after = jax.eval_shape(step)
    assert jax.tree.structure(before) == jax.tree.structure(after)


def by_hand(optimizer):
    """The parameters after some steps of the loop that the documentation of optax shows."""
    values = VALUES
    state = optimizer.init(values)
    for _ in range(STEPS):
        value, grads = jax.value_and_grad(cost)(values)
        extra = {"value": value, "grad": grads, "value_fn": cost}
        updates, state = optimizer.update(grads, state, values, **extra)
        values = optax.apply_updates(values, updates)
    return values


def fit(optimizer, f=objective, **kwargs):
    kwargs = {"key": KEY, "steps": STEPS, "progress": False, **kwargs}
    return ppl.maximize(f, PARAMS, optimizer, **kwargs)


ASKING = ["polyak_sgd", "reduce_on_plateau", "momo"]


def test_fits_are_the_loops_of_optax():
    """Those that ask for the value, the gradient or the function get what they descend."""
    made = {name: OPTIMIZERS[name]() for name in ASKING}
    got = jax.jit(lambda: {name: fit(o).params for name, o in made.items()})()
    wanted = jax.jit(lambda: {name: by_hand(o) for name, o in made.items()})()
    for name in made:
        for leaf in ("w", "b"):
            np.testing.assert_allclose(got[name][leaf], wanted[name][leaf], rtol=1e-5, atol=1e-5)


def test_a_line_search_sees_the_function_that_is_descended():
    got = fit(optax.lbfgs(), steps=5)
    np.testing.assert_allclose(got.history[-1], 0.0, atol=1e-4)


SCHEDULES = {
    "constant_schedule": (0.1,),
    "cosine_decay_schedule": (0.1, 3),
    "cosine_onecycle_schedule": (3, 0.1),
    "exponential_decay": (0.1, 2, 0.9),
    "join_schedules": ([lambda i: 0.1, lambda i: 0.05], [2]),
    "linear_onecycle_schedule": (3, 0.1),
    "linear_schedule": (0.1, 0.0, 3),
    "piecewise_constant_schedule": (0.1, {2: 0.5}),
    "piecewise_interpolate_schedule": ("linear", 0.1, {2: 0.5}),
    "polynomial_schedule": (0.1, 0.0, 2, 3),
    "sgdr_schedule": (
        [{"init_value": 0.1, "peak_value": 0.2, "decay_steps": 3, "warmup_steps": 1}],
    ),
    "warmup_constant_schedule": (0.0, 0.1, 2),
    "warmup_cosine_decay_schedule": (0.0, 0.1, 1, 3),
    "warmup_exponential_decay_schedule": (0.0, 0.1, 1, 2, 0.9),
}


def test_every_schedule_is_an_input_of_an_optimizer_compared_by_content():
    """exponential_decay closes over a variable that is never set."""
    names = [
        name
        for name, f in vars(optax.schedules).items()
        if inspect.isfunction(f) and "inject" not in name and not name.startswith("_")
    ]
    for name in names:
        one, other = (ByContent(optax.sgd(getattr(optax, name)(*SCHEDULES[name]))) for _ in "ab")
        assert one == other, name
        assert hash(one) == hash(other)
        assert one != ByContent(optax.sgd(0.1))
    assert ByContent(optax.exponential_decay(0.1, 2, 0.9)) != ByContent(
        optax.exponential_decay(0.1, 2, 0.8)
    )
    assert fit(optax.sgd(optax.exponential_decay(0.1, 2, 0.9))).history.shape == (STEPS,)


# --- the parameters as they are typed -------------------------------------------------------------


def by_path(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: LABELS[path[0].key], params)


FREEZING = {"a": optax.set_to_zero(), "b": optax.sgd(0.1)}
FROZEN = {
    "labels": optax.multi_transform(FREEZING, LABELS),
    "labels of a function": optax.multi_transform(FREEZING, lambda p: {k: LABELS[k] for k in p}),
    "labels by path": optax.multi_transform(FREEZING, by_path),
    "mask": optax.chain(optax.sgd(0.1), optax.masked(optax.set_to_zero(), MASK)),
    "mask of a function": optax.chain(
        optax.sgd(0.1), optax.masked(optax.set_to_zero(), lambda p: MASK)
    ),
    "decay": optax.chain(
        optax.masked(optax.set_to_zero(), MASK),
        optax.adamw(0.1, weight_decay=1.0, mask=dict(MASK, w=False)),
    ),
    "freeze": optax.chain(optax.sgd(0.1), optax.transforms.freeze(MASK)),
}


def test_labels_masks_and_paths_are_of_the_parameters_as_typed():
    got = jax.jit(lambda: {name: fit(o).params for name, o in FROZEN.items()})()
    for name, params in got.items():
        np.testing.assert_array_equal(params["w"], PARAMS["w"], err_msg=name)
        assert np.all(params["b"] != PARAMS["b"]), name
        assert params["n"] == 2


class Pair(NamedTuple):
    scale: Any
    name: str
    rest: dict


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    weight: Any
    size: Any


def test_the_optimizer_sees_the_tree_as_it_is():
    seen = []

    def init(params):
        seen.append(jax.tree.structure(params))
        return ()

    def spy(updates, state, params=None):
        seen.append(jax.tree.structure(updates))
        return jax.tree.map(lambda u: -0.1 * u, updates), state

    plain = Module({"k": [jnp.ones(2), 1.5]}, 2.0)
    f = ppl.expectation(lambda p: -(p.weight["k"][0].sum() ** 2) - p.weight["k"][1] ** 2 - p.size)
    kwargs = {"key": KEY, "steps": 1, "progress": False}
    ppl.maximize(f, plain, optax.GradientTransformation(init, spy), **kwargs)
    assert set(seen) == {jax.tree.structure(plain)}
    mixed = Pair(1.5, "softplus", {"n": jnp.array(3), "m": 2.0})
    g = ppl.expectation(lambda p: -((p.scale + p.rest["m"]) ** 2) + 0.0 * p.rest["n"])
    got = ppl.maximize(g, mixed, optax.sgd(0.1), **kwargs).params
    assert (got.name, got.rest["n"]) == ("softplus", 3)
    np.testing.assert_allclose((got.scale, got.rest["m"]), (0.8, 1.3), rtol=1e-6)


def test_lookahead_keeps_two_of_each_parameter():
    """Both ways to type it, against the recursion by hand: the slow move half the way."""
    slow = fast = np.array([1.0, -0.5])
    for i in range(1, 4):
        fast = fast - 0.1 * 2 * (fast - 2.0)
        if i % 2 == 0:
            slow = fast = slow + 0.5 * (fast - slow)
    lookahead = optax.lookahead(optax.sgd(0.1), 2, 0.5)
    one = fit(lookahead)
    np.testing.assert_allclose(one.params["b"], slow, rtol=1e-6)
    np.testing.assert_allclose(one.state["params"].fast["b"], fast, rtol=1e-6)
    both = ppl.expectation(lambda p: objective._f(p.fast))
    pair = optax.LookaheadParams.init_synced(PARAMS)
    two = ppl.maximize(both, pair, lookahead, key=KEY, steps=STEPS, progress=False)
    np.testing.assert_allclose(
        (two.params.slow["b"], two.params.fast["b"]), (slow, fast), rtol=1e-6
    )


def test_an_optimizer_that_skips_what_is_not_finite_sees_it():
    f = ppl.expectation(lambda p, bad: -(p**2) * jnp.where(bad, jnp.nan, 1.0))
    batches = [False, True, False]
    kwargs = {"key": KEY, "steps": 3, "progress": False, "batches": batches}
    got = ppl.maximize(f, 1.0, optax.apply_if_finite(optax.sgd(0.1), 5), **kwargs)
    np.testing.assert_allclose(got.params, 0.64, rtol=1e-6)
    assert np.isnan(got.history).tolist() == batches
    with pytest.raises(ppl.NonFiniteError, match="step 1"):
        ppl.maximize(f, 1.0, optax.sgd(0.1), **kwargs)


def test_a_gradient_that_is_collected_is_seen_at_its_step():
    """MultiSteps(2) moves the parameters at the second step, and the first is to blame."""
    f = ppl.expectation(lambda p, bad: -jnp.sqrt(jnp.where(bad, 0.0 * p, p)))
    kwargs = {"key": KEY, "steps": 4, "progress": False, "batches": [True, False]}
    with pytest.raises(ppl.NonFiniteError, match="step 0"):
        ppl.maximize(f, 1.0, optax.MultiSteps(optax.sgd(0.1), 2), **kwargs)
