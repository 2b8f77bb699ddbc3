"""The snippets of the README and the docs run, and the notebooks execute."""

import ast
import pathlib
import re
import sys
import types

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import pytest

mpl.use("agg")

ROOT = pathlib.Path(__file__).parents[2]
MADE = {"reference", "notebooks"}  # when the site is built, of the code and of what follows here
GALLERY = {p for p in (ROOT / "docs/gallery").glob("*.md") if p.stem != "index"}  # test_gallery.py
DOCS = sorted(p for p in {*(ROOT / "docs").rglob("*.md")} - GALLERY if not MADE & set(p.parts))
PAGES = ["README.md", *(str(p.relative_to(ROOT)) for p in DOCS)]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def snippets(page):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)


@pytest.mark.parametrize("page", [p for p in PAGES if snippets(p)])
def test_snippets_run(page, tmp_path):
    scope = {"__name__": "snippet"}
    for i, code in enumerate(snippets(page)):
        path = tmp_path / f"snippet{i}.py"
        path.write_text(code)
        exec(compile(code, str(path), "exec"), scope)


def test_the_readme_opens_as_it_should():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert lines[0].startswith("# ")
    assert sum(line.startswith("- ") for line in lines[:20]) <= 8
    assert any(line.startswith("```python") for line in lines[:20])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_run(path, tmp_path, monkeypatch):
    """In this process, which has imported and compiled much already; what cells show is drawn."""
    notebook = nbformat.read(path, as_version=4)
    assert any(cell.get("outputs") for cell in notebook.cells), "commit the notebook with outputs"
    module = types.ModuleType("cells")  # where classes of the cells are looked up
    monkeypatch.setitem(sys.modules, module.__name__, module)
    scope = vars(module)
    for i, cell in enumerate(c for c in notebook.cells if c.cell_type == "code"):
        file = tmp_path / f"cell{i}.py"
        file.write_text(cell.source)
        tree = ast.parse(cell.source, str(file))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, str(file), "exec"), scope)
        if last is not None:
            shown = eval(compile(ast.Expression(last.value), str(file), "eval"), scope)
            getattr(shown, "_repr_html_", shown.__repr__)()
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
        plt.close("all")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_pictures_of_notebooks_have_alternative_text(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if any("image/png" in o.get("data", {}) for o in cell.get("outputs", ())):
            assert len(cell.metadata["mystnb"]["image"]["alt"]) > 40, cell.source


def test_pages_of_estimators_and_objectives_say_it_all():
    for page in (
        *(ROOT / "docs/estimators").glob("*.md"),
        *(ROOT / "docs/objectives").glob("*.md"),
    ):
        text = page.read_text()
        for part in ("# `ppl.", "$$", "**Conditions**", "**Cost**", "**Source**", "```python"):
            assert part in text, f"{page.name} lacks {part}"
