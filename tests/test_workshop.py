"The workshop kit: copies that hold no answers and whose checks know one, plans that say what was measured, slides that fetch nothing, a pack that asks nobody."
import ast, json, re, subprocess, sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

from groot_cookbook.chapters import ROOT
from groot_cookbook.core import STAGES, CookbookError, require

sys.path.insert(0, str(ROOT / "workshop"))
import learners, offline, plan, slides

BOOK = {c.name: c for c in learners.book()}
every_chapter = pytest.mark.parametrize("name", BOOK)
SOLUTIONS = sorted((ROOT / "nbs" / "solutions").glob("*.ipynb"))


def exercises(name: str) -> list[str]: return [e for c in nbformat.read(BOOK[name].path, 4).cells for e in learners.tagged(c, "exercise")]


def module(name: str) -> str: return next(m[1] for c in nbformat.read(BOOK[name].path, 4).cells if (m := re.match(r"#\| default_exp (\w+)", c.source)))


@pytest.fixture(scope="module")
def copies(tmp_path_factory) -> dict:
    "The learners' copies, chapter by chapter."
    to = tmp_path_factory.mktemp("copies") / "learners"
    return {p.stem: nbformat.read(p, 4) for p in learners.write(to, ROOT / "_workshop" / "run")}


def test_tags_and_hints_speak_of_the_same_definitions():
    assert list(BOOK) == list(STAGES) == list(learners.EXERCISES)
    for name in BOOK:
        assert exercises(name) == list(learners.EXERCISES[name]), name
        assert all(set(e) <= {"hint", "check"} and e["hint"] for e in learners.EXERCISES[name].values()), name


@every_chapter
def test_copies_hold_no_outputs_and_no_answers(copies, name):
    nb, chapter = copies[name], nbformat.read(BOOK[name].path, 4)
    nbformat.validate(nb)
    assert not [c for c in nb.cells if c.get("outputs") or c.get("execution_count")]
    for exercise in exercises(name):
        (asked,) = [c for c in nb.cells if exercise in learners.tagged(c, "exercise")]
        body = learners.definition(asked.source, exercise).body
        assert [type(n) for n in body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))] == [ast.Raise]
        (answered,) = [c for c in chapter.cells if exercise in learners.tagged(c, "exercise")]
        answer = ast.unparse(learners.definition(answered.source, exercise).body[-1])
        assert not [c.id for c in nb.cells if c.cell_type == "code" and answer in ast.unparse(ast.parse(c.source))]


@every_chapter
def test_all_else_in_a_copy_is_the_chapter(copies, name):
    "Nothing but exercises, hints and checks is changed or added, and nothing but the line for nbdev is gone."
    plain = lambda s: re.sub(r'(?m)^(#\| exporti?\n|# check of .*\n|run = .*$)', "", s)
    ours, theirs = {c.id: c for c in copies[name].cells}, {c.id: c for c in nbformat.read(BOOK[name].path, 4).cells}
    for i, c in theirs.items():
        if c.source.startswith("#| default_exp"): assert i not in ours
        elif c.cell_type == "code" and not learners.tagged(c, "exercise"): assert plain(ours[i].source) == plain(c.source)
    assert {re.sub(r".*-", "", i) for i in ours.keys() - theirs.keys()} <= {"ask", "book", "own"}
    assert 'run = "_workshop/run"' in "\n".join(c.source for c in ours.values())


@every_chapter
def test_checks_stay(copies, name):
    "Every definition that is asked for is followed by a check of it that asserts something."
    cells = copies[name].cells
    for exercise in exercises(name):
        at = next(i for i, c in enumerate(cells) if exercise in learners.tagged(c, "exercise"))
        checks = [c.source for c in cells[at:] if exercise in learners.tagged(c, "check")]
        assert re.search(r"\bassert |test_eq\(|test_close\(|expect_fail\(", "\n".join(checks)), exercise
        assert learners.the_books(module(name), exercise) in cells[at + 1].source


@pytest.mark.parametrize("source, name, left", [
    ("def f(x: int) -> int: return x + 1  # one more", "f", 'def f(x: int) -> int: raise NotImplementedError("yours to write: f")  # one more'),
    ('def f():\n    "Says ²."\n    y = 1\n    return y\n\n\ndef g(): return 2', "f", 'def f():\n    "Says ²."\n    raise NotImplementedError("yours to write: f")\n\n\ndef g(): return 2'),
    ("class A:\n    def f(self):  # (N,)\n        é = 1\n        return é\n    b = 2", "A.f", 'class A:\n    def f(self):  # (N,)\n        raise NotImplementedError("yours to write: A.f")\n    b = 2')])
def test_a_body_is_blanked_and_nothing_beside_it(source, name, left): assert learners.blank(source, name) == left


def test_a_tag_that_names_nothing_is_told():
    with pytest.raises(CookbookError, match="defines no g"): learners.blank("def f(): return 1", "g")


# --- do the checks know right from wrong? -----------------------------------------------------------------------

def played(nb, run: Path, until: int) -> list:
    "The first cells of a copy, executed in a folder of its own; errors are kept, not raised."
    nb = nbformat.v4.new_notebook(cells=nb.cells[:until], metadata=nb.metadata)
    for c in nb.cells:
        if "parameters" in c.metadata.get("tags", []): c.source = re.sub(r'(?m)^run = "[^"]*"', f'run = "{run}"', c.source)
    NotebookClient(nb, timeout=600, startup_timeout=600, allow_errors=True, resources={"metadata": {"path": str(ROOT)}}).execute()
    return nb.cells


def failed(cell) -> str: return next((o.ename for o in cell.get("outputs", []) if o.output_type == "error"), "")


def last_check(cells) -> int: return max(i for i, c in enumerate(cells) if learners.tagged(c, "check")) + 1


def challenged(nb):
    "A copy in which the book's definitions are taken, and each check is tried first with its definition unwritten again."
    cells = []
    for c in nb.cells:
        if any(t.startswith("book:") for t in c.metadata.get("tags", [])): c.source = re.sub(r"(?m)^# (?!Stuck)", "", c.source)
        for name in learners.tagged(c, "check"):
            cells += [new_code_cell(f"kept = {name}\ndef unwritten(*args, **kwargs): raise NotImplementedError\n{name} = unwritten"),
                      new_code_cell(c.source, metadata={"tags": ["probe"]}), new_code_cell(f"{name} = kept")]
        cells.append(c)
    return nbformat.v4.new_notebook(cells=cells, metadata=nb.metadata)


def test_a_blanked_copy_fails_its_checks(copies, tmp_path):
    nb = copies["00_workspace"]
    cells = played(nb, tmp_path, last_check(nb.cells))
    checks = [failed(c) for c in cells if learners.tagged(c, "check")]
    assert checks[0] == "NotImplementedError" and all(checks)
    before = cells[:next(i for i, c in enumerate(cells) if learners.tagged(c, "check"))]
    assert not [c.source for c in before if failed(c)], "up to the first check, all runs"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(STAGES))
def test_the_books_definitions_pass_where_unwritten_ones_fail(copies, name):
    run = ROOT / "runs" / "smoke"
    try: require(run, *STAGES)
    except CookbookError as e: pytest.skip(f"no finished run to read from: {e}")
    nb = challenged(copies[name])
    cells = played(nb, run, last_check(nb.cells))
    probes = [failed(c) for c in cells if "probe" in c.metadata.get("tags", [])]
    assert len(probes) >= len(exercises(name)) and all(probes), "a check that passes without its definition"
    assert not [(c.source[:80], failed(c)) for c in cells if failed(c) and "probe" not in c.metadata.get("tags", [])]


# --- solutions --------------------------------------------------------------------------------------------------

def test_every_chapter_has_solutions_that_make_test_executes():
    assert [p.stem for p in SOLUTIONS] == [f"{name[:2]}s{name[2:]}" for name in STAGES]
    pattern = re.search(r"nbdev-test nbs .*--file-re '(.+)'", (ROOT / "Makefile").read_text())[1]
    assert all(re.match(pattern, p.name) for p in SOLUTIONS) and not (ROOT / "nbs" / "solutions" / ".notest").exists()


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda p: p.stem)
def test_solutions_ask_what_the_chapter_asks_and_check_what_they_answer(path):
    cells, text = nbformat.read(path, 4).cells, ""
    assert not [c for c in cells if "default_exp" in c.source or re.match(r"#\|\s*export", c.source)]
    chapter = BOOK[path.stem[:2] + path.stem[3:]]
    asked = "\n".join(c["source"] for c in chapter.cells if "Exercises" in c["source"])
    for c in cells: text += f"\n{c.source}"
    stars = re.split(r"(?m)^## (★+) ", text)[1:]
    assert stars[::2] == ["★", "★★"] and {"★", "★★"} <= set(re.findall(r"★+", asked))
    for part in stars[1::2]: assert re.search(r"^\s*(for .*: )?(assert |test_eq\(|test_close\()", part, re.M), "a solution without a check"
    assert any(c.get("outputs") for c in cells), "executed, with its outputs kept"


# --- plans, slides, machines ------------------------------------------------------------------------------------

def test_plans_say_what_was_measured():
    text = (ROOT / "workshop" / "README.md").read_text(encoding="utf-8")
    assert plan.rendered(text) == text, "Render it again: python workshop/plan.py"
    measured = json.loads((ROOT / "data" / "results" / "laptop.json").read_text())
    said = re.findall(r"\[(\d\d_\w+)\]\(\S+\) \((\d+) s\)", text)
    assert {name for name, _ in said} == set(STAGES) and all(int(s) == round(measured["rows"][0]["chapters"][name]) for name, s in said)
    assert measured["command"] in text and measured["hardware"] in text and measured["date"] in text


def test_the_clock_of_a_plan_counts_the_machines_minutes():
    rows = [{"title": "One", "runs": ["00"], "talk": 5, "work": 10, "do": "", "say": "", "pitfalls": ""}, {"title": "Day two", "talk": 50, "work": 20, "do": "", "say": "", "pitfalls": ""}]
    lines = plan.table(rows, {"00_workspace": 61.})
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["0:00", "0:17", "0:00", "1:10"] and "5 + 10 + 2" in lines[2]


class Stacks(HTMLParser):
    "How deep sections lie, what pictures say, and what a page would fetch."
    def __init__(self):
        super().__init__()
        self.depth, self.stacks, self.words, self.fetched = 0, 0, [], []

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if tag == "section": self.stacks += not self.depth; self.depth += 1
        if tag == "img": self.words.append(a.get("alt"))
        self.fetched += [a[k] for k in ("src", "href") if k in a and tag in ("img", "script", "link") and not a[k].startswith("data:")]

    def handle_endtag(self, tag): self.depth -= tag == "section"


@every_chapter
def test_slides_have_a_stack_for_every_heading_and_fetch_nothing(tmp_path, name):
    page, cells = Stacks(), nbformat.read(BOOK[name].path, 4).cells
    page.feed(text := slides.write(BOOK[name], tmp_path / "slides.html").read_text(encoding="utf-8"))
    assert page.stacks == sum(len(re.findall(r"(?m)^#{1,3} ", c.source)) for c in cells if c.cell_type == "markdown") and page.depth == 0
    figures = [o.metadata[k]["alt"] for c in cells if c.cell_type == "code" for o in c.outputs for k in ("image/png", "image/jpeg") if k in o.get("data", {})]
    assert page.words == [w for w in figures if not w.startswith("The ten stages")]
    assert not page.fetched and "@import" not in text.split("<body>")[0]


def test_slides_keep_a_link_to_the_world_and_only_the_words_of_one_to_a_notebook():
    html = slides.page("see [video](01a_video.ipynb) and [the paper](https://arxiv.org/abs/2505.12705)")
    assert "01a_video" not in html and "see video and" in html and 'href="https://arxiv.org/abs/2505.12705"' in html


def test_containers_are_well_formed_and_pinned():
    dev = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    dockerfile = (ROOT / ".devcontainer" / dev["build"]["dockerfile"]).resolve()
    text = dockerfile.read_text()
    assert dockerfile == ROOT / "Dockerfile" and (ROOT / ".devcontainer" / dev["build"]["context"]).resolve() == ROOT
    assert dev["remoteUser"] in re.findall(r"useradd .*?(\w+)$", text, re.M)
    copied = [s for line in re.findall(r"^COPY --chown=\w+ (.+)$", text, re.M) for s in line.split()[:-1]]
    assert copied and all((ROOT / s).exists() for s in copied)
    pips = re.findall(r"pip install [^&\n]+", text)
    assert len(pips) == 2 and all("-c constraints.txt" in p for p in pips) and "$TORCH_INDEX" in pips[0] and "ARG TORCH_INDEX=" in text
    assert re.match(r"FROM python:3\.1[1-3]-slim", text[text.index("FROM"):])


def test_the_pack_is_installed_from_itself_alone(tmp_path):
    script = ROOT / "workshop" / "install.sh"
    assert subprocess.run(["sh", "-n", str(script)]).returncode == 0
    pips = re.findall(r"pip install .*", script.read_text())
    assert len(pips) == 1 and "--no-index --find-links ../wheels -c constraints.txt" in pips[0] and "PIP_CONFIG_FILE=/dev/null" in script.read_text()
    try: packed = offline.project(tmp_path / "book")
    except (OSError, subprocess.CalledProcessError): pytest.skip("not a git checkout")
    assert all((packed / n).exists() for n in ("Makefile", "settings.ini", "nbs/00_workspace.ipynb", "workshop/install.sh", "data/checkpoints/tiny-idm/model.safetensors")) and not (packed / "runs").exists()
