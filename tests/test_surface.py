"What a program may rely on: the names of the package, how little importing them costs, that each is documented, and that the types hold."
import ast, json, re, subprocess, sys
from pathlib import Path

import pytest

import groot_cookbook
from groot_cookbook import chapters, core

ROOT = Path(chapters.ROOT)
PACKAGE = ROOT / "groot_cookbook"
SURFACE = """CookbookError Credentials Dataset Dream Episode GrootPolicy InverseDynamics Modality Recipe Score Verdict Workspace convert demonstrate dream evaluate export_policy finetune judge
             label load_critic load_dreamer read_credentials sign validate write_dataset""".split()
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "mujoco", "matplotlib", "scipy", "PIL", "papermill", "onnx")


def test_the_surface_is_what_it_was():
    "A name that goes away breaks somebody's program: take one from this list only together with the version number."
    assert groot_cookbook.__all__ == SURFACE and set(SURFACE) <= set(dir(groot_cookbook))


@pytest.mark.parametrize("name", SURFACE)
def test_every_name_can_be_imported(name):
    thing = getattr(groot_cookbook, name)
    assert thing.__name__ == name and thing.__doc__ and groot_cookbook.__dict__[name] is thing


def test_type_checkers_see_the_same_names():
    block = next(n for n in ast.parse((PACKAGE / "__init__.py").read_text()).body if isinstance(n, ast.If))
    told = {a.asname: n.module for n in block.body for a in n.names}
    assert told == groot_cookbook._HOME and all(a.name == a.asname for n in block.body for a in n.names)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'dreem'"): groot_cookbook.dreem


@pytest.mark.parametrize("statement", ["import groot_cookbook", "from groot_cookbook import CookbookError, Dataset, Episode, Modality, convert, validate, write_dataset"])
def test_importing_is_light(statement):
    script = f"import json, sys\n{statement}\nprint(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT).stdout)
    assert not loaded


@pytest.mark.parametrize("name, module, extra", [("GrootPolicy", "torch", "models"), ("demonstrate", "mujoco", "workspace"), ("export_policy", "onnx", "export"), ("sign", "c2pa", "sign")])
def test_a_missing_extra_is_named(name, module, extra):
    "In a process in which the module cannot be imported, as in an environment without the extra."
    script = f"import sys\nsys.modules[{module!r}] = None\nfrom groot_cookbook import CookbookError\ntry: from groot_cookbook import {name}\nexcept CookbookError as e: print(e)"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert f"{module} is not installed" in said and f"[{extra}]" in said


def test_the_base_needs_what_the_data_room_imports_and_nothing_more():
    "Modules that are loaded by checking and converting a dataset, traced in a process of their own."
    script = "import sys; bare = set(sys.modules); from groot_cookbook import Dataset, convert, validate; from groot_cookbook import cli; print(*{m.partition('.')[0] for m in set(sys.modules) - bare})"
    loaded = set(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()) - set(sys.stdlib_module_names)
    names = {"yaml": "pyyaml"}
    third_party = {names.get(m, m) for m in loaded if not m.startswith("_")} - {"groot_cookbook", "cython_runtime", "cloudpickle"}      # pyarrow takes the last along where it is
    assert third_party == set(core.requirements()[""])


# --- what is said of it ------------------------------------------------------------------------------------------

ARRAY = re.compile(r"^(?!dict|list|tuple).*\b(ndarray|Tensor)\b")
SHAPE = re.compile(r"\((?:\.\.\.|[A-Za-z0-9][\w'*+/ -]*)(?:, ?(?:\.\.\.|[\w'*+/ -]+))*,?\)")             # (T, H, W, 3), (..., D), (N,)


def functions(path: Path):
    "Every public function, class and method of a module: its name, its node, and what is said of it, as docstring or as comments in its signature."
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    def walk(body, prefix):
        for n in body:
            if not isinstance(n, (ast.FunctionDef, ast.ClassDef)) or n.name.startswith("_"): continue
            end = max(n.lineno, n.body[0].lineno - 1)
            yield prefix + n.name, n, lines, " ".join([*(line.partition("#")[2].strip() for line in lines[n.lineno - 1:end]), ast.get_docstring(n) or ""]).strip()
            if isinstance(n, ast.ClassDef): yield from walk(n.body, f"{prefix}{n.name}.")
    return walk(ast.parse(source).body, f"{path.stem}.")


MODULES = sorted(p for p in PACKAGE.glob("*.py") if not p.stem.startswith("_"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_everything_public_says_what_it_does(path):
    "A docstring; where a function is one line, the comment behind it will do."
    assert not [name for name, _, _, said in functions(path) if not said]


@pytest.mark.parametrize("path", [p for p in MODULES if p.stem in groot_cookbook._HOME.values()], ids=lambda p: p.stem)
def test_arrays_come_with_their_shapes(path):
    "In the modules that the surface lives in: wherever an array or a tensor goes in, comes out or is kept, its shape is told, `(T, H, W, 3) uint8`."
    silent = []
    for name, node, lines, said in functions(path):
        if isinstance(node, ast.ClassDef):
            silent += [f"{name}.{f.target.id}" for f in node.body if isinstance(f, ast.AnnAssign) and ARRAY.search(ast.unparse(f.annotation)) and not SHAPE.search(lines[f.lineno - 1].partition("#")[2])]
        else:
            hints = [a.annotation for a in (*node.args.args, *node.args.kwonlyargs) if a.annotation] + [node.returns] * bool(node.returns)
            if any(ARRAY.search(ast.unparse(h)) for h in hints) and not SHAPE.search(said): silent.append(name)
    assert not silent


def test_the_readme_names_the_whole_surface():
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Using the library")[1].split("\n## ")[0]
    assert not [n for n in SURFACE if f"`{n}`" not in section]


def test_types_hold():
    "All of the package, as [tool.mypy] in pyproject.toml says."
    pytest.importorskip("mypy", reason="the dev extra is not installed")
    done = subprocess.run([sys.executable, "-m", "mypy"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
