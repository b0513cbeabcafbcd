"""The site: `make docs`. The pages are Markdown, those with code cells run while it is built."""

from __future__ import annotations

import os
import re
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

HERE = Path(__file__).parent

project = "brenier"
author = "The brenier authors"
project_copyright = author
version = release = installed("brenier")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "images"]
templates_path = ["_templates"]

# Pages

myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
LINKS = {
    "../CONTRIBUTING.md": "contributing.md",
    "../CHANGELOG.md": "changelog.md",
    "CHANGELOG.md": "changelog.md",
    "../src/brenier/callbacks.py": "brenier.callbacks.Event",
}
"""Where a link of the repository that leaves `docs` leads on the site."""

# Cells: few cores, no screen, and programs compiled once for all builds. A warning in a page is an
# error of the build, like every other one.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(HERE / "_build" / "jax"))
os.environ["MATPLOTLIBRC"] = str(HERE / "matplotlibrc")
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_output_stderr = "remove-warn"

# Reference

autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = False
default_role = "literal"  # docstrings write code as Markdown does
nitpicky = True
nitpick_ignore_regex = [
    # Types of other packages, whose inventories would have to be downloaded.
    (r"py:.*", r"(?!brenier\.).*"),
    # Types that signatures have to name and users never do.
    (
        r"py:.*",
        r"brenier\.(coordinates|solution|methods\.\w+)\.(\w*State|Metadata|Frame|FramedPotential|PairCoordinates)",
    ),
]

# Looks

html_theme = "furo"
html_title = f"brenier {version}"
html_static_path = ["_static"]
html_css_files = ["brenier.css"]
html_show_sphinx = False
html_copy_source = False
html_math_renderer = "mathml"
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#0063a3",
        "color-brand-content": "#0063a3",
        "code-font-size": "0.78rem",
    },
    "dark_css_variables": {"color-brand-primary": "#6fbcf0", "color-brand-content": "#6fbcf0"},
}
copybutton_exclude = ".linenos, .gp"
linkcheck_anchors = False  # pages that build themselves in the browser have none to find


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _follow_links)
    app.connect("include-read", lambda app, path, page, source: _follow_links(app, page, source))
    app.connect("autodoc-process-docstring", _set_formulas, priority=400)  # before napoleon
    # MathML is drawn by the browser itself: no script, no network.
    app.add_html_math_renderer("mathml", (_inline_math, None), (_block_math, None))


def _follow_links(app: Any, page: str, source: list[str]) -> None:
    for there, here in LINKS.items():
        source[0] = source[0].replace(f"]({there})", f"]({here})")


def _set_formulas(app: Any, what: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
    """An indented paragraph that belongs to no section of a docstring is a formula: keep its lines."""
    indented = [line.startswith("    ") for line in lines]
    for i in range(len(lines) - 1, 1, -1):
        if indented[i] and not lines[i - 1].strip():
            before = next((j for j in range(i - 1, -1, -1) if lines[j].strip()), None)
            if before is not None and not indented[before]:
                lines[i:i] = [".. code-block:: text", ""]


def _inline_math(translator: Any, node: nodes.math) -> None:
    translator.body.append(_mathml(node, block=False))
    raise nodes.SkipNode


def _block_math(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{_mathml(node, block=True)}</div>\n')
    raise nodes.SkipNode


def _mathml(node: nodes.Element, *, block: bool) -> str:
    # TeX's ½, `tfrac12`, takes two digits without braces; docutils would read a twelve.
    formula = re.sub(r"\\([td]?frac)(\d)(\d)", r"\\\1{\2}{\3}", node.astext())
    try:
        found = tex2mathml(formula, as_block=block)
        # A bar is a fence here, never a relation: no space around it, and as tall as the text.
        return re.sub(
            r"<mo[^>]*>\|</mo>", '<mo stretchy="false" lspace="0" rspace="0">|</mo>', found
        )
    except MathError as error:
        logging.getLogger(__name__).warning("formula: %s", error, location=node)
        return f"<code>{node.astext()}</code>"
