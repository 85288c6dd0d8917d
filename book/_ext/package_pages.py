"""Two directives that put the package on the book's pages, read from its files without importing it.

    ```{code-room} parallel        every source file of a folder, in full, each under a heading
    :first: world collectives      the files to begin with
    ```

    ```{diagram-boxes}             each box of the diagrams, and a link to its code
    ```

A file is linked to as `[linear.py](#parallel/linear.py)`.
"""
import ast
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective

PACKAGE = Path(__file__).resolve().parents[2] / "tpgpt2_ref"
LANGUAGES = {".py": "python", ".cu": "cuda", ".cuh": "cuda", ".h": "cuda"}


class CodeRoom(SphinxDirective):
    required_arguments = 1
    option_spec = {"first": directives.unchanged}

    def run(self):
        folder = PACKAGE / self.arguments[0]
        first = self.options.get("first", "").split()
        files = {f.stem: f for f in sorted(folder.iterdir()) if f.suffix in LANGUAGES}
        order = [*first, *(stem for stem in files if stem not in first)]
        return [self.section(files[stem]) for stem in order if files[stem].read_text().strip()]

    def section(self, file):
        name, text = str(file.relative_to(PACKAGE)), file.read_text()
        self.env.note_dependency(str(file))
        code = nodes.literal_block(text, text, language=LANGUAGES[file.suffix])
        section = nodes.section("", nodes.title(name, name), code, ids=[nodes.make_id(name)], names=[name])
        self.state.document.note_explicit_target(section)
        return section


class DiagramBoxes(SphinxDirective):
    def run(self):
        file = PACKAGE / "pictures" / "diagrams.py"
        self.env.note_dependency(str(file))
        [value] = [n.value for n in ast.parse(file.read_text()).body if isinstance(n, ast.AnnAssign)]
        tables = ast.literal_eval(value)
        return [part for diagram, boxes in tables.items() for part in (nodes.rubric(diagram, diagram), table(boxes))]


def table(boxes: dict[str, str]) -> nodes.table:
    body = nodes.tbody("", *(row([nodes.Text(box)], [*link(target)]) for box, target in boxes.items()))
    group = nodes.tgroup("", nodes.colspec(colwidth=50), nodes.colspec(colwidth=50), body, cols=2)
    return nodes.table("", group, classes=["diagram-boxes"])


def row(*cells) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", *cell)) for cell in cells))


def link(target: str):
    """module:attribute -> the attribute, and its file as a link to the file's page."""
    module, _, attribute = target.partition(":")
    path = module.replace(".", "/")
    path = f"{path}/__init__.py" if (PACKAGE / path).is_dir() else f"{path}.py"
    text = nodes.inline("", path)
    yield nodes.literal(attribute, attribute)
    yield nodes.Text(" in ")
    yield addnodes.pending_xref("", text, refdomain="std", reftype="ref", reftarget=path, refexplicit=True,
                                refwarn=True)


def setup(app):
    app.add_directive("code-room", CodeRoom)
    app.add_directive("diagram-boxes", DiagramBoxes)
    return {"version": "1", "parallel_read_safe": True}
