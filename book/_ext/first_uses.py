"""The first use of each glossary term on a page links to its definition and shows it: on hover, and on keyboard focus.

Authors write plain words. A term is found as a whole word, with or without an s; one with a capital in it only as it is
written. A word that also means something else is told by the words around it (`meant`). Headings, code, formulas,
links, captions and outputs of cells are left alone.
"""
import re

from docutils import nodes
from sphinx import addnodes

GLOSSARY = "glossary"
LEFT_ALONE = (nodes.title, nodes.literal, nodes.literal_block, nodes.reference, nodes.math, nodes.math_block, nodes.raw,
              nodes.caption, nodes.rubric, nodes.target, nodes.term, nodes.thead, nodes.citation, nodes.strong,
              addnodes.pending_xref, addnodes.download_reference)

CAPABILITY = "compute capability"
OTHERWISE = {  # term: what stands around the word where it means something else: before it, after it
    "kernel": (re.compile(r"(?:Jupyter|IPython|Linux|notebook|environment's|need no|without a|speed the) $"),
               re.compile(r" that shapes")),
    "rank": (None, re.compile(r" (?:them|it|by|these|those)\b")),
}
ONLY = {"page": re.compile(r" (?:table|size|of (?:\d|the cache|memory))")}  # term: what must follow the word


def meant(term: str, said: str, start: int, end: int) -> str | None:
    """The term that a found word means, by the words around it; None: none of the glossary's."""
    before, after = said[:start].replace("\n", " "), said[end:].replace("\n", " ")
    if term == "SM" and re.match(r"\s(?:\d|capability)", after):
        return CAPABILITY
    if term in ONLY and not ONLY[term].match(after):
        return None
    left, right = OTHERWISE.get(term, (None, None))
    return None if left and left.search(before) or right and right.match(after) else term


def definitions(env) -> dict[str, tuple[str, str]]:
    """{term: (its id, its definition in plain words)}, read from the glossary page once a build."""
    if not hasattr(env, "glossary_terms"):
        found = {}
        for item in env.get_doctree(GLOSSARY).findall(nodes.definition_list_item):
            said = " ".join(part.astext().replace("\n", " ") for part in item.findall(nodes.definition))
            for term in item.findall(nodes.term):
                found[term.astext().strip()] = (term["ids"][0], said)
        env.glossary_terms = found
    return env.glossary_terms


def pattern(terms) -> re.Pattern:
    """Any term as a whole word, the longest first; a group for those whose case matters, and one for the others."""
    longest = sorted(terms, key=len, reverse=True)
    exact, loose = ("|".join(re.escape(t) for t in longest if (t != t.lower()) == cased) or "(?!)"
                    for cased in (True, False))
    return re.compile(rf"(?<![\w/.-])(?:({exact})|((?i:{loose})))(?:s|es)?(?![\w/-]|\.\w)")


def mark(app, doctree, docname):
    env = app.env
    if GLOSSARY not in env.found_docs or docname == GLOSSARY or docname.startswith("code"):
        return
    terms = definitions(env)
    left, names = dict(terms), {t.lower(): t for t in terms}
    find = pattern(terms)
    for text in list(doctree.findall(nodes.Text)):
        if not left or alone(text):
            continue
        new, end = [], 0
        said = text.astext()
        for match in find.finditer(said):
            term = match[1] or names[match[2].lower()]
            term = meant(term, said, match.start(), match.end())
            if term not in left:
                continue
            place, meaning = left.pop(term)
            link = nodes.reference("", "", nodes.Text(match[0]), internal=True, classes=["glossary-term"],
                                   refuri=f"{app.builder.get_relative_uri(docname, GLOSSARY)}#{place}",
                                   reftitle=meaning)
            new += [nodes.Text(said[end : match.start()]), link]
            end = match.end()
        if new:
            text.parent.replace(text, [*new, nodes.Text(said[end:])])


def alone(node) -> bool:
    """Whether this text stands where nothing is marked."""
    node = node.parent
    while node is not None:
        if isinstance(node, LEFT_ALONE) or "cell_output" in node.get("classes", ()):
            return True
        node = node.parent
    return False


def forget(app, env, docnames):
    """A build reads the glossary anew."""
    if hasattr(env, "glossary_terms"):
        del env.glossary_terms


def setup(app):
    app.connect("env-before-read-docs", forget)
    app.connect("doctree-resolved", mark, priority=800)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
