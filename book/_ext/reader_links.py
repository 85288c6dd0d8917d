"""Links that lead somewhere in JupyterLab and in the built page alike, and pictures on pages without a kernel.

    [linear.py](../tpgpt2_ref/parallel/linear.py)    in JupyterLab the file; here its heading on its code page
    <a href="ledger.md#claim-27">                    in a stored output: the page that is made of that file

    ```{diagram} 2                                   what `tpgpt2_ref.course.diagram(2)` shows in a notebook
    ```
    ```{picture} book-map
    ```

The package is imported without torch, and the palette becomes `_static/palette.css`.
"""
import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

PACKAGE = Path(__file__).resolve().parents[2] / "tpgpt2_ref"
HREF = re.compile(r' (?:xlink:)?href="(?!https?:|data:|#)([^"#]+\.(?:py|md|ipynb))(#[^"]*)?"(?: target="_blank")?')
SOURCES = (".py", ".cu", ".cuh", ".h")
logger = logging.getLogger(__name__)


def ours():
    """The package, from this checkout."""
    if str(PACKAGE.parent) not in sys.path:
        sys.path.insert(0, str(PACKAGE.parent))
    from tpgpt2_ref import pictures
    from tpgpt2_ref.notebook import palette

    return pictures, palette


def in_package(target: str) -> str:
    """`../tpgpt2_ref/parallel/linear.py` -> `parallel/linear.py`; "" for any other target."""
    _, found, path = target.partition("tpgpt2_ref/")
    return path if found and path.endswith(SOURCES) and (PACKAGE / path).is_file() else ""


class FileLinks(SphinxTransform):
    """A link to a file of the package becomes one to its heading on its code page."""

    default_priority = 200

    def apply(self):
        for node in list(self.document.findall(addnodes.download_reference)):
            if path := in_package(node["reftarget"]):
                inside = nodes.inline("", "", *(child.deepcopy() for child in node.children))
                node.replace_self(addnodes.pending_xref(
                    "", inside, refdomain="std", reftype="ref", reftarget=path.lower(), refexplicit=True, refwarn=True,
                    refdoc=self.env.docname))


class Shown(SphinxDirective):
    """A picture of the course on a page without a kernel; the directive's name is the function's."""

    required_arguments = 1

    def run(self):
        pictures, _ = ours()
        for file in (PACKAGE / "pictures").glob("*.py"):
            self.env.note_dependency(str(file))
        return [nodes.raw("", getattr(pictures, self.name)(self.arguments[0]).html, format="html")]


def lead_here(app, doctree, docname):
    """Rewrite the links of stored HTML: files of the package and of the book become the pages made of them."""
    labels, builder = app.env.get_domain("std").anonlabels, app.builder

    def page(match):
        target, place = match[1], match[2] or ""
        if path := in_package(target):
            if path not in labels:
                logger.warning("%s has no code page", path, location=docname)
                return ""
            name, place = labels[path][0], "#" + labels[path][1]
        else:
            name = target.rpartition(".")[0]
            if name not in app.env.found_docs:
                return ""  # a page that the book does not have: plain words
        return f' href="{builder.get_relative_uri(docname, name)}{place}"'

    for node in doctree.findall(nodes.raw):
        if node.get("format") == "html" and "<a " in node.astext():
            [text] = node.children
            node[0] = nodes.Text(HREF.sub(page, text.astext()))


def write_palette(app):
    """One palette for figures, pictures and pages."""
    _, palette = ours()
    static = Path(app.outdir) / "_static"
    static.mkdir(parents=True, exist_ok=True)
    (static / "palette.css").write_text(palette.css())


def without_thebe(app, pagename, templatename, context, doctree):
    """No page starts a kernel: what sphinx-thebe, which jupyter-book always loads, adds to each page is left out."""
    context["script_files"][:] = [script for script in context["script_files"]
                                  if "thebe" not in f"{script} {getattr(script, 'attributes', '')}".lower()]


def roles(app, pagename, templatename, context, doctree):
    """What a screen reader needs and theme and docutils leave out: names for the arrows that unfold the contents at the
    side, and no list without items around the references."""
    if "body" in context:
        context["body"] = context["body"].replace('role="list" class="citation-list"', 'class="citation-list"')
    if made := context.get("generate_toctree_html"):
        context["generate_toctree_html"] = lambda *args, **kwargs: str(made(*args, **kwargs)).replace(
            "<summary>", '<summary aria-label="the pages below">')


def setup(app):
    app.add_transform(FileLinks)
    app.add_directive("diagram", Shown)
    app.add_directive("picture", Shown)
    app.add_css_file("palette.css", priority=400)
    app.connect("builder-inited", write_palette)
    app.connect("doctree-resolved", lead_here)
    app.connect("html-page-context", without_thebe, priority=900)
    app.connect("html-page-context", roles, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
