"""The numbered notebooks as the runner sees them: what they promise, what their `parameters` cells declare, what a profile tells them."""
from __future__ import annotations

import ast, io, json, re, tokenize
from dataclasses import dataclass
from pathlib import Path

import yaml

from . import core
from .core import CookbookError

ROOT = Path(core.__file__).parent.parent
LIMITS = {"cell": 600, "chapter": 1200}     # seconds, unless the profile's `limits` block says otherwise
SPINE = "0"                                 # chapters 00 to 09 make the pipeline; later shelves run by --only


@dataclass(frozen=True)
class Parameter:
    "One line of a chapter's `parameters` cell."
    name: str
    default: object
    help: str = ""

    @property
    def kind(self) -> str: return "any" if self.default is None else type(self.default).__name__  # name of its type

    def accept(self, value, where: str):
        "`value`, if its type is that of the default (an int passes for a float); a CookbookError otherwise."
        want = type(self.default)
        if self.default is None or (type(value) is want) or (want is tuple and isinstance(value, list)): return value
        if want is float and type(value) is int: return float(value)
        if want is float and isinstance(value, str):          # YAML reads 1e-3 as text
            try: return float(value)
            except ValueError: pass
        raise CookbookError(f"{self.name} = {value!r} is of type {type(value).__name__}", where, f"{self.name} is declared as {self.kind}, for example {self.default!r}")

    def parse(self, text: str, where: str):
        "The same from a command line."
        if isinstance(self.default, str): return text
        if type(self.default) is int and re.fullmatch(r"[+-]?\d+", text): return int(text)           # YAML would read 010 as eight,
        try: value = yaml.safe_load(text)
        except yaml.YAMLError: value = text
        return self.accept(text if type(value) is int is type(self.default) else value, where)      # and 1:20 as eighty


@dataclass(frozen=True)
class Chapter:
    "A numbered notebook."
    path: Path

    @property
    def name(self) -> str: return self.path.stem  # `03_idm`

    @property
    def cells(self) -> list[dict]:
        "The notebook's cells, each source as one string."
        return [{**c, "source": "".join(c["source"])} for c in json.loads(self.path.read_text())["cells"]]

    @property
    def title(self) -> str: return next((line[2:] for line in self._opening() if line.startswith("# ")), self.name)

    @property
    def promise(self) -> str: return next((line[1:].strip(" *") for line in self._opening() if line.startswith(">")), "")  # the quote under the title

    @property
    def makes(self) -> str:
        "The 'Makes' cell of the opening table."
        rows = [[c.strip() for c in line.strip("| ").split("|")] for line in self._opening() if line.startswith("|")]
        return rows[2][rows[0].index("Makes")] if len(rows) > 2 and "Makes" in rows[0] and len(rows[2]) == len(rows[0]) else ""

    def _opening(self) -> list[str]:
        return [line for c in self.cells[:3] if c["cell_type"] == "markdown" for line in c["source"].splitlines()]

    def parameters(self) -> dict[str, Parameter]:
        "What the `parameters` cell declares: name, default and the comment behind it."
        tagged = [c["source"] for c in self.cells if "parameters" in c.get("metadata", {}).get("tags", [])]
        if len(tagged) != 1: raise CookbookError(f"{len(tagged)} cells are tagged `parameters`", self.path, "A chapter has exactly one")
        comments = {t.start[0]: t.string.lstrip("# ") for t in tokenize.generate_tokens(io.StringIO(tagged[0]).readline) if t.type == tokenize.COMMENT}
        found = {}
        for node in ast.parse(tagged[0]).body:
            try: (target,), value = node.targets, ast.literal_eval(node.value)
            except (AttributeError, ValueError) as e: raise CookbookError(f"line {node.lineno} of the parameters cell is not `name = literal`", self.path) from e
            found[target.id] = Parameter(target.id, value, comments.get(node.end_lineno, ""))
        return found


def chapters(root: Path = ROOT) -> list[Chapter]:
    "All numbered notebooks, in order."
    found = [Chapter(p) for p in sorted((root / "nbs").glob("[0-9][0-9]_*.ipynb"))]
    if not found: raise CookbookError("no numbered notebooks", root / "nbs", "Work from a checkout of the project: pip install -c constraints.txt -e '.[all]'")
    return found


def pick(available: list[Chapter], name: str) -> Chapter:
    "The chapter called `03`, `idm` or `03_idm`."
    for c in available:
        if name in (c.name, c.name[:2], c.name[3:]): return c
    raise CookbookError(f"no chapter {name!r}", "", "There are: " + ", ".join(c.name for c in available))


def profiles(root: Path = ROOT) -> list[str]: return sorted(p.stem for p in (root / "nbs" / "params").glob("*.yaml"))  # names of all profiles


def read_profile(name: str, root: Path = ROOT) -> dict:
    "The blocks of a profile, by chapter; also `limits`."
    path = root / "nbs" / "params" / f"{name}.yaml"
    if not path.is_file(): raise CookbookError(f"no profile {name!r}", path.parent, "There are: " + ", ".join(profiles(root)))
    try: blocks = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as e: raise CookbookError(f"not readable as YAML ({' '.join(str(e).split())})", path) from e
    if not isinstance(blocks, dict) or not all(isinstance(b or {}, dict) for b in blocks.values()): raise CookbookError("a profile holds one block per chapter", path)
    wrong = {k: v for k, v in (blocks.get("limits") or {}).items() if k not in LIMITS or type(v) is not int or v < 1}
    if wrong: raise CookbookError(f"limits: {wrong}", path, "Limits are whole seconds: " + ", ".join(LIMITS))
    return {k: v or {} for k, v in blocks.items()}


def resolve(available: list[Chapter], blocks: dict, where: str = "profile", sets=()) -> dict[str, dict]:
    "Parameters per chapter: defaults, overridden by the profile's `blocks`, then by `sets` of 'chapter.name=value'."
    declared = {c.name: c.parameters() for c in available}
    params = {c: {n: p.default for n, p in ps.items()} for c, ps in declared.items()}

    def known(chapter: str, name: str, where: str) -> Parameter:
        if name == "run": raise CookbookError("the run folder is not a chapter's own", where, "Name it once, for all chapters, with --out")
        if name in declared[chapter]: return declared[chapter][name]
        raise CookbookError(f"{chapter} has no parameter {name!r}", where, "It declares: " + ", ".join(declared[chapter]))

    for chapter, block in blocks.items():
        if chapter == "limits": continue
        if chapter not in declared: raise CookbookError(f"no chapter {chapter!r}", where, "There are: " + ", ".join(declared))
        for name, value in block.items(): params[chapter][name] = known(chapter, name, where).accept(value, f"{where}, {chapter}")
    for text in sets:
        left, eq, value = text.partition("=")
        chapter, dot, name = left.strip().partition(".")
        if not (eq and dot and name): raise CookbookError(f"cannot read {text!r}", "-p", "Write it as CHAPTER.name=value, for example -p 03_idm.seed=1")
        chapter = pick(available, chapter).name
        params[chapter][name] = known(chapter, name, "-p").parse(value.strip(), f"-p {text}")
    return params
