"The mechanical part of the house style, for every notebook; the rest is in CONTRIBUTING.md."
import ast, json, re
from pathlib import Path

import nbformat
import pytest

from groot_cookbook import chapters

NBS = Path(chapters.ROOT) / "nbs"
ALL = sorted(p for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
CHAPTERS = [p for p in ALL if p.parent == NBS and re.match(r"\d\d_", p.name)]         # 01a_... and the like carry code for the chapter before them
PICTURES = ("image/png", "image/webp", "image/gif", "image/jpeg", "image/svg+xml")
ABSOLUTE = re.compile(r"(?<![\w:/.])/(home|root|Users|work|tmp|opt|mnt|usr|var|private)/\S+")
UNSTABLE = re.compile(r"<[\w. ]+ at 0x[0-9a-f]{6,}>")

name = lambda p: p.relative_to(NBS).as_posix()
everywhere = pytest.mark.parametrize("path", ALL, ids=name)
in_chapters = pytest.mark.parametrize("path", CHAPTERS, ids=name)


def cells(path: Path) -> list: return [c for c in nbformat.read(path, 4).cells if c.source.strip()]


def code(path: Path) -> list: return [c for c in cells(path) if c.cell_type == "code"]


def lines(cell) -> int:
    "Lines that are read: neither blank nor an nbdev directive."
    return sum(bool(line.strip()) and not line.startswith("#|") for line in cell.source.splitlines())


def sets_up(cell) -> bool:
    "Directives or imports alone: the house order puts two of them before the parameters."
    try: body = ast.parse(cell.source).body
    except SyntaxError: return False
    return all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in body)


def said(output) -> str:
    "The text of an output."
    data = output.get("data", {})
    return "".join(output.get("text", "")) + "".join("".join(v) for k, v in data.items() if k.startswith("text/"))


def shelves() -> list[str]: return [p.name for p in CHAPTERS]


@everywhere
def test_no_warnings_and_no_clocks_in_the_outputs(path):
    "What goes to stderr are warnings and progress bars, and both say when they were made."
    assert not [o.text[:80] for c in code(path) for o in c.outputs if o.output_type == "stream" and o.name == "stderr"]


@everywhere
def test_a_figure_that_is_announced_is_there(path):
    if not any(o.output_type != "stream" for c in code(path) for o in c.outputs): return          # never executed
    for c in code(path):
        if re.search(r"^(core\.)?show\(", c.source, re.M): assert any(k in PICTURES for o in c.outputs for k in o.get("data", {})), c.source[:120]


def test_the_ten_chapters_are_there():
    from groot_cookbook.core import STAGES
    assert [n for n in shelves() if n < "10"] == [f"{s}.ipynb" for s in STAGES]


@in_chapters
def test_opening(path):
    "A title, a promise, a table of four, and three things the reader will do."
    opening = cells(path)[0].source
    chapter = chapters.Chapter(path)
    assert opening.startswith("# ") and chapter.promise, "a chapter opens with a title and a one-line promise as a quote"
    assert re.search(r"\| *Needs *\| *Makes *\| *On a laptop *\| *At full size *\|", opening), "the opening has the table Needs / Makes / On a laptop / At full size"
    assert re.search(r"strip\(\d+\)", "".join(c.source for c in code(path)[:3])), "the pipeline strip stands on top"


@pytest.mark.parametrize("stage, seconds", json.loads((NBS.parent / "data/results/laptop.json").read_text())["rows"][0]["chapters"].items())
def test_the_time_on_a_laptop_is_what_was_measured(stage, seconds):
    said = re.search(r"\| *Needs.*\n.*\n\|[^|]*\|[^|]*\| *([\d.]+) (s|min) *\|", cells(NBS / f"{stage}.ipynb")[0].source)
    assert said and float(said[1]) * {"s": 1, "min": 60}[said[2]] == pytest.approx(seconds, rel=.25), f"{seconds:.0f} s in data/results/laptop.json"


@in_chapters
def test_parameters(path):
    "One cell, at most eight literals, each with a comment, never exported, `run` first."
    declared = chapters.Chapter(path).parameters()
    (cell,) = [c for c in code(path) if "parameters" in c.metadata.get("tags", [])]
    assert "#|" not in cell.source
    assert 1 <= len(declared) <= 8 and next(iter(declared)) == "run" and declared["run"].default == "runs/smoke"
    assert not [p.name for p in declared.values() if not p.help], "a parameter without a comment behind it"


@in_chapters
def test_closing(path):
    "What went wrong on purpose, what was handed over, and what the reader takes along."
    headings = "\n".join(line.lower() for c in cells(path) if c.cell_type == "markdown" for line in c.source.splitlines() if line.startswith("#"))
    for wanted in ("break", "five lines", "question", "exercise", "further reading"): assert wanted in headings, f"no section on {wanted!r}"
    assert "expect_fail" in "".join(c.source for c in code(path)), "the failure that is shown must run"


@pytest.mark.parametrize("path", [p for p in CHAPTERS if p.name < "10"], ids=name)
def test_one_widget_that_nothing_depends_on(path):
    "A chapter has something to touch: after a figure that carries the text, announced by a sentence, in at most eight lines, and without a trace in what is stored."
    found = cells(path)
    (at,) = [i for i, c in enumerate(found) if c.cell_type == "code" and re.search(r"^(core\.)?touch\(", c.source, re.M)]
    assert [c for c in found[:at] if c.cell_type == "code" and re.search(r"^(core\.)?show\(", c.source, re.M)], "a widget stands after a static figure"
    assert found[at - 1].cell_type == "markdown" and "In JupyterLab" in found[at - 1].source, "the sentence before a widget says what to try"
    assert lines(found[at]) <= 8 and not found[at].outputs
    (draw,) = [n for n in ast.parse(found[at].source).body if isinstance(n, ast.FunctionDef)]
    assert len(ast.get_docstring(draw) or "") > 15, "its docstring stands for the figure where that cannot be seen"


@everywhere
def test_cells_are_short(path):
    long = [(lines(c), c.source[:60]) for c in code(path) if lines(c) > 40]
    assert not long, f"code cells over forty lines : {long}"


@everywhere
def test_prose_between_code(path):
    streak, worst, at = 0, 0, ""
    for c in cells(path):
        if c.cell_type == "code" and sets_up(c): continue
        streak = streak + 1 if c.cell_type == "code" else 0
        if streak > worst: worst, at = streak, c.source[:60]
    assert worst <= 3, f"{worst} code cells without a sentence between, ending at {at!r}"


@everywhere
def test_figures_have_alt_text(path):
    for c in code(path):
        for o in c.get("outputs", []):
            for kind in PICTURES:
                if kind in o.get("data", {}):
                    alt = o.get("metadata", {}).get(kind, {}).get("alt", "")
                    assert len(alt) > 15, f"a figure without alt text, in {c.source[:60]!r}"
                    assert len(o.data[kind]) * 3 / 4 <= 120_000, f"a figure of {len(o.data[kind]) * 3 // 4000} kB, in {c.source[:60]!r}"


@everywhere
def test_outputs_are_small_stable_and_clean(path):
    assert path.stat().st_size <= 500_000
    for c in code(path):
        for o in c.get("outputs", []):
            assert o.output_type != "error", f"an error is kept in {c.source[:60]!r}"
            assert not [k for k in o.get("data", {}) if "widget" in k], f"a widget is kept in {c.source[:60]!r}"
            text = said(o)
            assert not ABSOLUTE.search(text) and not UNSTABLE.search(text), f"a path or an address of one machine in the output of {c.source[:60]!r}"


@everywhere
def test_sources_name_no_machine(path):
    for c in cells(path): assert not ABSOLUTE.search(c.source), f"an absolute path in {c.source[:60]!r}"


@in_chapters
def test_executed_in_order(path):
    "Every cell that can run has run, and the kernel is called python3."
    nb = nbformat.read(path, 4)
    assert nb.metadata.kernelspec.name == "python3"
    assert any(c.get("outputs") for c in nb.cells if c.cell_type == "code"), "the chapter's outputs are not kept"


@everywhere
def test_exports_are_plain(path):
    "Exported cells parse and use no star imports."
    for c in code(path):
        if not re.match(r"#\|\s*exporti?\b", c.source): continue
        tree = ast.parse(c.source)
        stars = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and any(a.name == "*" for a in n.names)]
        assert not stars, f"a star import in {c.source[:60]!r}"


@everywhere
def test_no_pickle_and_no_remote_code(path):
    text = "\n".join(c.source for c in code(path))
    assert not re.search(r"\bimport pickle\b|\btorch\.(load|save)\(|trust_remote_code\s*=\s*True|allow_pickle\s*=\s*True|shell\s*=\s*True", text)
