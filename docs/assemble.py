"""Assemble the pages of the site: python docs/assemble.py FOLDER, then sphinx-build -c docs FOLDER OUT (`make docs` does both).

Chapters are the notebooks with the outputs they were committed with; an API page is written for every module, from its signatures, the
comments beside its parameters and its docstrings; the gallery is every figure of the book with the words that stand for it."""
from __future__ import annotations

import base64, dataclasses, html, importlib, inspect, re, shutil, sys
from functools import cache
from pathlib import Path

import nbformat
from fastcore.docments import docments
from PIL import Image

import groot_cookbook
from groot_cookbook import core

ROOT = Path(__file__).parent.parent
NOTEBOOKS = {p.stem: p.relative_to(ROOT / "nbs") for p in sorted((ROOT / "nbs").rglob("[0-9]*.ipynb"))}
SHORT = {stem.split("_")[0]: stem for stem in NOTEBOOKS}       # 06a -> 06a_optimizer
KINDS = {"image/png": "png", "image/jpeg": "jpg"}


def linked(text: str, page: Path) -> str:
    "Names of notebooks in code font become links; code blocks stay as they are."
    up = "../" * (len(page.parts) - 1)
    def link(m: re.Match) -> str:
        stem = SHORT.get(m[1].split("_")[0])
        named = stem and m[1] in (stem, stem.split("_")[0]) and NOTEBOOKS[stem] != page
        return f"[{m[0]}]({up}{NOTEBOOKS[stem]})" if named else m[0]
    parts = re.split(r"(```.*?```|\[[^\]]*\]\([^)]*\))", text, flags=re.S)
    return "".join(p if i % 2 else re.sub(r"`(?:nbs/)?(\d\d[a-z]?(?:_\w+)?)(?:\.ipynb)?`", link, p) for i, p in enumerate(parts))


def chapter(page: Path, out: Path) -> list[tuple[Path, str]]: # figures with their words
    "A notebook as a page: no machinery, alt text on every figure, names of other notebooks linked."
    nb, figures = nbformat.read(ROOT / "nbs" / page, 4), []
    for i, cell in enumerate(nb.cells):
        if cell.cell_type == "markdown": cell.source = linked(cell.source, page); continue
        if cell.cell_type != "code": continue
        if cell.source.startswith("#| default_exp"): cell.metadata["tags"] = ["remove-cell"]
        if re.search(r"^strip\(\d+\)$", cell.source, re.M): cell.metadata["tags"] = ["remove-input"]
        cell.source = re.sub(r"^#\| export\n", "", cell.source)
        for output in cell.outputs:
            for kind in KINDS.keys() & output.get("data", {}).keys():
                words = output.metadata.get(kind, {}).get("alt", "")
                cell.metadata["mystnb"] = {"image": {"alt": words}}
                picture = out / "extra" / "figures" / f"{page.stem}-{i}.{KINDS[kind]}"
                if "remove-input" in cell.metadata.get("tags", []) or not words: continue
                picture.parent.mkdir(parents=True, exist_ok=True)
                picture.write_bytes(base64.b64decode(output.data[kind]))
                figures.append((picture, words))
    (out / page).parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, out / page)
    return figures


def gallery(figures: dict[str, list[tuple[Path, str]]]) -> str:
    "All figures, chapter by chapter."
    lines = ["# Gallery", "", "Every figure of the book, as the committed run drew it. Each leads to its chapter.", ""]
    for stem, shown in figures.items():
        if not shown: continue
        page = NOTEBOOKS[stem]
        lines += [f"## {title(page)}", "", '<div class="gallery">']
        for picture, words in shown:
            target = page.with_suffix(".html")
            wide = ' class="wide"' if (size := Image.open(picture).size)[0] > 3 * size[1] else ""        # a film strip
            lines.append(f'<figure{wide}><a href="{target}"><img src="figures/{picture.name}" alt="{html.escape(words)}" loading="lazy"></a><figcaption>{html.escape(words)}</figcaption></figure>')
        lines += ["</div>", ""]
    return "\n".join(lines)


@cache
def title(page: Path) -> str:
    first = next(c.source for c in nbformat.read(ROOT / "nbs" / page, 4).cells if c.cell_type == "markdown")
    return first.splitlines()[0].lstrip("# ").replace("`", "")


def parameters(thing) -> list[str]:
    "A table of what goes in: name, type, default, and the comment beside it with shape and unit."
    try: notes, signature = docments(thing, full=True, returns=True), inspect.signature(thing)
    except (TypeError, ValueError, OSError, SyntaxError): return []
    if whole(thing): notes = {}                          # one line, one comment: it speaks of all of it
    text = lambda v: v if isinstance(v, str) else inspect.formatannotation(v) if v is not inspect.Parameter.empty else ""
    cell = lambda s: str(s or "").replace("|", "\\|").replace("\n", " ")
    rows = []
    for name, p in signature.parameters.items():
        said = (notes.get(name) or {}).get("docment") or ""
        default = "" if p.default is p.empty or dataclasses.is_dataclass(thing) and "factory" in repr(p.default).lower() else f"`{p.default!r}`"
        rows.append((f"`{name}`", f"`{text(p.annotation)}`" if text(p.annotation) else "", default, said))
    back = (notes.get("return") or {}).get("docment")
    if back: rows.append(("*returns*", f"`{text(signature.return_annotation)}`" if text(signature.return_annotation) else "", "", back))
    if not any(r[3] for r in rows): return []
    return ["", "| | type | default | |", "|---|---|---|---|", *("| " + " | ".join(map(cell, r)) + " |" for r in rows), ""]


def whole(thing) -> str:
    "The comment behind a signature of one line: shapes and units of what goes in and comes out."
    try: source = inspect.getsource(thing)
    except (OSError, TypeError): return ""
    found = re.match(r"\s*(?:@[^\n]*\n\s*)*def [^\n]*?:(?: [^\n#]*)?  ?# ?([^\n]*)\n", source)
    return found[1] if found else ""


def signature(name: str, thing) -> str:
    "As one would write it: on one line, or a parameter a line."
    try: s = inspect.signature(thing)
    except (TypeError, ValueError): return name
    line = f"{name}{s}".replace("'", "").removesuffix(" -> None")
    if len(line) < 100: return line
    plain = [str(p).replace("'", "") for p in s.parameters.values()]
    returns = "" if s.return_annotation in (s.empty, None, "None") else f" -> {inspect.formatannotation(s.return_annotation)}".replace("'", "")
    return f"{name}(" + "".join(f"\n    {p}," for p in plain) + f"\n){returns}"


def shapes(thing) -> list[str]:
    said = whole(thing)
    return ["", f"Shapes and units: {said.replace('|', ' or ')}", ""] if said else []


def entry(name: str, thing, module) -> list[str]:
    "One class or function: signature, docstring, parameters, and the methods of a class."
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        said = re.search(rf"^{name}\b.*?# (.*)$", inspect.getsource(module), re.M)
        return [f"## `{name}`", "", f"```text\n{name} = {shorter(thing)}\n```", "", said[1] if said else "", ""]
    doc = inspect.getdoc(thing) or ""
    if inspect.isclass(thing) and doc.startswith(f"{name}("): doc = ""            # what a dataclass writes by itself
    lines = [f"## `{name}`", "", f"```python\n{'class ' if inspect.isclass(thing) else ''}{signature(name, thing)}\n```", "", html.escape(doc, quote=False), "", *shapes(thing), *parameters(thing), ""]
    if inspect.isclass(thing):
        own = [(k, getattr(thing, k)) for k, v in vars(thing).items() if not k.startswith("_") and callable(getattr(thing, k)) and inspect.getdoc(getattr(thing, k))]
        for k, method in own:
            if inspect.isfunction(method) or inspect.ismethod(method): lines += [f"**`{signature(f'{name}.{k}', method)}`**", "", html.escape(inspect.getdoc(method), quote=False), "", *shapes(method), *parameters(method), ""]
    return lines


def shorter(thing) -> str:
    "The value of a constant, functions and classes by their names."
    named = {k: getattr(v, "__name__", v) for k, v in thing.items()} if isinstance(thing, dict) else thing
    text = re.sub(r"<(?:class|function) '?(?:[\w.]*\.)?(\w+)'?[^>]*>", r"\1", repr(named))
    return text if len(text) < 400 else text[:400] + " ..."


def module_page(path: Path) -> str:
    "One module, in the order in which its notebook defines things."
    module = importlib.import_module(f"groot_cookbook.{path.stem}")
    source = path.read_text(encoding="utf-8")
    origin = re.search(r"File to edit: \.\./nbs/(?:train/)?(\w+)\.ipynb", source)
    lines = [f"# `groot_cookbook.{path.stem}`", "", html.escape(inspect.getdoc(module) or "", quote=False), ""]
    if origin: lines += [f"Made by notebook [{origin[1]}](../{NOTEBOOKS[origin[1]]}), which explains it.", ""]
    for name in getattr(module, "__all__", None) or [k for k, v in vars(module).items() if not k.startswith("_") and getattr(v, "__module__", "") == module.__name__]:
        lines += entry(name, getattr(module, name), module)
    return "\n".join(lines)


def surface() -> list[str]:
    "What `from groot_cookbook import ...` gives, with the first sentence of each."
    rows = [f"| [`{name}`]({home}.md) | {(inspect.getdoc(getattr(groot_cookbook, name)) or '').splitlines()[0].replace('|', 'or')} |" for name, home in sorted(groot_cookbook._HOME.items())]
    return ["# The library", "", "`from groot_cookbook import ...` gives these, and they stay.", "", "| name | what it is |", "|---|---|", *rows, ""]


def tree(caption: str, pages: list[str], depth: int = 1) -> str:
    return "\n".join(["```{toctree}", *([f":caption: {caption}"] if caption else []), f":maxdepth: {depth}", ":hidden:", "", *pages, "```", ""])


def main(out: Path) -> None:
    shutil.rmtree(core.only_own(out, "a folder of pages", "gallery.md"), ignore_errors=True)
    out.mkdir(parents=True)
    figures = {stem: chapter(page, out) for stem, page in NOTEBOOKS.items()}
    (out / "gallery.md").write_text(gallery(figures), encoding="utf-8")
    shutil.copytree(ROOT / "nbs" / "images", out / "nbs" / "images")
    modules = sorted(p for p in (ROOT / "groot_cookbook").glob("*.py") if not p.stem.startswith("_"))
    (out / "api").mkdir()
    for path in modules: (out / "api" / f"{path.stem}.md").write_text(module_page(path), encoding="utf-8")
    (out / "api" / "index.md").write_text("\n".join([*surface(), "## Every module", "", "Each is made by a notebook; comments beside parameters give shapes and units.", "",
        *(f"- [`{p.stem}`]({p.stem}.md)" for p in modules), "", tree("", [p.stem for p in modules])]), encoding="utf-8")
    inside = lambda text: linked(re.sub(r"\]\(nbs/((?!images)[\w/]+)\.ipynb\)", r"](\1.ipynb)", text).replace("](nbs/train)", "](train/90_tiny_vae.ipynb)")
                                 .replace("](nbs/solutions)", "](solutions/00s_workspace.ipynb)").replace("](workshop/README.md)", "](teaching.md)"), Path("index.md"))
    spine, letters, trained, solved = ([f"{s.split('_')[0]} {title(p)} <{p.with_suffix('')}>" for s, p in NOTEBOOKS.items() if kind(s, p)] for kind in (
        lambda s, p: len(p.parts) == 1 and s[2] == "_", lambda s, p: len(p.parts) == 1 and s[2] != "_", lambda s, p: p.parts[0] == "train", lambda s, p: p.parts[0] == "solutions"))
    home = inside((ROOT / "README.md").read_text(encoding="utf-8"))
    (out / "index.md").write_text("\n".join([home, tree("The book", [*spine, "gallery"]), tree("Between the chapters", letters), tree("Training the checkpoints", trained), tree("Solutions", solved),
                                              tree("Reference", ["api/index", "teaching", "CONTRIBUTING"], 2)]), encoding="utf-8")
    (out / "CONTRIBUTING.md").write_text(inside((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")), encoding="utf-8")
    (out / "teaching.md").write_text(inside((ROOT / "workshop" / "README.md").read_text(encoding="utf-8").replace("](../nbs/", "](nbs/")), encoding="utf-8")


if __name__ == "__main__": main(Path(sys.argv[1]))
