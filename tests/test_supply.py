"What the project brings along: every package that gets installed is pinned, fits the others, and has a licence that we have looked at. Known vulnerabilities need a service on the network: .github/workflows/tests.yml asks it."
import re, subprocess, sys
from functools import cache
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from groot_cookbook import chapters
from groot_cookbook.core import plain, requirements

# Permissive ones, and those that ask for no more than their own files' source (MPL, LGPL): nothing here is linked into a program of ours or changed.
FINE = re.compile(r"^\(*(MIT|BSD|0BSD|3-Clause BSD|BSL|Apache|ISC|PSF|Python|CNRI|MPL|Mozilla|LGPL|GNU Lesser|Zlib|CC0|Public Domain|HPND|Unlicense|Historical)", re.I)
CUDA = re.compile(r"(nvidia|cuda|triton)\b")          # torch's CUDA build brings NVIDIA's libraries, under NVIDIA's licence, and pins them itself


@cache
def brought() -> dict[str, metadata.Distribution]:
    "Every distribution that `[all]` leads to, by plain name, as far as it is installed."
    found, todo = {}, [(Requirement(r), "") for extra, names in requirements().items() if extra not in ("real", "all") for r in names]
    seen = set()
    while todo:
        r, asked = todo.pop()
        if r.marker and not r.marker.evaluate({"extra": asked}) or (key := (plain(r.name), *sorted(r.extras))) in seen: continue
        seen.add(key)
        try: found[key[0]] = d = metadata.distribution(r.name)
        except metadata.PackageNotFoundError: continue          # test_project.py says so of our own; of others', `pip check`
        todo += [(Requirement(line), extra) for line in d.requires or [] for extra in ("", *r.extras)]
    return {name: d for name, d in found.items() if not CUDA.match(name)}


def licences(d: metadata.Distribution) -> list[str]:
    "What must all be accepted, each as the alternatives that its author offers, separated by ' OR '."
    if expression := d.metadata["License-Expression"]: return re.split(r" AND ", expression)
    offered = [c.split(" :: ")[-1] for c in d.metadata.get_all("Classifier") or [] if c.startswith("License :: ") and not c.endswith("OSI Approved")]
    return [" OR ".join(offered or [(d.metadata["License"] or "none told").splitlines()[0]])]


def test_everything_that_is_brought_along_is_pinned():
    pins = dict(line.split("==") for line in (chapters.ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    pins = {plain(name): version for name, version in pins.items()}
    off = {name: d.version for name, d in brought().items() if pins.get(name) != d.version.split("+")[0]}
    assert len(brought()) > 150 and not off, "as installed; add or correct them in constraints.txt"


def test_every_licence_is_one_we_know():
    strange = {name: bad for name, d in brought().items() if (bad := [part for part in licences(d) if not any(FINE.match(a.strip()) for a in part.split(" OR "))])}
    assert not strange


@pytest.mark.parametrize("text, fine", [("MIT", True), ("GPL-3.0-only OR MIT", True), ("GPL-3.0-only AND MIT", False), ("LicenseRef-NVIDIA-Proprietary", False), ("AGPL-3.0-only", False)])
def test_the_list_refuses_what_it_should(text, fine):
    class One:
        metadata = {"License-Expression": text}
    assert all(any(FINE.match(a.strip()) for a in part.split(" OR ")) for part in licences(One)) is fine


def test_what_is_installed_fits_together():
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
