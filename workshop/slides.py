"""A chapter as slides, one file that fetches nothing: `make workshop` writes them, or python workshop/slides.py FILE.html CHAPTER.

Which cells become slides is read off the chapter: a slide for every heading, with what stands right below it (its first paragraph, list, quote
or table); beneath it, one for each figure of that section with the sentence that says what to see, and one for what learners are to write.
The slides are shown by reveal.js 6.0.2, which lies in reveal/ with its licence.
"""
from __future__ import annotations

import re, sys
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import learners
import nbformat
from nbconvert.filters import markdown2html

from groot_cookbook.chapters import Chapter, chapters, pick

REVEAL = Path(__file__).resolve().parent / "reveal"
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<style>{css}</style></head>
<body><div class="reveal"><div class="slides">
{slides}
</div></div>
<script>{js}</script>
<script>Reveal.initialize({{ hash: true, slideNumber: "c/t", center: false, width: 1100, height: 700, margin: .06, transition: "none" }});</script>
</body></html>
"""


@dataclass
class Section:
    "A heading, what stands right below it, and what is shown before the next."
    level: int
    heading: str
    says: str = ""
    shown: list[str] = field(default_factory=list)      # HTML, a slide each


def blocks(markdown: str) -> list[str]:
    "Paragraphs, lists, quotes and tables; a list with blank lines in it is one."
    return [b for b in re.split(r"\n\s*\n(?!\s*(?:[-*]|\d+\.) )", markdown.strip()) if b.strip()]


def page(markdown: str) -> str:
    "Markdown as HTML; links to notebooks, which are not beside the slides, are left as their words."
    html = markdown2html(re.sub(r"\[([^\]]*)\]\((?!http)[^)]*\)", r"\1", markdown))
    return re.sub(r'<a class="anchor-link".*?</a>', "", html)


def picture(output, what: str) -> str:
    "A figure with its words; empty where the output is none, or only the strip on top of every chapter."
    for kind in ("image/png", "image/jpeg"):
        words = output.get("metadata", {}).get(kind, {}).get("alt", "")
        if words and not words.startswith("The ten stages"): return f'<img src="data:{kind};base64,{output["data"][kind].strip()}" alt="{escape(words)}">{page(what)}'
    return ""


def told(cells: list, i: int) -> str:
    "What to see in the figure of cell `i`: the first paragraph after it, unless a heading or code comes first."
    after = cells[i + 1].source if i + 1 < len(cells) and cells[i + 1].cell_type == "markdown" else ""
    return "" if after.startswith("#") else next(iter(blocks(after)), "")


def to_write(source: str, name: str) -> str:
    "What a room is shown of an exercise: the signature with its docstring, and the line that is to be replaced."
    node = learners.definition(source, name)
    lines = learners.blank(source, name).splitlines()[node.lineno - 1:]
    end = next(i for i, line in enumerate(lines) if learners.UNWRITTEN in line) + 1
    return "\n".join(lines[:end])


def sections(chapter: Chapter) -> list[Section]:
    "The chapter's headings in order, each with its slides."
    cells, found = nbformat.read(chapter.path, 4).cells, []
    for i, c in enumerate(cells):
        if c.cell_type == "markdown":
            for part in re.split(r"(?m)^(?=#{1,3} )", c.source):
                if m := re.match(r"(#+) (.+)\n?", part):
                    below = blocks(part[m.end():])
                    opening = m[1] == "#" or below[:1] and below[0].endswith(":")      # the title's promise and table belong together
                    found.append(Section(len(m[1]), m[2], "\n\n".join(below[:2 if opening else 1])))
        else:
            for output in c.get("outputs", []):
                if html := picture(output, told(cells, i)): found[-1].shown.append(html)
            for name in learners.tagged(c, "exercise"):
                ask = learners.EXERCISES[chapter.name][name]["hint"]
                found[-1].shown.append(page(f"**Yours to write: `{name}`**\n\n{ask}\n\n```python\n{to_write(c.source, name)}\n```"))
    return found


def slides(chapter: Chapter) -> str:
    "One stack of slides for each heading."
    stacks = []
    for s in sections(chapter):
        top = f"<section>{page('#' * min(s.level, 2) + ' ' + s.heading)}{page(s.says)}</section>"
        rest = [f'<section><h2 class="again">{escape(s.heading.replace("`", ""))}</h2>{html}</section>' for html in s.shown]
        stacks.append(f"<section>{top}{''.join(rest)}</section>" if rest else top)
    return "\n".join(stacks)


def write(chapter: Chapter, to: Path) -> Path:
    css, js = ("\n".join((REVEAL / name).read_text(encoding="utf-8") for name in names) for names in (("reveal.css", "theme.css"), ("reveal.js",)))
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(PAGE.format(title=escape(chapter.title), css=css, js=js.replace("</script", "<\\/script"), slides=slides(chapter)), encoding="utf-8")
    return to


if __name__ == "__main__": print(write(pick(chapters(), sys.argv[2]), Path(sys.argv[1])))
