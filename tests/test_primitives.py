"""Every primitive of the installed JAX is in the table, or left out for a reason."""

from transforms import _jax
from transforms.analyses.primitives import OPAQUE, PRIMITIVES


def test_all_primitives_of_jax_are_known_or_left_out_for_a_reason():
    left_out = {name for names in OPAQUE.values() for name in names.split()}
    new = _jax.primitive_names() - PRIMITIVES.keys() - left_out
    assert not new, f"enter these in transforms/analyses/primitives.py: {sorted(new)}"
    assert not left_out & PRIMITIVES.keys()
