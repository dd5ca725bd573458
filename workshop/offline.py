"""Pack what a room without network needs: `make offline`, or python workshop/offline.py [FOLDER]

FOLDER (default _offline) gets the project as git knows it, with `_workshop/` if it was made; `wheels/`, all that settings.ini names in the
versions of constraints.txt, for the platform and the Python this runs on; and install.sh, which looks nowhere else. Copy it to a stick.
"""
from __future__ import annotations

import shutil, subprocess, sys
from pathlib import Path

from groot_cookbook.core import CookbookError, only_own

ROOT = Path(__file__).resolve().parent.parent
BUILDS = ("pip", "setuptools", "wheel")       # what an editable install builds with


def project(to: Path) -> Path:
    "The files that are, or would be, committed, and the learners' copies."
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for path in (ROOT / n for n in names.split("\0") if n):
        if not path.is_file(): continue       # removed, and not committed yet
        (goal := to / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, goal)
    if (ROOT / "_workshop").is_dir(): shutil.copytree(ROOT / "_workshop", to / "_workshop")
    return to


def wheels(source: Path, to: Path) -> None:
    "torch first, as in the Makefile: whichever build this machine is given is the one that is packed."
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "-c", "constraints.txt", "--find-links", str(to.resolve()), "-w", str(to.resolve())]
    for wanted in (["torch"], [*BUILDS, ".[all]"]): subprocess.run([*pip, *wanted], cwd=source, check=True)
    for left in (source / "build", *source.glob("*.egg-info"), *to.glob("groot_cookbook-*.whl")):       # the book is installed from its folder
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def pack(to: Path) -> Path:
    "Out of sight, then renamed: half a pack is never carried into a room."
    part = only_own(to, "a pack", "install.sh").with_name(f".{to.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    wheels(project(part / "groot_cookbook"), part / "wheels")
    shutil.copy(ROOT / "workshop" / "install.sh", part)
    shutil.rmtree(to, ignore_errors=True)
    part.rename(to)
    return to


if __name__ == "__main__":
    try: made = pack(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_offline")
    except CookbookError as e: sys.exit(str(e))
    size = sum(p.stat().st_size for p in made.rglob("*") if p.is_file())
    print(f"{made.name}: {len(list(made.glob('wheels/*.whl')))} wheels, {size / 1e9:.1f} GB in all. In the room: sh install.sh")
