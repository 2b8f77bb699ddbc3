"""What is expected of an equation that may jump: to be told before anything is evaluated.

- A *smooth* equation belongs to a function that is known to be continuous, to a density, or to
  what the user states; it has no fault.
- A *suspect* one may jump there all the same: in a derivative, since a kink of a function is a
  jump of its derivative; in a function that jumps for some of its arguments; within numpyro where
  no density is computed; at a pole. It has a fault if an evaluation shows a jump (``continuity``).
- Any other one has a fault unless an evaluation shows that there is no jump.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import authors
from ..analyses import primitives
from ..program import marks
from ..program.flat import Op

SMOOTH, SUSPECT, JUMP = "smooth", "suspect", "jump"

_ANALYTIC_NAMES = """
gelu silu swish softplus squareplus mish log_sigmoid glu softmax log_softmax logsumexp logmeanexp
standardize logaddexp logaddexp2 ndtr log_ndtr ndtri erfinv xlogy xlog1py entr rel_entr kl_div
betaln gammaln hypot sinc logit det inv solve lu_solve expm cosine_similarity logcosh
"""
_KINKED_NAMES = """
relu relu6 leaky_relu elu celu selu hard_tanh hard_sigmoid hard_silu sparse_plus sparse_sigmoid
clip median nanmedian huber_loss
"""
_JUMPING_NAMES = """
interp _interp quantile nanquantile percentile nanpercentile lstsq pinv slogdet norm nan_to_num
"""
_ANALYTIC = frozenset(_ANALYTIC_NAMES.split())
"""Functions of jax and optax that have derivatives of every order, though they are made of
comparisons or stopped gradients. The list saves time only: ``continuity.py`` finds them so too."""
_KINKED = frozenset(_KINKED_NAMES.split())
"""As those, but their derivatives jump."""
_JUMPING = frozenset(_JUMPING_NAMES.split())
"""Continuous for most arguments."""
_SOLVER, _SOLVER_NAME = "experimental/ode.py", "_odeint"
"""What chooses its steps by comparisons; what it is given to solve is the user's."""
_SAMPLERS = {"sample", "rsample", "sample_with_intermediates"}
_STATEMENTS = {"primitives", "handlers"}
"""Modules of numpyro that a statement of a model runs through, to what is done with it."""
_DENSITIES = {"log_prob", "log_abs_det_jacobian", "_validate_sample"}


def of(op: Op) -> str:
    """Smooth, suspect, or to be taken for a jump."""
    if _is_of_solver(op):
        return SMOOTH
    called = list(authors.frames(op.origin))
    numpyro = [c for c in called if c.library == "numpyro" and c.module not in _STATEMENTS]
    if marks.is_smooth(op.stack):
        users = not any(c.library in ("numpyro", "ppl") for c in called)
        return _of_marked(op.stack, numpyro, users)
    differentiated = marks.is_differentiated(op.stack)
    names = {*op.within, *(c.name for c in called)}
    if names & _ANALYTIC:
        return SMOOTH
    if numpyro:
        sampler = any(c.name in _SAMPLERS for c in numpyro)
        return JUMP if sampler else _of_numpyro(numpyro, differentiated)
    if names & _KINKED:
        return SUSPECT if differentiated else SMOOTH
    return SUSPECT if names & _JUMPING else JUMP


def _is_of_solver(op: Op) -> bool:
    if not any(name.startswith(_SOLVER_NAME) for name in op.within):
        return False
    inside = op.caller is not None and not op.within[-1].startswith(_SOLVER_NAME)
    return authors.is_within(op.caller if inside else op.eqn, _SOLVER)  # type: ignore[arg-type]


def _of_marked(stack: str, numpyro: list[authors.Called], users: bool) -> str:
    differentiated = marks.is_differentiated_outside(stack)
    if not marks.is_density(stack):
        return SUSPECT if differentiated else SMOOTH
    if users:
        return SUSPECT
    return _of_numpyro(numpyro, True) if differentiated and numpyro else SMOOTH


def _of_numpyro(called: list[authors.Called], differentiated: bool) -> str:
    guards = any(c.name == "_validate_sample" or c.module == "constraints" for c in called)
    densities = any(c.name in _DENSITIES for c in called)
    return SMOOTH if (guards if differentiated else densities) else SUSPECT


def is_cut(op: Op) -> bool:
    """Whether an equation has a branch cut along the negative numbers."""
    aval: Any = op.eqn.outvars[0].aval
    return primitives.of(op.eqn).cut and jnp.issubdtype(aval.dtype, jnp.complexfloating)


# --- poles --------------------------------------------------------------------------------------


def pole(op: Op) -> int | None:
    """The operand of a smooth equation at whose zeros its result may jump."""
    name, p = op.name, op.eqn.params
    if name == "div":
        v = op.ins[1]
    elif name in ("tan", "rsqrt", "pow") or (name == "integer_pow" and p["y"] < 0):
        v = op.ins[0]
    else:
        return None
    if name == "pow" and (isinstance(op.ins[1], int) or np.all(np.asarray(op.ins[1].val) >= 0)):
        return None
    return v if isinstance(v, int) else None
