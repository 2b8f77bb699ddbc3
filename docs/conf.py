"""The site: `bash .ci/site` builds it. Nothing is fetched when it is read, mathematics included."""

import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

project = "ppl"
author = "the authors of programmable-vi"
copyright = author
html_title = "Programmable VI"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "myst_nb",
    "mathml",  # _ext/: TeX becomes MathML, which browsers draw by themselves
    "pages",  # _ext/: the pages that are made of the code, its messages and the notebooks
]
exclude_patterns = ["_ext"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests execute the notebooks; here their outputs are shown
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(jax|jaxlib|numpy|np|numpyro|optax|dist|collections|typing|abc|os)(\..*)?"),
    ("py:.*", r"(transforms|estimators|ppl\.(?!guides\.\w+$|plots)\w+|types)\..*"),  # the inside
    ("py:.*", r"[A-Z]\w*|(?=.*[ ]|\d).*"),  # beside it, in its own module; prose in "Returns"
]

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autosummary_ignore_module_all = False
napoleon_use_ivar = True

html_theme = "pydata_sphinx_theme"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_context = {"default_mode": "auto"}
ALONE = """coming-from guides fitting-and-posteriors numpyro soundness errors limits design
    benchmarks"""
html_sidebars = {page: [] for page in ALONE.split()}  # no pages below them
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": [],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
