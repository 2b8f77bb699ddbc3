"""Everything that touches ``jax.extend`` or has moved between JAX releases."""

from __future__ import annotations

import functools
import importlib.util
import pathlib
import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.core
import numpy as np
from jax.extend import source_info_util
from jax.extend.core import (
    ClosedJaxpr,
    Jaxpr,
    JaxprEqn,
    Literal,
    Primitive,
    Var,
    jaxpr_as_fun,
    jaxprs_in_params,
)
from jax.extend.core.primitives import (
    closed_call_p,
    cond_p,
    custom_jvp_call_p,
    custom_vjp_call_p,
    jit_p,
    remat_p,
    scan_p,
    while_p,
)
from jax.interpreters import ad, batching, mlir, partial_eval
from jaxlib import version as jaxlib_version

from .authors import PACKAGES, is_users

Tracer = jax.core.Tracer
ShapedArray = jax.core.ShapedArray

__all__ = [  # of JAX's
    "ClosedJaxpr",
    "Jaxpr",
    "JaxprEqn",
    "Literal",
    "Primitive",
    "ShapedArray",
    "Tracer",
    "Var",
    "closed_call_p",
    "cond_p",
    "custom_jvp_call_p",
    "custom_vjp_call_p",
    "jit_p",
    "remat_p",
    "scan_p",
    "while_p",
]


def warn_if_miscompiling(version: str) -> None:
    """Warn on jaxlib 0.10.2, which returns wrong sums on CPU (jax-ml/jax#39103)."""
    if version == "0.10.2":
        warnings.warn(
            "jaxlib 0.10.2 returns wrong sums on CPU above 32,768 elements "
            "(https://github.com/jax-ml/jax/issues/39103), so estimates and gradients may be "
            "silently wrong. Install another release: pip install 'jax!=0.10.2' 'jaxlib!=0.10.2'.",
            RuntimeWarning,
            stacklevel=3,
        )


warn_if_miscompiling(jaxlib_version.__version__)

for _package in PACKAGES:  # messages name the user's line, not ours
    source_info_util.register_exclusion(_package)
_numpyro = importlib.util.find_spec("numpyro")
if _numpyro is not None and _numpyro.origin is not None:  # nor numpyro's
    source_info_util.register_exclusion(str(pathlib.Path(_numpyro.origin).parent))


def user_line() -> str:
    """``file:line (function)`` of the user's code that is being traced."""
    found = _line(source_info_util.current())
    return found or called_at()  # jax.jit hides who called it


def line_of(eqn: JaxprEqn) -> str:
    """``file:line (function)`` of the user's code behind an equation."""
    return _line(eqn.source_info)


def called_at() -> str:
    """As :func:`user_line`, where libraries (other than JAX) stand between the user and us."""
    return _last(traceback.extract_stack())


def raised_at(error: BaseException) -> str:
    """``file:line (function)`` of the user's code in which an exception was raised."""
    return _last(traceback.extract_tb(error.__traceback__)) or user_line()


def definition(f: Any) -> str:
    """``name (file:line)`` of a function, or its name alone."""
    name = getattr(f, "__qualname__", repr(f)).split("<locals>.")[-1]
    code = getattr(f, "__code__", None)
    if code is None:
        return name
    return f"{name} ({_cell(f'{code.co_filename}:{code.co_firstlineno}')})"


def _last(frames: traceback.StackSummary) -> str:
    for f in reversed(frames):
        if is_users(f.filename):
            return _cell(f"{f.filename}:{f.lineno}:{f.colno or 0} ({f.name})")
    return ""


def _line(info: Any) -> str:
    return _cell(source_info_util.summarize(info))


def _cell(place: str) -> str:
    # a cell of a notebook is a file of a temporary name
    return re.sub(r"\S*ipykernel_\d+/\d+\.py:", "cell:", place)


def trace(f: Callable[..., Any], *args: Any) -> tuple[ClosedJaxpr, list[Any], Any]:
    """Trace ``f(*args)`` to a jaxpr whose first inputs are the values that ``f`` closes over.

    Returns the jaxpr (without constants), those values, and the output tree with shapes.
    """

    def fresh(*xs: Any) -> Any:  # jax.make_jaxpr caches on function identity
        return f(*xs)

    closed, out = jax.make_jaxpr(fresh, return_shape=True)(*args)
    return *close(closed), out


def traced(f: Callable[..., Any], *args: Any) -> ClosedJaxpr:
    """Trace ``f(*args)``, which closes over constants only."""
    return jax.make_jaxpr(lambda *xs: f(*xs))(*args)


def is_bare() -> bool:
    """Whether ``jax.disable_jit`` is in force."""
    return bool(jax.config.jax_disable_jit)  # type: ignore[attr-defined]


def close(closed: ClosedJaxpr) -> tuple[ClosedJaxpr, list[Any]]:
    """Turn the constants of a jaxpr into leading inputs; returns it with their values."""
    jaxpr, consts = closed.jaxpr, list(closed.consts)
    if not consts:
        return closed, []
    return open_jaxpr(jaxpr, [*jaxpr.constvars, *jaxpr.invars], jaxpr.outvars, jaxpr.eqns), consts


def open_jaxpr(
    like: Jaxpr, invars: Sequence[Var], outvars: Sequence[Any], eqns: Sequence[JaxprEqn]
) -> ClosedJaxpr:
    info = like.debug_info._replace(
        arg_names=("",) * len(invars), result_paths=("",) * len(outvars)
    )
    new = like.replace(
        constvars=[],
        invars=list(invars),
        outvars=list(outvars),
        eqns=list(eqns),
        debug_info=info,
    )
    return ClosedJaxpr(new, [])


def followed_by(
    closed: ClosedJaxpr, eqns: Sequence[JaxprEqn], variables: Sequence[Any], rest: ClosedJaxpr
) -> ClosedJaxpr:
    """Equations of a jaxpr, as they are, and then another one, of some of its variables."""
    jaxpr, more = closed.jaxpr, rest.jaxpr
    names = dict(zip(more.invars, variables, strict=True))
    name = lambda v: names.get(v, v) if isinstance(v, Var) else v
    renamed = [e.replace(invars=list(map(name, e.invars))) for e in more.eqns]
    info = jaxpr.debug_info._replace(
        arg_names=("",) * len(jaxpr.invars), result_paths=("",) * len(more.outvars)
    )
    new = jaxpr.replace(
        constvars=[*jaxpr.constvars, *more.constvars],
        eqns=[*eqns, *renamed],
        outvars=list(map(name, more.outvars)),
        effects=jaxpr.effects | more.effects,
        debug_info=info,
    )
    return ClosedJaxpr(new, [*closed.consts, *rest.consts])


def with_outputs(closed: ClosedJaxpr, outvars: Sequence[Any]) -> ClosedJaxpr:
    """A jaxpr that returns other variables of it."""
    info = closed.jaxpr.debug_info._replace(result_paths=("",) * len(outvars))
    return ClosedJaxpr(closed.jaxpr.replace(outvars=list(outvars), debug_info=info), closed.consts)


def evaluate(closed: ClosedJaxpr, *args: Any) -> list[Any]:
    """Evaluate a jaxpr as ordinary JAX code."""
    return jaxpr_as_fun(closed)(*args)


def with_operands_of(programs: Sequence[ClosedJaxpr], counts: Sequence[int]) -> list[ClosedJaxpr]:
    """Programs with leading operands of their own, made to take those of all of them."""
    out = []
    total = sum(counts)
    own = [a for p, n in zip(programs, counts, strict=True) for a in p.in_avals[:n]]
    for i, (p, n) in enumerate(zip(programs, counts, strict=True)):
        start = sum(counts[:i])

        def f(*xs: Any, p: Any = p, start: int = start, n: int = n) -> list[Any]:
            return evaluate(p, *xs[start : start + n], *xs[total:])

        avals = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in [*own, *p.in_avals[n:]]]
        out.append(trace(f, *avals)[0])
    return out


def live(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The program without what no output needs, such as the carry of a sum that is not read.

    Functions that are needed as a whole stay the same objects, which JAX differentiates once.
    """
    outs = [True] * len(closed.jaxpr.outvars)
    jaxpr = partial_eval.dce_jaxpr(closed.jaxpr, outs, instantiate=True)[0]
    functions = jit_p, custom_jvp_call_p
    before = {tuple(e.outvars): e for e in closed.jaxpr.eqns if e.primitive in functions}
    whole = lambda old, new: old is not None and old.invars == new.invars
    eqns = [old if whole(old := before.get(tuple(new.outvars)), new) else new for new in jaxpr.eqns]
    return ClosedJaxpr(jaxpr.replace(eqns=eqns), closed.consts)


def evaluate_equation(eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """Evaluate one equation as ordinary JAX code.

    Its constants in place of operands count, unless the operand varies between devices.
    """
    given = [
        v.val if isinstance(v, Literal) and not varying(jax.typeof(x)) else x
        for v, x in zip(eqn.invars, operands, strict=True)
    ]
    if is_plain(eqn):
        own = eqn.source_info
        stack = source_info_util.current_name_stack() + own.name_stack
        user = source_info_util.user_context(own.traceback, name_stack=stack)
        with jax.debug_nans(False), user, eqn.ctx.manager:
            out = eqn.primitive.bind(*given, **eqn.params)
        return list(out) if eqn.primitive.multiple_results else [out]
    if any(isinstance(v, Literal) for v in eqn.invars):
        same = lambda v, x: isinstance(v, Var) or x is v.val
        pairs = zip(eqn.invars, given, strict=True)
        eqn = eqn.replace(invars=[v if same(v, x) else _variable(v.aval) for v, x in pairs])
    env = {v: x for v, x in zip(eqn.invars, given, strict=True) if isinstance(v, Var)}
    return evaluate(open_jaxpr(_empty(), list(env), eqn.outvars, [eqn]), *env.values())


def is_plain(eqn: JaxprEqn) -> bool:
    """Whether an equation is an operation of JAX on some operands, which has a derivative, holds no
    program, and does nothing else."""
    p = eqn.primitive
    ours = isinstance(p, _Own) and p not in _FUNCTIONS
    known = p in ad.primitive_jvps and not ours and not eqn.effects
    return known and any(isinstance(v, Var) for v in eqn.invars) and not any(sub_jaxprs(eqn))


def is_differentiable(eqn: JaxprEqn) -> bool:
    """Whether an equation is plain, or a function with a derivative of its own."""
    ruled = eqn.primitive is custom_jvp_call_p and not eqn.effects
    return is_plain(eqn) or (ruled and any(isinstance(v, Var) for v in eqn.invars))


def operands_of(eqns: Sequence[JaxprEqn]) -> list[Var]:
    """The variables that equations read and do not make."""
    made = {v for eqn in eqns for v in eqn.outvars}
    read = (v for eqn in eqns for v in eqn.invars if isinstance(v, Var))
    return list(dict.fromkeys(v for v in read if v not in made))


def inline_call(eqns: Sequence[JaxprEqn]) -> JaxprEqn:
    """The call of a program of these equations, which returns the results of the last one, and is
    replaced by them where it is traced."""
    nowhere = source_info_util.new_source_info()
    own = [eqn.replace(source_info=nowhere) for eqn in eqns]
    operands = operands_of(own)
    program = open_jaxpr(_empty(), operands, own[-1].outvars, own)
    f = jax.jit(lambda *xs: evaluate(program, *xs))
    (call,) = jax.make_jaxpr(f)(*(v.aval for v in operands)).jaxpr.eqns
    return call.replace(params={**call.params, "jaxpr": program, "inline": True})


def _variable(aval: Any) -> Var:
    return jax.make_jaxpr(lambda x: x)(aval).jaxpr.invars[0]


def primitive_names() -> set[str]:
    """The names of the primitives that JAX can differentiate or map."""
    return {p.name for p in (*ad.primitive_jvps, *batching.fancy_primitive_batchers)}


def is_key(x: Any) -> bool:
    """Whether an array holds keys of random numbers."""
    if isinstance(x, np.ndarray):  # the check below is slow
        return False
    return isinstance(x, jax.Array) and jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)


@functools.cache
def _empty() -> Jaxpr:
    return jax.make_jaxpr(lambda: ())().jaxpr


# --- what is differentiated ---------------------------------------------------------------------


def perturbed(xs: Sequence[Any], report: Callable[[list[bool]], None]) -> jax.Array:
    """0; when it is differentiated, reports for each of ``xs`` whether it is."""

    @jax.custom_jvp
    def zero(xs: Sequence[Any]) -> jax.Array:
        return jax.numpy.zeros(())

    @functools.partial(zero.defjvp, symbolic_zeros=True)
    def _(primals: Any, tangents: Any) -> Any:
        symbolic = jax.custom_derivatives.SymbolicZero
        leaves = jax.tree.leaves(tangents[0], is_leaf=lambda t: isinstance(t, symbolic))
        report([not isinstance(t, symbolic) for t in leaves])
        return jax.numpy.zeros(()), jax.numpy.zeros(())

    return zero(list(xs))


def varying(aval: Any) -> frozenset[Any]:
    """The mesh axes along which a value varies, inside ``jax.shard_map``."""
    return aval.mat.varying if hasattr(aval, "mat") else getattr(aval, "vma", frozenset())


def sub_jaxprs(eqn: JaxprEqn) -> Iterator[ClosedJaxpr]:
    """The jaxprs among the parameters of an equation; constants are leading inputs."""
    for sub in jaxprs_in_params(eqn.params):
        if isinstance(sub, ClosedJaxpr):
            yield sub
        else:  # its constants are known to the equation only
            yield open_jaxpr(sub, [*sub.constvars, *sub.invars], sub.outvars, sub.eqns)


class _Own(Primitive):
    """A primitive of ours."""


_FUNCTIONS: dict[Primitive, Callable[..., Any]] = {}


def function_of(eqn: JaxprEqn) -> Callable[..., Any] | None:
    """What an equation of :func:`define_function` stands for."""
    f = _FUNCTIONS.get(eqn.primitive)
    return None if f is None else functools.partial(f, **eqn.params)


def holds(eqn: JaxprEqn, primitive: Primitive) -> bool:
    """Whether an equation is one of a primitive, or has one inside."""
    inside = (e for sub in sub_jaxprs(eqn) for e in sub.jaxpr.eqns)
    return eqn.primitive is primitive or any(holds(e, primitive) for e in inside)


def scan_layout(eqn: JaxprEqn) -> tuple[int, int]:
    """How many of the operands of a ``scan`` are constants, and how many its carry."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].unpack()  # since JAX 0.12
    return len(consts), len(carry)


def define_primitive(
    name: str,
    *,
    abstract: Callable[..., Any],
    batch: Callable[..., Any],
    refuse: Callable[..., Any],
    jvp: Callable[..., Any] | None = None,
) -> Primitive:
    """A primitive with several results that only an interpreter of ours can run.

    ``batch(axis_size, args, dims, **params)`` is called under every ``vmap``, mapped operands
    or not; ``refuse(**params)`` raises, and is called where the primitive reaches XLA.
    """
    p = _Own(name)
    p.multiple_results = True
    p.def_abstract_eval(abstract)

    @p.def_impl
    def _(*args: Any, **params: Any) -> Any:
        return refuse(**params)

    def lower(ctx: Any, *args: Any, **params: Any) -> Any:
        return refuse(**params)

    mlir.register_lowering(p, lower)
    if jvp is not None:
        differentiate(p, jvp)
    batching.fancy_primitive_batchers[p] = lambda axis, args, dims, **params: batch(
        axis.size, args, dims, **params
    )
    return p


def define_function(
    name: str,
    f: Callable[..., Any],
    *,
    abstract: Callable[..., Any],
    batch: Callable[..., Any],
) -> Primitive:
    """A primitive that stands for the function ``f(*operands, **params)``, a list of arrays."""
    p = _Own(name)
    p.multiple_results = True
    _FUNCTIONS[p] = f
    p.def_abstract_eval(abstract)
    p.def_impl(f)
    mlir.register_lowering(p, mlir.lower_fun(f, multiple_results=True))

    def jvp(primals: Any, tangents: Any, **params: Any) -> Any:
        zeros = [ad.instantiate_zeros(t) for t in tangents]
        return jax.jvp(lambda *xs: f(*xs, **params), tuple(primals), tuple(zeros))

    def batched(args: Any, dims: Any, **params: Any) -> Any:
        dims = [None if d is batching.not_mapped else d for d in dims]
        size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
        return batch(size, args, dims, **params)

    ad.primitive_jvps[p] = jvp
    batching.primitive_batchers[p] = batched
    return p


def differentiate(p: Primitive, jvp: Callable[..., Any]) -> None:
    """Differentiate ``p`` by ``jvp(primals, tangents, **params)``."""
    ad.primitive_jvps[p] = jvp


def wrap_batcher(p: Primitive, wrapper: Callable[..., Any]) -> None:
    """Batch ``p`` by ``wrapper(original, axis_size, args, dims, **params)``.

    ``original(args, dims, **params)`` is the rule that JAX has.
    """
    rule = batching.fancy_primitive_batchers[p]

    def wrapped(axis: Any, args: Any, dims: Any, **params: Any) -> Any:
        return wrapper(functools.partial(rule, axis), axis.size, args, dims, **params)

    batching.fancy_primitive_batchers[p] = wrapped


def nothing_instead_of(eqn: JaxprEqn) -> JaxprEqn:
    """An equation that reads and returns as much, and does nothing."""
    return _instead_of(eqn, lambda *operands: None)


def debug_instead_of(eqn: JaxprEqn) -> JaxprEqn:
    """A callback whose results nobody reads as ``jax.debug.callback``.

    JAX refuses an ``io_callback`` in a mapped branch and under ``jax.checkpoint``, and drops it in
    a ``scan`` that is differentiated.
    """
    if eqn.primitive.name != "io_callback":
        return eqn
    host, ordered = eqn.params["callback"], eqn.params["ordered"]

    def tell(*operands: Any) -> None:
        host(*operands)

    return _instead_of(eqn, lambda *xs: jax.debug.callback(tell, *xs, ordered=ordered))


def _instead_of(eqn: JaxprEqn, f: Callable[..., None]) -> JaxprEqn:
    avals, zeros = (
        [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in vs]  # type: ignore[attr-defined]
        for vs in (eqn.invars, eqn.outvars)
    )

    @jax.jit
    def other(*operands: Any) -> list[Any]:
        f(*operands)
        return [jax.numpy.zeros(z.shape, z.dtype) for z in zeros]

    (new,) = jax.make_jaxpr(other)(*avals).jaxpr.eqns
    return new.replace(invars=eqn.invars, outvars=eqn.outvars, source_info=eqn.source_info)


def with_equations(closed: ClosedJaxpr, eqns: Sequence[JaxprEqn]) -> ClosedJaxpr:
    """The same jaxpr with other equations."""
    return ClosedJaxpr(closed.jaxpr.replace(eqns=list(eqns)), closed.consts)
