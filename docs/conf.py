"""The documentation site: ``sphinx-build -W docs docs/_build``. It needs no network."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx import addnodes

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

sys.path.insert(0, str(ROOT))
import noisin_pyro  # noqa: E402

project = "noisin_pyro"
author = "the authors of noisin_pyro"
version = release = noisin_pyro.__version__
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "jupyter_execute", ".jupyter_cache"]  # the last two are myst-nb's
default_role = "code"
nitpicky = True

html_theme = "furo"
html_title = f"noisin_pyro {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_math_renderer = "mathml"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebooks are shown with the outputs they were committed with

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # types stand in the signatures of the source, shapes in the docstrings
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_param = False  # one line for "input_size, hidden_size, ...: as in torch.nn.LSTM"

# What docstrings refer to that is torch's or Pyro's: no inventory is downloaded to link to it.
nitpick_ignore_regex = [("py:.*", r"(torch|pyro|nn|dist)\..*")]


def gather(app: Any) -> None:
    """Copies what is documentation but lies elsewhere: notebooks, and the account of the results.

    The copies are ignored by git. Whatever of them the original no longer has is removed.
    """
    for name, patterns in {
        "notebooks": ["*.ipynb"],
        "results": ["*.md", "*.png", "*.json"],
    }.items():
        source, copy = ROOT / name, HERE / name
        files = {path.relative_to(source) for pattern in patterns for path in source.rglob(pattern)}
        if name == "results":
            text = (source / "README.md").read_text(encoding="utf-8")
            linked = re.findall(r"\]\(([^)#:]+)\)", text)
            files = {path for path in files if str(path) in (*linked, "README.md")}
        shutil.rmtree(copy, ignore_errors=True)
        for file in sorted(files):
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / file, copy / file)


def mathml(display: str) -> Any:
    """Formulas as MathML, which browsers draw themselves: no page loads a script for them."""

    def visit(self: Any, node: nodes.Element) -> None:
        formula = convert(node.astext(), display=display)
        self.body.append(f'<div class="math">{formula}</div>' if display == "block" else formula)
        raise nodes.SkipNode

    return visit


def find_name(app: Any, environment: Any, node: Any, content: Any) -> Any:
    """Resolves a docstring's plain ``:class:`NoisyLSTM` `` wherever the docstring stands."""
    python, page = environment.domains["py"], node["refdoc"]
    ending = f".{node.get('reftarget', '')}"
    public = f"noisin_pyro{ending}"
    matches = [name for name in python.objects if name.endswith(ending)]
    matches = [public] if public in matches else matches  # the other is where it is defined
    if len(matches) != 1:
        return None
    return python.resolve_xref(environment, page, app.builder, "obj", matches[0], node, content)


def no_source_link(app: Any, doctree: nodes.document) -> None:
    """viewcode has one prefix for all names of a module, which is that of the public ones."""
    for signature in doctree.findall(addnodes.desc_signature):
        if signature.get("fullname", "").split(".")[0].endswith("Objective"):
            signature["module"] = None


def setup(app: Any) -> dict[str, bool]:
    app.connect("builder-inited", gather)
    app.connect("doctree-read", no_source_link, priority=400)  # before viewcode's own
    app.connect("missing-reference", find_name)
    app.add_html_math_renderer(
        "mathml", inline_renderers=(mathml("inline"), None), block_renderers=(mathml("block"), None)
    )
    return {"parallel_read_safe": True}
