"""Pages that are made of something else: the reference, the errors, the notebooks."""

import inspect
import pathlib
import re

import ppl

DOCS = pathlib.Path(__file__).parent.parent
ROOT = DOCS.parent
GROUPS = {
    "programs": "Programs, marginals and posteriors",
    "objectives": "Objectives",
    "estimators": "Estimators",
    "guides": "Guides",
    "fitting": "Fits",
    "inference": "Posteriors and diagnostics",
    "imports": "NumPyro",
    "errors": "Errors and warnings",
    "checker": "Soundness",
}
"""Titles, by the folder in which a name is defined. A folder that is not here gets its own name."""
PAGE = """\
# {title}

```{{eval-rst}}
.. currentmodule:: {module}

.. auto{kind}:: {name}{options}
```
"""


def group(name):
    """The folder of ``ppl`` in which a public name is defined."""
    path = (inspect.getmodule(getattr(ppl, name)) or ppl).__name__.split(".")
    if path[0] == "transforms":
        return {"estimation": "estimators"}.get(path[1], path[1])
    return path[0] if path[0] == "estimators" else path[1]


def reference(folder):
    """A page for each public name, and one that lists them."""
    groups = {folder: [] for folder in GROUPS}
    for name in sorted(set(ppl.__all__) - {"dist"}, key=str.lower):
        if inspect.ismodule(getattr(ppl, name)):
            continue
        groups.setdefault(group(name), []).append(name)
    entries = {title(g): [("ppl", n) for n in names] for g, names in groups.items() if names}
    for module in ("guides", "plots"):
        within = getattr(ppl, module)
        names = [n for n, o in vars(within).items() if public(within, n, o)]
        entries[f"ppl.{module}"] = [(f"ppl.{module}", n) for n in names]
    lines = ["# Reference", "", "Every public name, by what it is for.", ""]
    lines += [
        "`ppl.dist` is `numpyro.distributions`, as it is. All examples share these names:",
        "",
    ]
    lines += ["```{literalinclude} ../../tests/reading/docstrings.py", ":language: python"]
    lines += [':start-after: \'first page of the reference."""\'', "```", ""]
    for heading, names in entries.items():
        lines += [f"## {heading}", "", "| | |", "|---|---|"]
        for module, name in names:
            lines.append(f"| [{module}.{name}]({module}.{name}.md) | {first(module, name)} |")
            write(folder / f"{module}.{name}.md", entry(module, name))
        lines.append("")
    pages = sorted((f"{m}.{n}" for names in entries.values() for m, n in names), key=str.lower)
    lines += ["```{toctree}", ":hidden:", ":maxdepth: 1", "", *pages, "```"]
    write(folder / "index.md", "\n".join(lines) + "\n")


def title(folder):
    return GROUPS.get(folder, folder.capitalize())


def public(module, name, value):
    own = inspect.isfunction(value) and value.__module__.startswith(module.__name__)
    return own and not name.startswith("_")


def find(module, name):
    return getattr(ppl if module == "ppl" else getattr(ppl, module.split(".")[1]), name)


def first(module, name):
    """The first sentence of a docstring, in Markdown."""
    text = " ".join((inspect.getdoc(find(module, name)) or "").split("\n\n")[0].split())
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text).replace("``", "`")
    return re.split(r"(?<=[^.]\w\.) ", text)[0].replace("|", r"\|").replace("*", r"\*")


def entry(module, name):
    value = find(module, name)
    kind = "class" if inspect.isclass(value) else "function"
    options = ""
    if kind == "class" and issubclass(value, BaseException):
        kind, options = "exception", "\n   :no-members:"
    elif kind == "class":
        options = "\n   :members:\n   :inherited-members: object, ABC, Generic, Mapping"
    title = f"{module}.{name}"
    return PAGE.format(title=title, module=module, kind=kind, name=name, options=options)


def errors(file):
    """The messages that the tests hold, by the kind of error."""
    table = (ROOT / "tests/messages/messages.md").read_text()
    _, *entries = re.split(r"\n(?=\*\*[^*\n]+\*\*: `)", table)
    kinds = {}
    for text in entries:
        parts = re.fullmatch(r"\*\*(.*)\*\*: `(\w+)`\n\n> (.*)\n*", text, re.S)
        what, kind, message = parts.groups()
        kinds.setdefault(kind, []).append((what, message))
    lines = [
        "# Errors",
        "",
        "Every message of the library, as its tests hold it: what is wrong, at which of your",
        "lines, why, and what to type instead. `example.py:1` stands for the line at fault,",
        "`example.py:_` for another one. Errors of JAX, numpyro or Python stand here with the note",
        "that is added.",
        "",
    ]
    for kind, messages in sorted(kinds.items(), key=lambda k: (k[0] not in ppl.__all__, k[0])):
        lines += [f"## {kind}", ""]
        if kind in ppl.__all__:
            lines += [f"{first('ppl', kind)} [Reference](reference/ppl.{kind}.md).", ""]
        for what, message in messages:
            lines += [f"{what}", ":::{code-block} text", ":class: message", message, ":::", ""]
    write(file, "\n".join(lines))


def notebooks(folder):
    """Copies beside the pages, so that the links between them hold."""
    folder.mkdir(exist_ok=True)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        write(folder / path.name, path.read_text().replace("../docs/", "../"))


WRITTEN = set()


def write(path, text):
    """If it is another text, so that a second build reads only what has changed."""
    WRITTEN.add(path)
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def make(app):
    reference(DOCS / "reference")
    errors(DOCS / "errors.md")
    notebooks(DOCS / "notebooks")
    for path in {*(DOCS / "reference").iterdir(), *(DOCS / "notebooks").iterdir()} - WRITTEN:
        path.unlink()  # of an earlier build


def resolve(app, env, node, contnode):
    """A name of the inside, like ``ppl.fitting.fit.Fit``, is that of the outside, ``ppl.Fit``."""
    name = node.get("reftarget", "").rpartition(".")[2]
    if node.get("refdomain") != "py" or name not in ppl.__all__:
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], f"ppl.{name}", node, contnode
    )


MARKUP = re.compile(
    r"``.*?``|:[\w:]+:`[^`]*`|`[^`]*`"  # literals and roles
    r"|(?<![\w*])\*\w[\w ]*\*(?![\w*])"  # emphasis
    r"|(?m:^ *(?:>>>|\.\.\.).*$)",  # examples
    re.S,
)


def plain(app, what, name, obj, options, lines):
    """Stars and bars of a docstring are themselves: products, absolute values, ``*args``."""
    text, out, at = "\n".join(lines), [], 0
    for markup in MARKUP.finditer(text):
        out += [re.sub(r"([*|])", r"\\\1", text[at : markup.start()]), markup[0]]
        at = markup.end()
    out.append(re.sub(r"([*|])", r"\\\1", text[at:]))
    lines[:] = "".join(out).split("\n")


def setup(app):
    app.connect("builder-inited", make)
    app.connect("autodoc-process-docstring", plain, priority=400)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
