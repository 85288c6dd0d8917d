"""Explorers on the built pages: a directive, and the script, data and style of the pages that have one.

    ```{explorer} heads
    {"tp": 4}                     what it starts with, if anything
    ```

In a notebook `explorer("heads", tp=4)` of `tpgpt2_ref.course` leaves the same element among its outputs. Script and
data are made at build time from the package and the recorded runs; only pages that hold an explorer load them.
"""
import json
import sys
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tpgpt2_ref.explorers import script, static  # noqa: E402  this checkout's, whatever is installed

MADE = {"tpgpt2-data.js": script.data_script, "tpgpt2.js": script.script, "tpgpt2.css": script.style}


class ExplorerDirective(SphinxDirective):
    required_arguments = 1
    has_content = True

    def run(self):
        initial = json.loads("\n".join(self.content) or "{}")
        return [nodes.raw("", static.html(self.arguments[0], initial), format="html")]


def write(app):
    """Make the files in a folder of the build that Sphinx copies to _static."""
    folder = Path(app.doctreedir).resolve().parent / "explorers"
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in MADE.items():
        (folder / name).write_text(make())
    app.config.html_static_path.append(str(folder))


def load(app, pagename, templatename, context, doctree):
    if "data-explorer=" in context.get("body", ""):
        app.add_css_file("tpgpt2.css")
        app.add_js_file("tpgpt2-data.js", loading_method="defer")
        app.add_js_file("tpgpt2.js", loading_method="defer")


def setup(app):
    app.add_directive("explorer", ExplorerDirective)
    app.connect("builder-inited", write)
    app.connect("html-page-context", load)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
