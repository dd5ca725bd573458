"""Make what a workshop needs: `make workshop`, or python workshop/make.py [FOLDER]

FOLDER (default _workshop) gets `learners/`, copies of the ten chapters without outputs in which a few definitions are left to be written;
`run/`, a copy of runs/smoke that they read and write, so that any chapter can be worked on by itself; and `slides/`, one page a chapter.
The plans in workshop/README.md are rendered anew. A FOLDER of before is set aside, with what learners wrote in it.
"""
from __future__ import annotations

import shutil, sys, time
from pathlib import Path

import learners, plan, slides
from groot_cookbook.chapters import ROOT
from groot_cookbook.core import STAGES, CookbookError, only_own, require


def own_run(source: Path, to: Path) -> Path:
    "A finished run to work in: what learners break there, they break in the copy."
    for stage in require(source, *STAGES): shutil.copytree(stage, to / stage.name)
    return to


def make(to: Path, run: Path = ROOT / "runs" / "smoke") -> Path:
    part = only_own(to, "a workshop", "learners").with_name(f".{to.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    own_run(run, part / "run")
    learners.write(part / "learners", to / "run")
    for chapter in learners.book(): slides.write(chapter, part / "slides" / f"{chapter.name}.html")
    if (to / "learners").is_dir():                  # and perhaps what they have written
        before = to.rename(to.with_name(f"{to.name}.{time.strftime('%Y%m%d-%H%M%S')}"))
        print(f"The workshop of before is in {before.name}/")
    part.rename(to)
    plan.render()
    return to


if __name__ == "__main__":
    try: print(f"Learners' copies, a run for them and slides are in {make(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / '_workshop').name}/")
    except CookbookError as e: sys.exit(str(e))
