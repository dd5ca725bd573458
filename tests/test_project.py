"settings.ini is the one source: what gets installed, nbdev's own table and the pins agree with it; notebooks and modules agree with each other."
import json, re, shutil, subprocess, sys, tomllib
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

import pytest

import groot_cookbook
from groot_cookbook import chapters, cli
from groot_cookbook.core import plain

ROOT = Path(chapters.ROOT)


@pytest.fixture(scope="module")
def ini():
    config = ConfigParser(delimiters=["="], interpolation=None)
    config.read(ROOT / "settings.ini")
    return config["DEFAULT"]


def required(ini, key: str = "requirements") -> set[str]: return {plain(r) for r in ini[key].split()}


def test_what_is_installed_is_what_settings_say(ini):
    dist = metadata.distribution("groot_cookbook")
    assert (dist.metadata["Name"], dist.version, dist.metadata["Summary"]) == (ini["lib_name"], ini["version"], ini["description"])
    assert dist.metadata["Requires-Python"] == f">={ini['min_python']}"
    assert groot_cookbook.__version__ == ini["version"]
    extras = {k.removesuffix("_requirements"): required(ini, k) for k in ini if k.endswith("_requirements")}
    extras["all"] = set().union(*(rs for name, rs in extras.items() if name != "real"))
    assert set(dist.metadata.get_all("Provides-Extra")) == set(extras)
    found = {"": set(), **{e: set() for e in extras}}
    for line in dist.requires:
        name, _, marker = line.partition(";")
        found[re.search(r"""extra == ['"](.+)['"]""", marker).group(1) if marker else ""].add(plain(name.strip()))
    assert found == {"": required(ini), **extras}
    assert [(e.name, e.value) for e in dist.entry_points if e.group == "console_scripts"] == [tuple(line.split("=")) for line in ini["console_scripts"].split("\n")]
    assert dist.entry_points["groot-cookbook"].load() is cli.main


def test_nbdev_reads_the_same_values(ini):
    nbdev = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["nbdev"]
    assert {k: nbdev[k] for k in ("lib_path", "nbs_path", "doc_path", "tst_flags")} == {k: ini[k] for k in ("lib_path", "nbs_path", "doc_path", "tst_flags")}
    assert nbdev["update_pyproject"] is False


def test_every_requirement_is_pinned_exactly(ini):
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "only NAME==VERSION: no paths, no local builds"
    pins = {plain(line.split("==")[0]) for line in lines}
    assert not set().union(*(required(ini, k) for k in ini if k.endswith("requirements"))) - pins
    assert len(pins) == len(lines)


def test_what_is_installed_is_what_is_pinned():
    off = [line for line in cli._packages() if "pinned" in line]
    assert not off, off


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    "The notebooks and modules on their own, so that export and clean can be tried on them."
    to = tmp_path_factory.mktemp("copy")
    for name in ("pyproject.toml", "settings.ini", "setup.py", "README.md"): shutil.copy(ROOT / name, to)
    for name in ("nbs", "groot_cookbook"): shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    return to


@pytest.mark.parametrize("command", ["nbdev_clean", "nbdev_export"])
def test_export_and_clean_change_nothing(copy, command):
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    script = "from nbdev.clean import nbdev_clean; nbdev_clean()" if command == "nbdev_clean" else "from nbdev.doclinks import nbdev_export; nbdev_export()"
    done = subprocess.run([sys.executable, "-c", script], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    changed = sorted(p.relative_to(copy).as_posix() for p in before.keys() | after.keys() if before.get(p) != after.get(p))
    assert not changed, f"{command.replace('_', '-')} changes {changed}"


def tracked() -> list[Path]:
    "What is, or would be, committed."
    try: names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError): pytest.skip("not a git checkout")
    return [ROOT / n for n in names if n and (ROOT / n).is_file()]


def test_what_is_committed_is_small_and_safe():
    files = tracked()
    assert not [p.name for p in files if p.stat().st_size > 16e6]
    assert sum(p.stat().st_size for p in files if (ROOT / "data" / "checkpoints") in p.parents) <= 80e6
    assert not [p.name for p in files if p.suffix in (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".joblib")], "safetensors, never pickle"


def test_the_library_neither_pickles_nor_runs_strangers_code():
    bad = re.compile(r"^\s*import pickle|\btorch\.(load|save)\(|trust_remote_code\s*=\s*True|allow_pickle\s*=\s*True|shell\s*=\s*True|\bos\.system\(", re.M)
    found = [p.name for p in sorted((ROOT / "groot_cookbook").glob("*.py")) if bad.search(p.read_text())]
    assert not found


def test_profiles_fit_their_chapters():
    available = chapters.chapters()
    assert set(chapters.profiles()) == {"smoke", "laptop", "gpu", "real"}
    for profile in chapters.profiles(): chapters.resolve(available, chapters.read_profile(profile), profile)
    smoke = {k: v for k, v in chapters.read_profile("smoke").items() if k != "limits"}
    assert not any(smoke.values()), "the defaults in the chapters are the smoke profile"


def test_checkpoints_have_cards():
    "All five: the video autoencoder lives in the pipeline of the world model, and its card in that one's."
    shipped = ROOT / "data" / "checkpoints"
    assert {p.name for p in shipped.iterdir() if p.is_dir()} == {"tiny-backbone", "tiny-cosmos", "tiny-idm", "tiny-reason"}
    cards = {p.parent.name: json.loads(p.read_text()) for p in shipped.glob("*/card.json")}
    for name, card in {**cards, "tiny-vae": cards["tiny-cosmos"]["autoencoder"]}.items():
        assert {"data", "seed", "steps", "command", "figures"} <= set(card), f"{name}: the card says {sorted(card)}"
    sizes = [p.stat().st_size for p in shipped.rglob("*") if p.is_file()]
    assert sum(sizes) < 80e6 and max(sizes) < 16e6


@pytest.mark.parametrize("path", sorted((ROOT / "data" / "results").glob("*.json")), ids=lambda p: p.stem)
def test_a_result_says_where_it_is_from(path):
    "For itself, or for each of its rows."
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = found["rows"] if isinstance(found.get("rows"), list) else []
    for what in ("command", "commit", "hardware", "date"): assert found.get(what) or rows and all(r.get(what) for r in rows), what


def test_help_fits_a_screen(capsys):
    for words in (["--help"], *([c, "--help"] for c in ("run", "list", "params", "report", "doctor", "validate", "convert"))):
        with pytest.raises(SystemExit) as e: cli.main(words)
        text = capsys.readouterr().out
        assert e.value.code == 0 and len(text.splitlines()) <= 40


@pytest.mark.parametrize("words, message", [(["params", "99"], "no chapter '99'"), (["run", "--profile", "huge"], "no profile 'huge'"), (["run", "--dataset", "nowhere"], "no such dataset folder"),
                                            (["report", "nowhere"], "nothing has been run here"), (["run", "-p", "03.sed=1"], "no parameter 'sed'")])
def test_wrong_words_get_a_sentence(capsys, words, message):
    assert cli.main(words) == 1
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and len(said.strip().splitlines()) == 1


@pytest.mark.parametrize("words", [["list"], ["params", "03"], ["doctor"]])
def test_json(capsys, words):
    cli.main([*words, "--json"])
    assert json.loads(capsys.readouterr().out)


def test_what_is_imported_is_required_and_the_other_way_round(ini):
    import ast
    sources = [p.read_text() for p in (ROOT / "groot_cookbook").glob("*.py")]
    cells = ["".join(c["source"]) for p in (ROOT / "nbs").rglob("*.ipynb") for c in json.loads(p.read_text())["cells"] if c["cell_type"] == "code"]

    def roots(texts) -> set[str]:
        nodes = [n for t in texts for n in ast.walk(ast.parse(t))]
        named = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names] + [n.module for n in nodes if isinstance(n, ast.ImportFrom) and not n.level]
        return {n.partition(".")[0] for n in named} - set(sys.stdlib_module_names) - {"groot_cookbook"}

    dists = metadata.packages_distributions()
    of = lambda modules: {plain(d) for m in modules for d in dists.get(m, [m])[:1]}
    bring = set().union(*(required(ini, k) for k in ini if k.endswith("requirements") and k not in ("docs_requirements", "dev_requirements")))
    assert of(roots(sources)) <= bring, "imported by the library, in no list of settings.ini"
    assert of(roots(cells)) <= bring | required(ini, "dev_requirements")
    used_by_others = {"torchvision", "onnxscript", "cosmos-guardrail"}       # transformers' processors, torch's exporter, diffusers
    assert bring <= of(roots(sources + cells)) | used_by_others, "in settings.ini, imported nowhere"
