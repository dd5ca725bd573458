"The chapters in JupyterLab, as a person runs them: all cells without an error, and a slider that changes its figure. Skipped without a browser or without a finished smoke run."
from pathlib import Path

import lab
import pytest

from groot_cookbook import chapters, core

ROOT = Path(chapters.ROOT)


@pytest.fixture(scope="module")
def jupyterlab():
    if missing := lab.absent(run := ROOT / "runs" / "smoke"): pytest.skip(missing)
    before = [(run / stage / "manifest.json").read_bytes() for stage in core.STAGES]
    with lab.server(run) as address, lab.pages() as new_page: yield address, new_page
    assert before == [(run / stage / "manifest.json").read_bytes() for stage in core.STAGES], "the chapters wrote into this checkout's run instead of into the copy"


@pytest.mark.slow
@pytest.mark.parametrize("stage", core.STAGES)
def test_a_chapter_runs_and_its_figure_follows_the_slider(jupyterlab, stage):
    address, new_page = jupyterlab
    with new_page() as page: seen = lab.play(page, address, stage)
    assert seen["figure_changed"], f"after {len(seen['reactions_ms'])} of five moves the figure stood still"
