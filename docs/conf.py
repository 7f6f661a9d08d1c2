"""The documentation site: ``sphinx-build -W docs docs/_build``. It needs no network."""

from __future__ import annotations

import re
import shutil
import struct
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

highlight_language = "none"  # code blocks name theirs; the others are commands and output
html_theme = "furo"
html_title = f"noisin_pyro {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_math_renderer = "mathml"
pygments_dark_style = "github-dark"  # furo's own underlines every module's name like a link

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebooks are shown with the outputs they were committed with
nb_merge_streams = True  # what a cell prints is one block, not one for each print

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # types stand in the signatures of the source, shapes in the docstrings
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_param = False  # one line for "input_size, hidden_size, ...: as in torch.nn.LSTM"

# What docstrings refer to that is torch's or Pyro's: no inventory is downloaded to link to it.
nitpick_ignore_regex = [("py:.*", r"(torch|pyro|nn|dist)\..*")]


def gather(app: Any) -> None:
    """Copies what is documentation but lies elsewhere: notebooks, and the pages of results.

    What these link to in ``results/`` comes with them. The copies are ignored by git, and whatever
    the original no longer has is removed from them.
    """
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    pages = sorted((ROOT / "results").glob("*.md"))
    linked: list[str] = []
    for path in pages:
        linked += re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
    for path in notebooks:
        linked += re.findall(r"\]\(\.\./results/([^)#:]+)\)", path.read_text(encoding="utf-8"))
    records = {ROOT / "results" / link for link in linked if not link.startswith("..")}
    for name in ("notebooks", "results"):
        shutil.rmtree(HERE / name, ignore_errors=True)
    for path in {*notebooks, *pages, *filter(Path.is_file, records)}:
        copy = HERE / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)


# What latex2mathml writes as identifiers, which browsers set without the space around operators.
SIGNS = {"&#x0007E;": "&#x0223C;", ";": ";"}
FUNCTION = re.compile(r"(<mi>(?:log|exp|det)</mi>)(?!<mo[^>]*>(?:&#x00028;|\[))")


def mathml(display: str) -> Any:
    """Formulas as MathML, which browsers draw themselves: no page loads a script for them."""

    def visit(self: Any, node: nodes.Element) -> None:
        formula = convert(node.astext(), display=display)
        for sign, operator in SIGNS.items():
            formula = formula.replace(f"<mi>{sign}</mi>", f"<mo>{operator}</mo>")
        formula = FUNCTION.sub(r'\1<mspace width="0.17em"/>', formula)
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


def mark_wide_figures(app: Any, doctree: nodes.document) -> None:
    """A figure of several panels scrolls on a phone, where it would be too small to read."""
    for image in doctree.findall(nodes.image):
        path = Path(app.srcdir, image["uri"])
        if path.suffix == ".png" and path.is_file():
            width, height = struct.unpack(">II", path.read_bytes()[16:24])  # of the PNG header
            if width > 2 * height:
                image["classes"].append("wide")


def setup(app: Any) -> dict[str, bool]:
    app.connect("builder-inited", gather)
    app.connect("doctree-read", no_source_link, priority=400)  # before viewcode's own
    app.connect("doctree-read", mark_wide_figures)
    app.connect("missing-reference", find_name)
    app.add_html_math_renderer(
        "mathml", inline_renderers=(mathml("inline"), None), block_renderers=(mathml("block"), None)
    )
    return {"parallel_read_safe": True}
