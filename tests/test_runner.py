"The runner against two small chapters in a project of their own: strict parameters, resume, locks, failures, Ctrl-C, kill -9."
import fcntl, json, os, re, shutil, signal, subprocess, sys, time
from pathlib import Path

import nbformat
import pytest

from groot_cookbook import chapters, cli, core, report, runner
from groot_cookbook.core import CookbookError, Manifest
from groot_cookbook.episodes import write_dataset
from test_episodes import episode

PACKAGE = Path(core.__file__).parent
OPENING = "# {title}\n\n> *A promise.*\n\n| Needs | Makes | On a laptop | At full size |\n|---|---|---|---|\n| nothing | `numbers` | 1 s | 1 s |\n"
FIRST = [("parameters", 'run = "runs/smoke"  # run folder\nseed = 0  # of the numbers\nrate = 0.5  # a float\nname = ""  # a folder\nfail = ""  # how to fail\npause = 0.0  # seconds'),
         ("", "import os, time, random\nfrom pathlib import Path\nfrom groot_cookbook import core\nrun = core.run_folder(run)"),
         ("", "if fail == 'sentence': raise core.CookbookError('a wart', 'meta/info.json', 'Remove it')\nif fail == 'plain': 1 / 0\nif fail == 'die': os._exit(9)\ntime.sleep(pause)"),
         ("", "from IPython.display import display\ndisplay({'image/png': 'iVBORw0KGgo='}, raw=True, metadata={'image/png': {'alt': 'A rising line & more'}})"),
         ("", "with core.hand_over(run, '00_first', dict(seed=seed, rate=rate)) as part:\n    for i in range(20):\n        (part / f'{i}.txt').write_text(str(random.Random(seed + i).random())); time.sleep(pause / 20)\n"
              "    core.write_json(part / 'report.json', {'mean': 0.25, 'per': {'joint': 1}})\n    if fail == 'disk': raise OSError(28, 'No space left on device', str(part))"),
         ("", "if fail == 'late': raise ValueError('after the hand-over')")]
SECOND = [("parameters", 'run = "runs/smoke"  # run folder\nfactor = 2  # of what came in\npause = 0.0  # seconds'),
          ("", "import os, time\nfrom groot_cookbook import core\nrun = core.run_folder(run)\n(first,) = core.require(run, '00_first')"),
          ("", "total = factor * sum(float((first / f'{i}.txt').read_text()) for i in range(20)); time.sleep(pause)"),
          ("", "with core.hand_over(run, '01_second', dict(factor=factor), ['00_first'], volatile=['time.json']) as part:\n    core.write_json(part / 'total.json', {'total': total})\n    core.write_json(part / 'time.json', {'now': time.time(), 'threads': os.environ['GOMP_SPINCOUNT']})"),
          ("", "time.sleep(pause)")]


def write_chapter(path: Path, cells) -> None:
    nb = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}})
    nb.cells = [nbformat.v4.new_markdown_cell(OPENING.format(title=path.stem))]
    nb.cells += [nbformat.v4.new_code_cell(source, metadata={"tags": [tag]} if tag else {}) for tag, source in cells]
    nbformat.write(nb, path)


def make(tmp_path: Path) -> Path:
    (tmp_path / "groot_cookbook").mkdir()
    for name in ("__init__", "core", "chapters", "runner", "report", "cli"): shutil.copy(PACKAGE / f"{name}.py", tmp_path / "groot_cookbook")
    (tmp_path / "nbs" / "params").mkdir(parents=True)
    write_chapter(tmp_path / "nbs" / "00_first.ipynb", FIRST)
    write_chapter(tmp_path / "nbs" / "01_second.ipynb", SECOND)
    (tmp_path / "nbs" / "params" / "smoke.yaml").write_text("00_first:\n01_second: {}\n")
    (tmp_path / "nbs" / "params" / "laptop.yaml").write_text("00_first: {seed: 7, rate: 1e-3}\n")
    return tmp_path


def test_only_the_runners_own_leavings_are_swept(tmp_path):
    for name in (".bashrc.old", ".profile.old", ".movie.part", ".07_evaluation.old", ".run.json.part"): (tmp_path / name).write_text(name)
    (tmp_path / ".03_idm.part").mkdir()
    runner.sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".bashrc.old", ".movie.part", ".profile.old", "07_evaluation"]


@pytest.mark.parametrize("block, words", [("limits: {cel: 3}", "whole seconds"), ('limits: {cell: "300"}', "whole seconds"), ("limits: {cell: 0}", "whole seconds"),
                                          ("00_first: 5", "one block per chapter"), ("00_first: {run: elsewhere}", "--out")])
def test_a_profile_is_read_strictly(project, block, words):
    (project / "nbs" / "params" / "smoke.yaml").write_text(block + "\n")
    with pytest.raises(CookbookError, match=words): runner.prepare("smoke", root=project)


@pytest.fixture
def project(tmp_path) -> Path: return make(tmp_path)


@pytest.fixture(scope="module")
def once(tmp_path_factory) -> Path:
    "A project whose smoke run is complete."
    root = make(tmp_path_factory.mktemp("once"))
    done = go(root)
    assert done.returncode == 0 and re.search(r"00_first +[\d.]+ s +\d+ MB", done.stdout), done.stderr
    return root


@pytest.fixture
def complete(once, tmp_path) -> Path: return shutil.copytree(once, tmp_path / "p")


def start(project: Path, *args) -> subprocess.Popen:
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)      # a shell's background job ignores Ctrl-C, and its children inherit that
    own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}  # the project's package, and no other
    return subprocess.Popen([sys.executable, "-m", "groot_cookbook.cli", "run", *args], cwd=project, env=own, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heed)


def go(project: Path, *args) -> subprocess.CompletedProcess:
    p = start(project, *args)
    out, err = p.communicate(timeout=300)
    return subprocess.CompletedProcess(args, p.returncode, out, err)


def digests(out: Path) -> dict: return {s: Manifest.read(out, s).digest for s in ("00_first", "01_second")}


def wait_for(what, seconds=150.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited too long"
        time.sleep(.02)


def test_a_run_its_resume_and_its_report(complete):
    project, out = complete, complete / "runs" / "smoke"
    before = {s: (out / s / "manifest.json").stat().st_mtime_ns for s in digests(out)}

    again = go(project)
    assert again.stdout.count("unchanged") == 2
    assert {s: (out / s / "manifest.json").stat().st_mtime_ns for s in before} == before

    page = (out / "report.html").read_text()
    assert "A rising line &amp; more" in page and "data:image/png;base64," in page and "<td>mean</td><td>0.25</td>" in page and "A promise." in page
    assert not re.search(r"(src|href)=.https?:|url\(|@import", page)
    kept = nbformat.read(out / "notebooks" / "00_first.ipynb", 4)
    assert kept.metadata.papermill.parameters["run"] == "runs/smoke"

    changed = go(project, "-p", "second.factor=3")
    assert "00_first" in changed.stdout and changed.stdout.count("unchanged") == 1 and "changed: factor" in changed.stdout
    (out / "00_first" / "3.txt").write_text("0")
    mended = go(project, "-p", "01_second.factor=3")
    assert "3.txt is missing or altered" in mended.stdout and mended.stdout.count("unchanged") == 1       # same numbers again, so 01 stays
    assert go(project, "--profile", "laptop", "--out", str(out), "--only", "00").returncode == 0
    assert Manifest.read(out, "00_first").params == {"seed": 7, "rate": .001}
    about = json.loads((out / "run.json").read_text())
    about["params"]["00_first"]["seed"] = 99                       # another command, which did not run this chapter
    (out / "run.json").write_text(json.dumps(about))
    page = report.build(out, project).read_text()
    assert "<td>seed</td><td>7</td>" in page and "<td>99</td>" not in page
    assert "made from other inputs" in (r := go(project, "--from", "01")).stdout or "inputs changed" in r.stdout


def test_threads_that_wait_sleep_soon_unless_the_user_wants_them_awake(project, monkeypatch):
    told = lambda: json.loads((project / "runs" / "smoke" / "01_second" / "time.json").read_text())["threads"]
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert go(project).returncode == 0 and told() == "30000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "300000")
    assert go(project, "-p", "second.factor=3").returncode == 0 and told() == "300000"


@pytest.mark.parametrize("text, value", [("010", 10), ("08", 8), ("-3", -3), ("+4", 4)])
def test_a_whole_number_is_read_as_people_write_it(project, text, value):
    assert runner.prepare(sets=[f"00.seed={text}"], root=project).params["00_first"]["seed"] == value


def test_chapters_run_in_the_order_of_the_book(project):
    names = lambda **said: [c.name for c in runner.prepare(root=project, **said).selected]
    assert names(only=["01", "00", "01"]) == names() == ["00_first", "01_second"] and names(start="01") == ["01_second"]
    with pytest.raises(CookbookError, match="no chapter is left to run"): names(only=["00"], start="01")


@pytest.mark.parametrize("sets, message", [
    (["03.seed=1"], "no chapter '03'"), (["00.sed=1"], "declares: run, seed, rate"), (["00.seed=1.5"], "seed is declared as int"),
    (["00.seed=true"], "seed is declared as int"), (["00.seed=1:20"], "seed"), (["00.seed"], "CHAPTER.name=value"), (["00.rate=[1]"], "rate is declared as float")])
def test_wrong_parameters_are_refused_before_anything_runs(project, sets, message):
    with pytest.raises(CookbookError, match=re.escape(message)): runner.prepare(sets=sets, root=project)


@pytest.mark.parametrize("text, message", [("00_first: {sed: 1}", "declares: run"), ("00_frist: {seed: 1}", "no chapter '00_frist'"), ("00_first: {name: 3}", "name is declared as str"),
                                           ("00_first: [", "YAML"), ("- 1", "one block per chapter")])
def test_wrong_profiles_are_refused(project, text, message):
    (project / "nbs" / "params" / "smoke.yaml").write_text(text)
    with pytest.raises(CookbookError, match=re.escape(message)): runner.prepare(root=project)


def test_values_are_read_by_the_type_of_the_default(project):
    params = runner.prepare("laptop", sets=["first.rate=2", "00.name=12", "00.pause=1e-2"], root=project).params["00_first"]
    assert params == {"run": "runs/smoke", "seed": 7, "rate": 2.0, "name": "12", "fail": "", "pause": .01}
    assert chapters.chapters(project)[0].parameters()["seed"].help == "of the numbers"
    assert (chapters.chapters(project)[0].promise, chapters.chapters(project)[0].makes) == ("A promise.", "`numbers`")


def test_unknown_profile_and_missing_dataset(project):
    with pytest.raises(CookbookError, match="There are: laptop, smoke"): runner.prepare("smok", root=project)
    with pytest.raises(CookbookError, match="no such dataset folder"): runner.prepare(dataset=project / "nowhere", root=project)


def test_two_datasets_of_one_name_do_not_share_a_run_folder(project, monkeypatch):
    one, other = (write_dataset([episode()], project / site / "data") for site in "ab")
    kept = runner.prepare(dataset=one, root=project).out
    kept.mkdir(parents=True)
    core.write_json(kept / "run.json", {"params": {"01_episodes": {"dataset": str(one)}}})
    assert runner.prepare(dataset=one, root=project).out == kept
    with pytest.raises(CookbookError, match="another dataset of that name.*--out"): runner.prepare(dataset=other, root=project)
    assert runner.prepare(dataset=other, out=project / "mine", root=project).out == project / "mine"


def test_a_run_of_another_profile_is_replaced_only_by_name(project):
    "The default is smoke: `run --out mine`, said in haste, would replace a laptop run chapter by chapter."
    mine = project / "mine"
    mine.mkdir()
    core.write_json(mine / "run.json", {"profile": "laptop"})
    with pytest.raises(CookbookError, match="holds a run of profile laptop.*--profile laptop to go on"): runner.prepare(out=mine, root=project)
    assert {runner.prepare(profile=p, out=mine, root=project).about["profile"] for p in ("laptop", "smoke")} == {"laptop", "smoke"}


def test_a_parameter_of_a_chapter_that_does_not_run_is_pointed_out(project, capsys):
    runner.prepare(only=["01"], sets=["00.fail=disk"], root=project)
    assert "00.fail=disk: that chapter does not run now" in capsys.readouterr().err
    runner.prepare(only=["00"], sets=["00.fail=disk"], root=project)
    assert not capsys.readouterr().err


def test_an_unknown_camera_ends_before_anything_runs(tmp_path):
    dataset = write_dataset([episode(16)], tmp_path / "set")
    for only in (["01"], ["20"]):
        with pytest.raises(CookbookError, match="wrist"): runner.prepare(dataset=dataset, only=only, out=tmp_path / "run", sets=[f"{only[0]}.camera=wrist"])


def test_half_an_option_is_no_option(capsys):
    "`--chapter 03` is not `--chapter-limit 3`: it started a run."
    with pytest.raises(SystemExit): cli.parser().parse_args(["run", "--chapter", "03"])
    assert "unrecognized arguments: --chapter 03" in capsys.readouterr().err


def test_a_finished_run_is_finished():
    "Of the book's own smoke run, nothing is taken for changed by what the chapters wrote of themselves: 06 trained again each time."
    out, looked_at = runner.ROOT / "runs" / "smoke", 0
    for stage in core.STAGES:
        noted = runner.record(runner.notebook(out, stage))
        if not (out / stage / "manifest.json").is_file() or noted.get("made") != (made := Manifest.read(out, stage)).digest: continue       # not what the runner made
        looked_at += 1
        assert not {k: made.params[k] for k, v in noted["params"].items() if k != "run" and made.params.get(k, v) != v}, stage
    if not looked_at: pytest.skip("no smoke run here: make smoke")


@pytest.mark.parametrize("fail, message", [("sentence", "cell 3/6: meta/info.json: a wart. Remove it"), ("plain", "ZeroDivisionError"), ("die", "kernel died"),
                                           ("disk", "No space left on device. Free some space"), ("late", "after the hand-over")])
def test_a_failure_is_one_sentence_and_leaves_the_rest(complete, fail, message):
    out = complete / "runs" / "smoke"
    before = digests(out)
    failed = go(complete, "-p", f"00.fail={fail}")
    assert failed.returncode == 1 and message in failed.stderr and len(failed.stderr.strip().splitlines()) == 2
    assert "runs/smoke/notebooks/00_first.ipynb" in failed.stderr and (out / "notebooks" / "00_first.ipynb").exists()
    assert digests(out) == before and not list(out.glob(".*.part"))
    if fail == "late":
        mended = go(complete)
        assert mended.returncode == 0 and "failed before" in mended.stdout and digests(out) == before


def test_time_limits(project):
    failed = go(project, "-p", "00.pause=30", "--cell-limit", "1")
    assert failed.returncode == 1 and "took longer than the 1 s that a cell may take" in failed.stderr
    for no_time in ("0", "-5"): assert go(project, "--cell-limit", no_time).returncode == 2
    failed = go(project, "-p", "00.pause=30", "--chapter-limit", "3")
    assert failed.returncode == 1 and "took longer than the 3 s that a chapter may take" in failed.stderr


def test_ctrl_c_says_so_and_the_next_run_goes_on(project):
    out = project / "runs" / "smoke"
    p = start(project, "-p", "01.pause=20")
    wait_for(lambda: (out / "notebooks" / "00_first.ipynb").exists())
    time.sleep(2)
    p.send_signal(signal.SIGINT)
    said = p.communicate(timeout=120)
    assert p.returncode == 130 and "Stopped." in said[1] and "Traceback" not in said[1]
    again = go(project)
    assert again.returncode == 0 and again.stdout.count("unchanged") == 1


@pytest.mark.parametrize("moment", ["before the hand-over", "in the hand-over", "after the hand-over", "in the second chapter"])
def test_killed_and_run_again_ends_in_the_same_numbers(project, once, moment):
    out = project / "runs" / "killed"
    stage, pause = ("01.pause", 3) if moment == "in the second chapter" else ("00.pause", 3)
    p = start(project, "--out", "runs/killed", "-p", f"{stage}={pause}")
    wait_for({"before the hand-over": lambda: (out / "notebooks" / ".00_first.part.ipynb").exists(), "in the hand-over": lambda: (out / ".00_first.part" / "5.txt").exists(),
              "after the hand-over": lambda: (out / "00_first" / "manifest.json").exists(), "in the second chapter": lambda: (out / "notebooks" / ".01_second.part.ipynb").exists()}[moment])
    if "before" in moment: time.sleep(1)
    p.kill(); p.communicate()
    again = go(project, "--out", "runs/killed")
    assert again.returncode == 0, again.stderr
    assert digests(out) == digests(once / "runs" / "smoke")
    assert not [x.name for x in [*out.glob(".*"), *out.glob("notebooks/.*")] if x.name != ".lock"]


def test_a_stage_set_aside_by_a_killed_rename_is_put_back(tmp_path):
    (tmp_path / ".03_idm.old").mkdir(); (tmp_path / ".03_idm.part").mkdir(); (tmp_path / ".run.json.part").touch()
    runner.sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["03_idm"]


def test_two_runs_in_one_folder(project):
    out = project / "runs" / "smoke"
    out.mkdir(parents=True)
    with open(out / ".lock", "w") as held:
        held.write("4711"); held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(CookbookError, match="another run .process 4711. is at work"):
            with runner.locked(out, patience=.1): pass
    with runner.locked(out, patience=.1): pass


def test_read_only_output(project):
    if os.geteuid() == 0: blocked = project / "file"; blocked.touch(); where = "file/run"     # root may write anywhere but into a file
    else: (project / "blocked").mkdir(mode=0o500); where = "blocked/run"
    failed = go(project, "--out", where)
    assert failed.returncode == 1 and len(failed.stderr.strip().splitlines()) == 1 and where.split("/")[0] in failed.stderr


def test_json_and_a_changed_folder_named_by_a_parameter(project):
    (project / "weights").mkdir(); (project / "weights" / "a").write_text("1")
    said = json.loads(go(project, "--json", "--only", "00", "-p", "00.name=weights").stdout)
    assert [s["status"] for s in said["steps"]] == ["ran"] and Path(said["report"]).is_file()
    assert json.loads(go(project, "--json", "--only", "00", "-p", "00.name=weights").stdout)["steps"][0]["status"] == "unchanged"
    (project / "weights" / "a").write_text("2 ")
    assert json.loads(go(project, "--json", "--only", "00", "-p", "00.name=weights").stdout)["steps"][0]["why"] == "a dataset or checkpoint changed"


def test_a_run_folder_that_goes_away_is_one_sentence(project):
    out = project / "runs" / "smoke"
    p = start(project, "-p", "00.pause=4")
    wait_for(lambda: (out / "notebooks" / ".00_first.part.ipynb").exists())
    time.sleep(1)
    out.parent.rename(project / "elsewhere")                           # a disk unmounted, a folder tidied away, and its parent with it
    said = p.communicate(timeout=120)[1]
    assert p.returncode == 1 and "Traceback" not in said and "has gone" in said
    again = go(project)
    assert again.returncode == 0 and digests(out)


def test_a_manifest_of_another_version_is_made_again(complete):
    out = complete / "runs" / "smoke"
    before, path = digests(out), out / "00_first" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 2}))
    again = go(complete)
    assert again.returncode == 0 and "its manifest is not of this version" in again.stdout and again.stdout.count("unchanged") == 1 and digests(out) == before


def test_a_clock_that_goes_backwards_changes_no_number(project, once):
    "The day before yesterday comes after today: between the chapters, and for what is on disk already."
    (project / "sitecustomize.py").write_text("import time\nbegan, real = time.time(), time.time\ntime.time = lambda: 2 * began - real() - 86400 * 2\n")
    out = project / "runs" / "smoke"
    assert go(project, "--only", "00").returncode == 0
    for f in out.rglob("*"): os.utime(f, (2**31, 2**31))               # ... and was made in 2038
    later = go(project)
    assert later.returncode == 0 and later.stdout.count("unchanged") == 1, later.stderr
    assert digests(out) == digests(once / "runs" / "smoke") and go(project).stdout.count("unchanged") == 2
    assert min(Manifest.read(out, s).seconds for s in digests(out)) >= 0


def test_a_file_that_a_parameter_names_is_watched_as_a_folder_is(tmp_path):
    board = tmp_path / "bench.json"
    assert runner.watched({"board": str(board), "run": str(tmp_path)}) == {}
    board.write_text("1")
    first = runner.watched({"board": str(board)})
    board.write_text("22")
    assert set(first) == {"board"} and runner.watched({"board": str(board)}) != first
