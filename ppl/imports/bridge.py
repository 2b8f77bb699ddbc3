"""What each statement of a NumPyro model becomes.

A :class:`Bridge` stands at the bottom of NumPyro's stack, so it sees every statement as the
handlers of the model (``scale``, ``mask``, ``plate``, ``reparam``, ...) have left it, and makes a
choice or a factor of it. Loops and branches are in ``control_flow.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.primitives import _PYRO_STACK, Messenger

from estimators.enumeration import enum
from transforms import _jax
from transforms.errors import UnsupportedError
from transforms.estimation import inside
from transforms.program import marks
from transforms.program.site import FreshKey
from transforms.program.site import factor as _factor
from transforms.program.site import sample as _sample

from ..programs.choices import check_address
from ..programs.corrected import corrected
from .noise import Placed, Subsample, is_delta, somewhere

Message = dict[str, Any]


@dataclasses.dataclass
class Shared:
    """What the bridges of one run share.

    ``params`` are the values of ``param`` and ``module`` statements, ``latents`` those of auxiliary
    choices that are not drawn; ``factors`` counts the names of factors, which are unique.
    """

    params: Mapping[str, Any]
    unconstrained: bool = False
    latents: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    factors: dict[str, int] = dataclasses.field(default_factory=dict)


class Bridge(Messenger):
    """Turns the statements that reach it into choices and factors.

    One that is ``closed`` is for the body of a loop, and hides them from the handlers around it.
    Where these would change something, it is ``told``, and keeps what it has ``seen`` for them.
    """

    def __init__(
        self, shared: Shared, flow: Callable[..., Any], *, closed: bool = False, told: bool = False
    ) -> None:
        super().__init__(None)
        self.shared, self.flow, self.closed, self.told = shared, flow, closed, told
        self.seen: dict[str, Seen] = {}
        self._indices: dict[str, tuple[tuple[int, int], Any]] = {}
        self._carried: list[jax.Array] = []  # log densities of auxiliary draws so far

    def process_message(self, msg: Any) -> None:
        handle = _STATEMENTS.get(msg["type"])
        if handle is not None:
            handle(self, msg)
        if self.closed:
            msg["stop"] = True

    # --- statements -----------------------------------------------------------------------------

    def sample(self, msg: Message) -> None:
        if msg.get("_control_flow_done"):
            self._after_a_loop(msg)
            return
        d = corrected(_expanded(msg))
        given = msg["value"] is not None
        if given:
            log_prob = _log_prob(d, msg["value"], msg["name"])
            if not self.told:
                self.factor(msg["name"], scaled(log_prob, msg["scale"]))
        elif msg["infer"].get("is_auxiliary"):
            msg["value"], log_density = self._auxiliary(msg, d)
            self._carried.append(log_density)
            return
        elif self._carried and is_delta(_innermost(d)):
            msg["value"], log_prob = self._place(msg, d), None
        else:
            msg["value"], log_prob = self._draw(msg, d)
        self._see(msg, log_prob, counted=not given)

    def _see(self, msg: Message, log_prob: Any, *, counted: bool) -> None:
        if self.told and log_prob is not None:
            static = {"counted": counted, "infer": msg["infer"]}
            self.seen[msg["name"]] = Seen(log_prob, msg["scale"], msg["value"], static)

    def _draw(self, msg: Message, d: Any) -> tuple[Any, jax.Array | None]:
        """A choice. What a scale adds to its density is a factor: it is drawn without."""
        name = _latent(msg)
        estimator = enum() if msg["infer"].get("enumerate") == "parallel" else None
        point = is_delta(_innermost(d))
        value = _sample((name,), somewhere(d) if point else d, estimator)
        if msg["scale"] is None and not self.told:
            return value, None
        log_prob = _log_prob(d, value, name)
        if msg["scale"] is not None:
            self.factor(f"{name} (scale)", scaled(log_prob, msg["scale"]) - jnp.sum(log_prob))
        return value, log_prob

    def _auxiliary(self, msg: Message, d: Any) -> tuple[Any, jax.Array]:
        """Noise, and its log density. That of a flow is known from how it was drawn."""
        name = _latent(msg)
        if name in self.shared.latents:
            value = self.shared.latents[name]
            with marks.mark(marks.DENSITY):
                return value, jnp.sum(d.log_prob(value))
        if type(d) is not dist.TransformedDistribution:
            value = _sample((name,), d, role="hidden")
            return value, jnp.sum(_log_prob(d, value, name))
        value, steps = _sample((name,), d.base_dist, role="hidden"), []
        for transform in d.transforms:
            before = value
            value, step = transform.call_with_intermediates(before)
            steps.append([before, step])
        with marks.mark(marks.DENSITY):
            return value, jnp.sum(d.log_prob(value, steps))

    def _place(self, msg: Message, d: Any) -> Any:
        """A point that is a function of noise: the first one carries the density of the noise."""
        point = jnp.broadcast_to(_innermost(d).v, d.shape())
        total = scaled(d.log_prob(point), msg["scale"]) + sum(self._carried)
        self._carried = [jnp.zeros(())]
        role = "" if self.shared.latents else "carried"
        return _sample((_latent(msg),), Placed(point, total, point.ndim), role=role)

    def param(self, msg: Message) -> None:
        name, params = msg["name"], self.shared.params
        if name in params:
            value = jax.tree.map(jnp.asarray, params[name])  # numpyro changes the containers
            to = biject_to(constraint_of(msg)) if self.shared.unconstrained else lambda x: x
            msg["value"] = to(value)
        elif msg["value"] is None and (not msg["args"] or msg["args"][0] is None):
            raise UnsupportedError(
                f"the parameter {name!r} at {_jax.called_at()} has no value, and making one needs "
                "a random key. Type params = model.init(key, ...), with the arguments of the "
                "model, and give them: model(..., params=params)."
            )

    def plate(self, msg: Message) -> None:
        """The indices of a subsample are a choice, which a guide and a model share."""
        if msg["value"] is not None:
            return
        name, (size, m) = _latent(msg), msg["args"]
        if self._indices.get(name, (None,))[0] != (size, m):
            self._indices[name] = (size, m), _sample((name,), Subsample(size, m), role="optional")
        msg["value"] = self._indices[name][1]

    def prng_key(self, msg: Message) -> None:
        if msg["kwargs"]["rng_key"] is None:
            msg["value"] = _sample(("prng_key",), FreshKey(), role="hidden")

    def mutable(self, msg: Message) -> NoReturn:
        raise refuse_mutable(msg["name"])

    def control_flow(self, msg: Message) -> None:
        msg["value"] = self.flow(self, msg)

    # --- factors --------------------------------------------------------------------------------

    def factor(self, name: str, weight: Any) -> None:
        """A factor under a name that no other has."""
        n = self.shared.factors[name] = self.shared.factors.get(name, 0) + 1
        _factor((name if n == 1 else f"{name} ({n})",), weight)

    def _after_a_loop(self, msg: Message) -> None:
        """What handlers around a loop make of the density of a choice inside of it, or a factor."""
        seen, log_prob = msg["seen"], _masked(msg["fn"])
        counted = seen.static["counted"]
        if not counted and not self.told:
            self.factor(msg["name"], scaled(log_prob, msg["scale"]))
        elif counted and not (msg["scale"] is seen.scale and isinstance(msg["fn"], Known)):
            change = scaled(log_prob, msg["scale"]) - scaled(seen.log_prob, seen.scale)
            self.factor(f"{msg['name']} (after the loop)", change)
        self._see(msg, log_prob, counted=counted)

    @contextlib.contextmanager
    def branch(self) -> Iterator[None]:
        """For a branch, whose values stay in it."""
        before = self._indices, self._carried
        self._indices, self._carried = dict(self._indices), list(self._carried)
        seeds = [(h, h.rng_key) for h in self.around() if isinstance(h, handlers.seed)]
        yield
        self._indices, self._carried = before
        for seed, key in seeds:
            seed.rng_key = key

    @contextlib.contextmanager
    def alone(self, told: bool) -> Iterator[Bridge]:
        """A closed bridge, for the body of a loop."""
        inner = Bridge(self.shared, self.flow, closed=True, told=told)
        with inner:
            yield inner

    def around(self) -> Sequence[Any]:
        """The handlers between the statement and this bridge, innermost first."""
        return _PYRO_STACK[: _PYRO_STACK.index(self) : -1]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["log_prob", "scale", "value"],
    meta_fields=["static"],
)
@dataclasses.dataclass
class Seen:
    """A choice or factor of a loop's body: its log density (times a scale), and its value.

    ``static`` says whether it is ``counted`` where it stands, and has NumPyro's ``infer``.
    """

    log_prob: Any
    scale: Any
    value: Any
    static: dict[str, Any]


class Known(dist.Distribution):
    """Stands for distributions whose log densities are known already."""

    support = constraints.real  # type: ignore[assignment]
    pytree_data_fields = ("log_density",)

    def __init__(self, log_density: Any, event_shape: tuple[int, ...]) -> None:
        self.log_density = log_density
        super().__init__(jnp.shape(log_density), event_shape)

    def log_prob(self, value: Any) -> Any:
        return self.log_density


def _masked(d: Any) -> Any:
    """The log densities that the masks around a loop leave."""
    if isinstance(d, dist.MaskedDistribution):
        return jnp.where(d._mask, _masked(d.base_dist), 0.0)
    return d.log_prob(None)


def scaled(log_prob: Any, scale: Any) -> jax.Array:
    """The sum of log densities times a scale."""
    return jnp.sum(log_prob if scale is None else scale * log_prob)


def constraint_of(msg: Message) -> Any:
    """Where the values of a parameter are; everywhere for those of a network."""
    return msg["kwargs"].get("constraint", constraints.real)


def refuse_mutable(name: str) -> UnsupportedError:
    """The error of a statement that keeps state."""
    return UnsupportedError(
        f"the mutable statement {name!r} at {_jax.called_at()} keeps state between runs, and a "
        "program has none. Make the state an argument of the model, return its new value (it is "
        "trace.retval), and let the fit carry it: ppl.expectation(f, has_aux=True)."
    )


def _expanded(msg: Message) -> Any:
    d, shape = msg["fn"], msg["kwargs"].get("sample_shape", ())
    return d.expand((*shape, *d.batch_shape)) if shape else d


def _innermost(d: Any) -> Any:
    while isinstance(d, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        d = d.base_dist
    return d


def _latent(msg: Message) -> str:
    check_address(msg["name"])
    return msg["name"]


def _log_prob(d: Any, value: Any, name: str) -> Any:
    with marks.mark(marks.DENSITY):
        return inside.log_prob(d, jnp.asarray(value), (name,), _jax.called_at())


_STATEMENTS: dict[str, Callable[[Bridge, Message], None]] = {
    "sample": Bridge.sample,
    "param": Bridge.param,
    "plate": Bridge.plate,
    "prng_key": Bridge.prng_key,
    "mutable": Bridge.mutable,
    "control_flow": Bridge.control_flow,
}
