"""One self-contained page about a run: what each chapter made, its figures, numbers, seconds, memory and versions."""
from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape
from pathlib import Path

from . import runner
from .chapters import ROOT, Chapter, chapters
from .core import CookbookError, Manifest, replacing, run_facts

CSS = """
:root{color-scheme:light dark;--ink:#22313f;--soft:#5b6b78;--paper:#fbfbf9;--card:#fff;--line:#dde4e8;--accent:#b8324a}
@media(prefers-color-scheme:dark){:root{--ink:#e6ebef;--soft:#9fb0bd;--paper:#14191d;--card:#1c2329;--line:#313c45;--accent:#ff8095}}
*{box-sizing:border-box}body{margin:0 auto;padding:1.2rem;max-width:60rem;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.6rem;margin:.2rem 0}h2{font-size:1.2rem;margin:0}a{color:var(--accent)}code{font:.85em ui-monospace,monospace;overflow-wrap:anywhere}
section{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:1rem;margin:1rem 0}
.soft{color:var(--soft)}em{color:var(--soft)}figure{margin:1rem 0}figure img{max-width:100%;height:auto;background:#fff;border-radius:.3rem;display:block}
figcaption{color:var(--soft);font-size:.85rem}.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}td,th{padding:.2rem .8rem .2rem 0;text-align:left;border-bottom:1px solid var(--line)}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}summary{cursor:pointer}.bad{color:var(--accent);font-weight:600}
"""
PICTURES = ("image/png", "image/webp", "image/gif", "image/jpeg")


@dataclass
class Made:
    "One chapter's part of a run."
    chapter: Chapter
    manifest: Manifest | None
    note: dict                      # what the runner wrote into the executed notebook
    figures: list[tuple[str, str]]  # (data URL, alt text)
    numbers: list[tuple[str, list[dict]]]

    @property
    def seconds(self) -> float: return self.note.get("seconds") or (self.manifest.seconds if self.manifest else 0.0)  # that the chapter took


def gather(out: Path, root: Path = ROOT) -> list[Made]:
    "Every chapter of a run folder that has been made or has failed, in order."
    found = []
    for chapter in chapters(root):
        noted = runner.record(runner.notebook(out, chapter.name))
        try: manifest = Manifest.read(out, chapter.name)
        except CookbookError: manifest = None
        if not manifest and not noted: continue
        current = manifest and noted.get("made") == manifest.digest
        found.append(Made(chapter, manifest, noted, figures(runner.notebook(out, chapter.name)) if current else [], numbers(out / chapter.name)))
    return found


def figures(notebook: Path) -> list[tuple[str, str]]:
    "The pictures of an executed notebook with their alt texts; the pipeline strip on top of each chapter is left out."
    found = []
    for cell in json.loads(notebook.read_text())["cells"]:
        for output in cell.get("outputs", []):
            for kind in PICTURES:
                if kind not in output.get("data", {}): continue
                alt = output.get("metadata", {}).get(kind, {}).get("alt", "")
                if not alt.startswith("The ten stages"): found.append((f"data:{kind};base64," + "".join(output["data"][kind]).replace("\n", ""), alt))
                break
    return found


def numbers(stage: Path, most: int = 16) -> list[tuple[str, list[dict]]]:
    "The JSON files that a stage hands over as small tables: single values together, and each list of records by itself."
    found = []
    for path in sorted(stage.glob("*.json")):
        if path.name == "manifest.json": continue
        try: value = json.loads(path.read_text())
        except ValueError: continue
        value = value if isinstance(value, dict) else {"": value}
        single = [{"": k, "value": v} for k, v in _flat({k: v for k, v in value.items() if not isinstance(v, list)})]
        if single: found.append((path.stem, single[:most]))
        for key, rows in value.items():
            if isinstance(rows, list) and rows and all(isinstance(r, dict) for r in rows):
                rows = [dict(_flat(r)) for r in rows]
                found.append((f"{path.stem} {key}".strip(), rows if len(rows) <= most else [_summary(rows)]))
    return found


def _flat(value, depth: int = 3, prefix: str = ""):
    if isinstance(value, dict) and depth:
        for k, v in value.items(): yield from _flat(v, depth - 1, f"{prefix} {k}".strip())
    elif isinstance(value, bool): yield prefix, value
    elif isinstance(value, (int, float)): yield prefix, f"{value:.4g}" if isinstance(value, float) else value
    elif isinstance(value, str) and len(value) < 40: yield prefix, value


def _summary(rows: list[dict]) -> dict:
    "Many records in one line: how many there are, how many say yes, the means of what is counted."
    line: dict[str, object] = {"records": len(rows)}
    for key in rows[0]:
        values = [r[key] for r in rows if key in r]
        if all(isinstance(v, bool) for v in values): line[key] = f"{sum(values)} of {len(values)}"
        else:
            try: line[f"mean {key}"] = f"{sum(map(float, values)) / len(values):.4g}"
            except ValueError: pass
    return line


def build(out: Path, root: Path = ROOT) -> Path:
    "Write `report.html` into a run folder and say where it is."
    out = Path(out).resolve()
    made = gather(out, root)
    if not made: raise CookbookError("nothing has been run here", out, "groot-cookbook run --out " + str(out))
    about = run_facts(out)
    page = ["<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width,initial-scale=1'>",
            f"<title>{escape(out.name)}: GR00T cookbook</title><style>{CSS}</style><main>", f"<h1>The data engine, run <em>{escape(out.name)}</em></h1>",
            f"<p class='soft'>Made by <code>{escape(about.get('command', 'groot-cookbook'))}</code>, profile <b>{escape(about.get('profile', 'unknown'))}</b>. "
            f"{sum(m.seconds for m in made):.0f} s in all; the largest process held {max((m.manifest.peak_mb for m in made if m.manifest), default=0)} MB.</p>", _overview(made)]
    page += [_section(m, {**about.get("params", {}).get(m.chapter.name, {}), **(m.manifest.params if m.manifest else {})}, out) for m in made]       # those that made it, whatever the last command said
    page.append(_versions(made))
    with replacing(out / "report.html") as part: part.write_text("\n".join([*page, "</main></html>"]), encoding="utf-8")
    return out / "report.html"


def _overview(made: list[Made]) -> str:
    rows = "".join(f"<tr><td><a href='#{m.chapter.name}'>{m.chapter.name}</a></td><td>{escape(_plain(m.chapter.makes))}{_state(m)}</td>"
                   f"<td class=n>{m.seconds:.1f}</td><td class=n>{m.manifest.peak_mb if m.manifest else ''}</td></tr>" for m in made)
    return f"<section class=wide><table><tr><th>chapter</th><th>makes</th><th class=n>seconds</th><th class=n>MB</th></tr>{rows}</table></section>"


def _state(m: Made) -> str:
    if m.note.get("failed"): return f" <span class=bad>failed: {escape(m.note['failed'])}</span>"
    return "" if m.figures or not m.manifest or m.note.get("made") == m.manifest.digest else " <span class=soft>(made outside the runner: no figures kept)</span>"


def _section(m: Made, params: dict, out: Path) -> str:
    parts = [f"<section id='{m.chapter.name}'><h2>{escape(m.chapter.name[:2])} · {escape(_plain(m.chapter.title))}</h2><p><em>{escape(_plain(m.chapter.promise))}</em>{_state(m)}</p>"]
    parts += [f"<figure><img src='{url}' alt='{escape(alt, quote=True)}'><figcaption>{escape(alt)}</figcaption></figure>" for url, alt in m.figures]
    parts += [_table(title, rows, is_open=True) for title, rows in m.numbers]
    if params: parts.append(_table("parameters", _pairs(params)))
    if m.manifest: parts.append(_table("files", _pairs({f: h[:12] for f, h in list(m.manifest.outputs.items())[:40]})))
    link = runner.notebook(out, m.chapter.name)
    if link.is_file(): parts.append(f"<p><a href='{escape(link.relative_to(out).as_posix())}'>executed notebook</a></p>")
    return "".join(parts) + "</section>"


def _versions(made: list[Made]) -> str:
    seen = {}
    for m in made: seen.update(m.manifest.versions if m.manifest else {})
    return f"<section>{_table('versions', _pairs(seen))}</section>" if seen else ""


def _pairs(values: dict) -> list[dict]: return [{"": k, "value": v} for k, v in values.items()]


def _table(title: str, rows: list[dict], is_open: bool = False) -> str:
    columns = list(dict.fromkeys(k for r in rows for k in r))
    head = "".join(f"<th>{escape(c)}</th>" for c in columns) if columns != ["", "value"] else ""
    body = "".join("<tr>" + "".join(f"<td>{escape(str(r.get(c, '')))}</td>" for c in columns) + "</tr>" for r in rows)
    return f"<details{' open' if is_open else ''}><summary>{escape(title)}</summary><div class=wide><table><tr>{head}</tr>{body}</table></div></details>"


def _plain(text: str) -> str: return text.replace("`", "").replace("*", "")
