"""The directive `code-room`: every Python file of a folder of the package, in full, each under a heading.

    ```{code-room} parallel
    :first: world collectives
    ```

`:first:` names the files to begin with. A file is linked to as `[linear.py](#parallel/linear.py)`.
"""
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

PACKAGE = Path(__file__).resolve().parents[2] / "tpgpt2_ref"


class CodeRoom(SphinxDirective):
    required_arguments = 1
    option_spec = {"first": directives.unchanged}

    def run(self):
        folder = PACKAGE / self.arguments[0]
        first = self.options.get("first", "").split()
        rest = sorted({f.stem for f in folder.glob("*.py")} - set(first))
        files = [folder / f"{stem}.py" for stem in first + rest]
        return [self.section(file) for file in files if file.read_text().strip()]

    def section(self, file):
        name, text = str(file.relative_to(PACKAGE)), file.read_text()
        self.env.note_dependency(str(file))
        code = nodes.literal_block(text, text, language="python")
        section = nodes.section("", nodes.title(name, name), code, ids=[nodes.make_id(name)], names=[name])
        self.state.document.note_explicit_target(section)
        return section


def setup(app):
    app.add_directive("code-room", CodeRoom)
    return {"version": "1", "parallel_read_safe": True}
