"""Learners' copies of the chapters: outputs removed, a few definitions to be written, the checks that say when they are right.

A cell tagged `exercise:NAME` in a chapter loses the body of that function or Class.method; cells tagged `check:NAME` say when it is right.
exercises.yaml has a hint for each and, where the chapter shows more than it asserts, a check of its own.
"""
from __future__ import annotations

import ast, os, re
from pathlib import Path

import nbformat
import yaml
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from groot_cookbook.chapters import ROOT, Chapter, chapters
from groot_cookbook.core import STAGES, CookbookError

EXERCISES = yaml.safe_load((Path(__file__).parent / "exercises.yaml").read_text(encoding="utf-8"))     # chapter -> NAME -> hint, check
UNWRITTEN = "yours to write"


def book() -> list[Chapter]: return [c for c in chapters() if c.name in STAGES]


def tagged(cell: NotebookNode, kind: str) -> list[str]:
    "Which definitions a cell is an `exercise` or a `check` of."
    return [t.removeprefix(f"{kind}:") for t in cell.metadata.get("tags", []) if t.startswith(f"{kind}:")]


def definition(source: str, name: str) -> ast.FunctionDef:
    "Where a cell defines a function, or a Class.method."
    inside = ast.parse(source).body
    for part in name.split("."):
        node = next((n for n in inside if getattr(n, "name", None) == part), None)
        if node is None: raise CookbookError(f"tagged as an exercise, but defines no {name}", source.strip().splitlines()[0], "Mend the tag, or the name")
        inside = node.body
    return node


def blank(source: str, name: str) -> str:
    "The cell with the body of one definition gone: signature, docstring and all that stands beside it stay."
    node = definition(source, name)
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    lines, first, last = source.encode().splitlines(), body[0], body[-1]              # ast counts bytes
    before, after = lines[first.lineno - 1][:first.col_offset], lines[last.end_lineno - 1][last.end_col_offset:]
    todo = f'raise NotImplementedError("{UNWRITTEN}: {name}")'.encode()
    return b"\n".join([*lines[:first.lineno - 1], before + todo + after, *lines[last.end_lineno:]]).decode()


def the_books(module: str, name: str) -> str:
    "The line that takes the library's definition in place of one's own."
    if "." not in name: return f"from groot_cookbook.{module} import {name}"
    return f"import groot_cookbook.{module} as book; {name} = book.{name}"


def copy(chapter: Chapter, to: Path, run: str) -> NotebookNode:
    "A chapter with its outputs removed and its exercises to be written; links lead to the notebooks that are not copied."
    nb, cells, asked = nbformat.read(chapter.path, 4), [], EXERCISES[chapter.name]
    module = next(m[1] for c in nb.cells if (m := re.match(r"#\| default_exp (\w+)", c.source)))
    own_check = lambda name, c: [new_code_cell(f"# check of {name}\n{asked[name]['check']}".rstrip(), id=f"{c.id}-own", metadata={"tags": [f"check:{name}"]})] if asked[name].get("check") else []
    elsewhere = lambda m: m[0] if m[1] in STAGES else f"]({os.path.relpath(chapter.path.parent / m[1], to)}.ipynb)"
    checked = {name for c in nb.cells for name in tagged(c, "check")}
    for c in nb.cells:
        if c.source.startswith("#| default_exp"): continue
        before, after, names = [], [], tagged(c, "exercise")
        if c.cell_type == "markdown": c.source = re.sub(r"\]\((?!http)([\w/]+)\.ipynb\)", elsewhere, c.source)
        else:
            c.outputs, c.execution_count = [], None
            c.source = re.sub(r"^#\| exporti?\n", "", c.source)
            if "parameters" in c.metadata.get("tags", []): c.source = re.sub(r'(?m)^run = "[^"]*"', lambda m: f'run = "{run}"', c.source)
        for name in names:
            c.source = blank(c.source, name)
            before.append(new_markdown_cell(f"**Yours to write: `{name}`.** {asked[name]['hint']}", id=f"{c.id}-ask"))
            after.append(new_code_cell(f"# Stuck, or out of time? Take the book's and go on:\n# {the_books(module, name)}", id=f"{c.id}-book", metadata={"tags": [f"book:{name}"]}))
            if name not in checked: after += own_check(name, c)
        for name in tagged(c, "check"):
            c.source = f"# check of {name}\n{c.source}"
            after += own_check(name, c)
        cells += [*before, c, *after]
    nb.cells = cells
    return nb


def write(to: Path, run: Path) -> list[Path]:
    "The ten copies, which read and write the folder `run`."
    named = run.resolve().relative_to(ROOT).as_posix() if run.resolve().is_relative_to(ROOT) else str(run.resolve())
    to.mkdir(parents=True)
    for chapter in book(): nbformat.write(copy(chapter, to, named), to / chapter.path.name)
    return sorted(to.glob("*.ipynb"))
