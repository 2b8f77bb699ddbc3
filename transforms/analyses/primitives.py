"""What the analyses know of JAX's primitives: one record each.

A primitive that is not in the table is taken to mix all that it is given, and not to be linear;
what is left out of it on purpose is in :data:`OPAQUE`, with the reason. A test walks the primitives
of the installed JAX, and says which are new.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from .. import _jax

To = Callable[[int], "int | None"]
"""From an axis of an operand to the axis of the results that runs along with it, or None."""
Rule = Callable[[Any, Any, Any], list[To]]
"""From the shapes of the operands, the shape of the (first) result, and the parameters."""


def _equal(shape: Sequence[int], out: Sequence[int]) -> To:
    return lambda a: a if shape[a] == out[a] else None  # an axis of size 1 may be broadcast


def _before(n: int) -> To:
    return lambda a: a if a < n else None


def _nowhere(axis: int) -> None:
    return None


def mixing(shapes: Any, out: Any, p: Any) -> list[To]:
    """No axis of an operand stays."""
    return [_nowhere] * len(shapes)


@dataclasses.dataclass(frozen=True)
class Primitive:
    """What there is to know of a primitive, for all analyses."""

    axes: Rule = mixing
    """Which axes of its operands are axes of its results."""
    follows: bool = False
    """An axis of a result is the same where those are that run along with it."""
    shrinks: bool = False
    """It can be done with operands of size 1 along an axis, and so are its results then."""

    linear: bool = False
    """In each of its operands by itself."""
    jointly: bool = False
    """In all of its operands together."""
    counts: bool = False
    """A sum of integers is the same with floating point numbers in it."""

    moves: bool = False
    """The numbers of its results are those of its operands, elsewhere."""
    skips: bool = False
    """It does not read all of what it is given, or not into each of its results."""
    data: tuple[int | None, int | None] = None, None
    """From which of its operands to which are no indices, and no predicates."""

    sign: Literal["", "positive", "never negative"] = ""
    """Of its results, whatever its operands are."""
    keeps_sign: bool = False
    """Its results are positive, or never negative, if its operands are."""

    jumps: bool = False
    """Its value does, somewhere."""
    kinks: bool = False
    """Its derivative does."""
    cut: bool = False
    """It has a branch cut along the negative numbers."""
    signs: bool = False
    """Its vectors have signs, which are the solver's choice."""

    chooses: bool = False
    """Its result says how something is computed, and not what."""

    random: bool = False
    heavy: bool = False
    """It costs more than the numbers that it returns."""


UNKNOWN = Primitive()
PRIMITIVES: dict[str, Primitive] = {}


def register(names: str, **known: Any) -> None:
    """Enter what is known of primitives, by their names with spaces between."""
    for name in names.split():
        PRIMITIVES[name] = dataclasses.replace(PRIMITIVES.get(name, UNKNOWN), **known)


def of(eqn: _jax.JaxprEqn) -> Primitive:
    """What is known of the primitive of an equation."""
    return named(eqn.primitive.name)


def named(name: str) -> Primitive:
    return PRIMITIVES.get(name, UNKNOWN)


def data(eqn: _jax.JaxprEqn) -> slice:
    """Which operands of an equation are no indices, and no predicates."""
    return slice(*of(eqn).data)


def is_identity(eqn: _jax.JaxprEqn) -> bool:
    """Whether its results are its operands, each by itself."""
    known = of(eqn)
    return known.moves and known.axes is elementwise and not known.skips


def keeps_all(eqn: _jax.JaxprEqn) -> bool:
    """Whether the results are the numbers of the one operand, all of them, elsewhere."""
    known = of(eqn)
    return known.moves and not known.skips and len(eqn.invars) == 1


def is_foreign(name: str) -> bool:
    """Whether this is neither JAX's nor registered."""
    return name not in PRIMITIVES and name not in _LEFT_OUT


def axes_of(eqn: _jax.JaxprEqn) -> list[To]:
    """For each operand, which axis of the results runs along with an axis of it."""
    shapes = [v.aval.shape for v in eqn.invars]  # type: ignore[attr-defined]
    out = eqn.outvars[0].aval.shape  # type: ignore[attr-defined]
    return of(eqn).axes(shapes, out, eqn.params)


def register_primitive(
    name: str,
    *,
    axes: Rule | Literal["elementwise"] = mixing,
    linear: bool = False,
    jumps: bool = False,
    kinks: bool = False,
) -> None:
    """Say what a JAX primitive of your own does, once, before programs with it are run.

    Gradients are right without: a primitive that nobody has registered is taken to mix all the
    numbers that it is given, and its derivative rule is compared with its values. What is
    registered makes estimates sharper, and is believed.

    Args:
        name: that of the primitive.
        axes: which axes of its operands are axes of its result. ``"elementwise"``: an element is
            made of the elements at the same place. Else a function of the shapes of the operands
            ``[(n, d), ...]``, the shape of the result and the parameters, which returns a function
            for each operand: from an axis of it to the axis of the result, or None.
        linear: in all of its operands together; it has a transpose rule.
        jumps: its value jumps somewhere, so that a pathwise gradient is biased.
        kinks: its derivative does.

    Example:
        >>> ppl.register_primitive("my_step", axes="elementwise", jumps=True)
        >>> rows = lambda shapes, out, p: [{0: 0}.get]
        >>> ppl.register_primitive("my_rowsum", axes=rows, linear=True)
    """
    rule = elementwise if axes == "elementwise" else axes
    register(name, axes=rule, shrinks=axes == "elementwise")
    register(name, linear=linear, jointly=linear, jumps=jumps, kinks=kinks)


# --- rules ----------------------------------------------------------------------------------------


def elementwise(shapes: Any, out: Any, p: Any) -> list[To]:
    """Of operands of the shape of the result."""
    return [_equal(shape, out) if len(shape) == len(out) else _nowhere for shape in shapes]


def reducing(shapes: Any, out: Any, p: Any) -> list[To]:
    kept = [a for a in range(len(shapes[0])) if a not in p["axes"]]
    return [_pairs(list(zip(kept, range(len(kept)), strict=True)))] * len(shapes)


def _cumulative(shapes: Any, out: Any, p: Any) -> list[To]:
    return [_but(p["axis"])]


def _matrix(shapes: Any, out: Any, p: Any) -> list[To]:
    """Of the last two axes."""
    return [_before(len(shape) - 2) for shape in shapes]


def _pairs(pairs: Sequence[tuple[int, int]]) -> To:
    return dict(pairs).get


def _broadcast(shapes: Any, out: Any, p: Any) -> list[To]:
    (shape, *sizes) = shapes
    dims = enumerate(p["broadcast_dimensions"])
    return [_pairs([(a, d) for a, d in dims if shape[a] == out[d]]), *[_nowhere] * len(sizes)]


def _reshape(shapes: Any, out: Any, p: Any) -> list[To]:
    if p["dimensions"] is not None:
        return [_nowhere] * len(shapes)
    before = {(int(np.prod(out[:b])), n): b for b, n in enumerate(out) if n != 1}
    shape = shapes[0]
    pairs = [(a, before.get((int(np.prod(shape[:a])), n))) for a, n in enumerate(shape) if n != 1]
    return [_pairs([(a, b) for a, b in pairs if b is not None]), *[_nowhere] * (len(shapes) - 1)]


def _squeeze(shapes: Any, out: Any, p: Any) -> list[To]:
    kept = [a for a in range(len(shapes[0])) if a not in p["dimensions"]]
    return [_pairs(list(zip(kept, range(len(kept)), strict=True)))]


def _kept_where_whole(shapes: Any, out: Any, p: Any) -> list[To]:
    whole = [(a, a) for a, n in enumerate(shapes[0]) if n == out[a]]
    return [_pairs(whole), *[_nowhere] * (len(shapes) - 1)]


def _update(shapes: Any, out: Any, p: Any) -> list[To]:
    whole = _pairs([(a, a) for a, n in enumerate(shapes[1]) if n == out[a]])
    return [whole, whole, *[_nowhere] * (len(shapes) - 2)]


def _but(dimension: int) -> To:
    return lambda a: None if a == dimension else a


def _dot(shapes: Any, out: Any, p: Any) -> list[To]:
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = p["dimension_numbers"]
    n = len(lhs_batch)
    lhs_free = [a for a in range(len(shapes[0])) if a not in (*lhs_contract, *lhs_batch)]
    rhs_free = [a for a in range(len(shapes[1])) if a not in (*rhs_contract, *rhs_batch)]
    lhs = [
        *((a, i) for i, a in enumerate(lhs_batch)),
        *((a, n + i) for i, a in enumerate(lhs_free)),
    ]
    m = n + len(lhs_free)
    rhs = [
        *((a, i) for i, a in enumerate(rhs_batch)),
        *((a, m + i) for i, a in enumerate(rhs_free)),
    ]
    return [_pairs(lhs), _pairs(rhs)]


def _gather(shapes: Any, out: Any, p: Any) -> list[To]:
    numbers, sizes = p["dimension_numbers"], p["slice_sizes"]
    shape = shapes[0]
    batch_out = [a for a in range(len(out)) if a not in numbers.offset_dims]
    batching = tuple(numbers.operand_batching_dims)
    free = [a for a in range(len(shape)) if a not in (*numbers.collapsed_slice_dims, *batching)]
    operand = [
        (a, o) for a, o in zip(free, numbers.offset_dims, strict=True) if sizes[a] == shape[a]
    ]
    operand += [
        (a, batch_out[i])
        for a, i in zip(batching, numbers.start_indices_batching_dims, strict=True)
    ]
    return [_pairs(operand), _pairs(list(enumerate(batch_out)))]


def _convolution(shapes: Any, out: Any, p: Any) -> list[To]:
    numbers = p["dimension_numbers"]
    batch = [(numbers.lhs_spec[0], numbers.out_spec[0])] if p["batch_group_count"] == 1 else []
    return [_pairs(batch), _nowhere]


def _pad(shapes: Any, out: Any, p: Any) -> list[To]:
    kept = [(a, a) for a, c in enumerate(p["padding_config"]) if tuple(c) == (0, 0, 0)]
    return [_pairs(kept), _nowhere]


def _scatter(shapes: Any, out: Any, p: Any) -> list[To]:
    """The axes of what is written that are as long as those they are written to."""
    n, (operand, _, updates) = p["dimension_numbers"], shapes
    batching = dict(zip(n.scatter_indices_batching_dims, n.operand_batching_dims, strict=True))
    pointed = (*n.inserted_window_dims, *n.operand_batching_dims)
    window = zip(
        n.update_window_dims, (a for a in range(len(out)) if a not in pointed), strict=True
    )
    whole = [(u, a) for u, a in window if updates[u] == operand[a]]
    at = [u for u in range(len(updates)) if u not in n.update_window_dims]
    kept = [*(a for _, a in whole), *batching.values()]
    written = [*whole, *((at[i], a) for i, a in batching.items())]
    return [_pairs([(a, a) for a in kept]), _pairs(list(batching.items())), _pairs(written)]


def _tile(shapes: Any, out: Any, p: Any) -> list[To]:
    more = len(out) - len(shapes[0])
    reps = [1] * (len(shapes[0]) - len(p["reps"])) + list(p["reps"])[-len(shapes[0]) :]
    return [_pairs([(a, a + more) for a, n in enumerate(reps) if n == 1])]


def _unstack(shapes: Any, out: Any, p: Any) -> list[To]:
    return [lambda a: None if a == p["axis"] else a - (a > p["axis"])]


# --- the table ------------------------------------------------------------------------------------

register(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt "
    "ceil clamp clz complex conj convert_element_type copy copy_p cos cosh digamma div eq erf "
    "erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag integer_pow "
    "is_finite le lgamma log log1p logistic lt max min mul name ne neg nextafter not or "
    "polygamma population_count pow random_gamma_grad real reduce_precision "
    "regularized_incomplete_beta rem round rsqrt select_n shift_left shift_right_arithmetic "
    "shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor zeta",
    axes=elementwise,
    shrinks=True,
)
register(
    "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin",
    axes=reducing,
    follows=True,
    shrinks=True,
)
register("cumsum cumprod cummax cummin cumlogsumexp", axes=_cumulative)
register("cholesky triangular_solve eigh lu qr svd", axes=_matrix)
register("broadcast_in_dim", axes=_broadcast)
register("reshape", axes=_reshape)
register("squeeze", axes=_squeeze)
register(
    "transpose",
    axes=lambda shapes, out, p: [_pairs([(a, i) for i, a in enumerate(p["permutation"])])],
)
register("rev", axes=lambda shapes, out, p: [lambda a: None if a in p["dimensions"] else a])
register("slice dynamic_slice", axes=_kept_where_whole)
register("dynamic_update_slice", axes=_update)
register("concatenate sort", axes=lambda shapes, out, p: [_but(p["dimension"])] * len(shapes))
register("split", axes=lambda shapes, out, p: [_but(p["axis"])])
register("top_k", axes=lambda shapes, out, p: [_but(p.get("axis", -1) % len(shapes[0]))])
register("dot_general", axes=_dot)
register("gather", axes=_gather)
register("conv_general_dilated", axes=_convolution)
register("pad", axes=_pad)
register("stack", axes=lambda shapes, out, p: [lambda a: a + (a >= p["axis"])] * len(shapes))
register("unstack", axes=_unstack)
register("tile", axes=_tile)
register("scatter scatter-add scatter-sub scatter-mul scatter-min scatter-max", axes=_scatter)

register(
    "add add_any broadcast_in_dim concatenate convert_element_type copy cumsum name neg pad "
    "reduce_sum reshape rev slice squeeze stack sub transpose",
    linear=True,
    jointly=True,
)
register(
    "mul div dot_general dynamic_slice gather scatter scatter-add select_n stop_gradient "
    "dynamic_update_slice real split unstack tile conv_general_dilated reduce_window_sum "
    "copy_p optimization_barrier",
    linear=True,
)
register("floor ceil round sign rem atan2", jumps=True)
register(
    "abs max min reduce_max reduce_min clamp sort cummax cummin reduce_window_max "
    "reduce_window_min top_k sqrt",
    kinks=True,
)

register("times times_exp", axes=elementwise)
register("squeeze transpose gather dot_general concatenate pad", follows=True, shrinks=True)
register("broadcast_in_dim", shrinks=True)
register("reshape slice", follows=True)
register(
    "broadcast_in_dim concatenate copy copy_p dynamic_slice dynamic_update_slice expand_dims "
    "gather name optimization_barrier pad reshape rev select_n slice split squeeze stack "
    "stop_gradient tile transpose unstack",
    moves=True,
)
register("dynamic_slice dynamic_update_slice gather pad select_n slice split unstack", skips=True)
register("select_n", data=(1, None))
register("gather dynamic_slice", data=(0, 1))
register("dynamic_update_slice", data=(0, 2))
register(
    "add sub neg mul reduce_sum convert_element_type reshape squeeze broadcast_in_dim transpose "
    "rev slice concatenate cumsum dot_general dynamic_slice dynamic_update_slice gather pad "
    "select_n",
    counts=True,
)
register("exp exp2 logistic", sign="positive")
register("abs sqrt square", sign="never negative")
register(
    "convert_element_type cumsum div log1p min mul real reduce_max reduce_min reduce_prod "
    "reduce_sum rsqrt",
    keeps_sign=True,
)
register("log log1p sqrt rsqrt pow acosh asinh atanh acos asin atan", cut=True)
register("eigh svd qr geqrf householder_product eig schur", signs=True)
register("cholesky eigh svd sort lu qr triangular_solve", heavy=True)
register("random_bits random_gamma rng_bit_generator rng_uniform threefry2x32", random=True)

OPAQUE = {
    "holds a program: program/interpret.py runs or refuses it": """
        call call_hi_primitive call_hi_primitive_linearized composite cond custom_lin
        custom_linear_solve custom_vmap_call eval_jaxpr jit linear_call reduce remat2 remat_opt
        run_state scan stage while dce_sink compute_on fused_call mpmd_map pallas_call
        xla_metadata_call""",
    "ours": "continued expect factor inside sample unknown_density",
    "tells the host, or is computed there": """
        check debug_callback debug_print inspect_sharding io_callback pure_callback ffi_call
        log_extend log_read new_log buffer_callback tpu_custom_call""",
    "between devices": """
        all_gather all_gather_invariant all_gather_reduced all_to_all axis_index pbroadcast pmax
        pmin ppermute precv preduced psend psum psum_invariant pvary ragged_all_to_all
        reduce_scatter reduced_vary_cast_p reshard unreduced_psum unreduced_reduce_scatter
        vary_unreduced_cast_p device_put sharding_constraint layout_constraint
        global_array_to_host_local_array host_local_array_to_global_array shard_alike""",
    "a memory that is written to": """
        accum_grad_in_ref addupdate box_get box_set empty_ref free_ref freeze get new_box new_ref
        swap tie masked_load masked_swap""",
    "keys": """
        random_clone random_fold_in random_seed random_split random_unwrap random_wrap from_edtype
        to_edtype""",
    "sparse matrices": """
        bcoo_dot_general bcoo_dot_general_sampled bcoo_extract bcoo_fromdense bcoo_sort_indices
        bcoo_spdot_general bcoo_sum_duplicates bcoo_todense bcoo_transpose bcsr_dot_general
        bcsr_extract bcsr_fromdense bcsr_todense coo_fromdense coo_matmat coo_matvec coo_todense
        csr_fromdense csr_matmat csr_matvec csr_todense spsolve todense""",
    "factors of matrices, of which programs hold few": """
        geqp3 hessenberg lu_pivots_to_permutation ormqr
        symmetric_product tridiagonal tridiagonal_solve""",
    "whole layers of networks": """
        dot_product_attention_bwd_wrapper dot_product_attention_fp8_bwd_wrapper
        dot_product_attention_fp8_fwd_wrapper dot_product_attention_fwd_wrapper
        ragged_dot_general scaled_dot scaled_matmul scaled_matmul_wrapper""",
    "all of an axis, or a window of it, meets": """
        approx_top_k fft reduce_window select_and_gather_add select_and_scatter_add""",
    "no arithmetic that programs are written in": """
        bitcast_convert_type empty eq_to le_to lt_to add_dependency assert_consumed_value consume
        fusible xla_metadata_value""",
}
"""Primitives of JAX that the table leaves out, and why."""

_LEFT_OUT = frozenset(name for names in OPAQUE.values() for name in names.split())
