"""The project's own rules: layering, public surface, one file for jax.extend, miscompilation."""

import ast
import pathlib
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
from transforms import _jax

ROOT = pathlib.Path(ppl.__file__).parent.parent
MAY_IMPORT = {
    "transforms": {"transforms"},
    "estimators": {"estimators", "transforms"},
    "ppl": {"ppl", "estimators", "transforms"},
}


def modules(package):
    return sorted((ROOT / package).rglob("*.py"))


def imports(path):
    """Absolute names of the modules that a file imports."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield from ([name] if node.module else [f"{name}.{a.name}" for a in node.names])


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_dependencies_point_one_way(package):
    for path in modules(package):
        for name in imports(path):
            top = name.split(".")[0]
            if top in MAY_IMPORT:
                assert top in MAY_IMPORT[package], f"{path} imports {name}"


def test_no_private_jax_and_one_file_for_jax_extend():
    for package in MAY_IMPORT:
        for path in modules(package):
            names = list(imports(path))
            assert not [n for n in names if n.startswith("jax") and "._" in n], path
            extending = [n for n in names if n.startswith(("jax.extend", "jax.interpreters"))]
            assert not extending or path.name == "_jax.py", path


def test_the_core_imports_no_plotting_and_no_demo():
    for package in MAY_IMPORT:
        for path in modules(package):
            if "demo" in path.parts:
                continue
            for name in imports(path):
                assert name.split(".")[0] not in {"matplotlib", "sklearn", "IPython"}, path
                assert not name.startswith("ppl.demo"), path


def test_no_file_is_too_long():
    for package in MAY_IMPORT:
        for path in modules(package):
            assert len(path.read_text().splitlines()) <= 600, path


def test_public_names_exist_and_are_documented():
    assert sorted(ppl.__all__) == list(ppl.__all__)
    for name in set(ppl.__all__) - {"dist"}:
        assert getattr(ppl, name).__doc__, name


def test_a_foreign_transforms_module_is_named(tmp_path):
    (tmp_path / "transforms.py").write_text("")
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(ROOT)!r}); import ppl"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": "", "PYTHONPATH": ""},
    )
    assert run.returncode != 0
    assert str(tmp_path / "transforms.py") in run.stderr
    assert "Rename that file" in run.stderr


def test_the_release_that_miscompiles_is_announced():
    with pytest.warns(RuntimeWarning, match=r"pip install 'jax!=0\.10\.2'"):
        _jax.warn_if_miscompiling("0.10.2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _jax.warn_if_miscompiling("0.10.1")


def test_canary_sums_of_more_than_32768_elements():
    """jaxlib 0.10.2 fails this (jax-ml/jax#39103), and nothing else that we would notice."""
    w = jnp.arange(9.0).reshape(3, 3)

    def f(key):
        x = jax.random.normal(key, (3,))
        return (w @ x) * jnp.sum(x)

    keys = jax.random.split(jax.random.key(0), 40_000)
    g = jax.jit(jax.vmap(f))
    whole = g(keys)
    parts = [g(keys[i : i + 1000]) for i in range(0, 40_000, 1000)]
    np.testing.assert_allclose(whole, np.concatenate(parts), rtol=1e-4, atol=1e-4)
