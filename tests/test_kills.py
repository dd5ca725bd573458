"Runs that are killed: the experiment of benchmarks/kills.py on two small chapters, and what it would say of a run that is not whole."
import json

import kills
import pytest

from groot_cookbook import core
from test_runner import make


@pytest.mark.slow
def test_two_kills_and_the_same_numbers(tmp_path, monkeypatch):
    (tmp_path / "project").mkdir()
    monkeypatch.setattr(kills, "ROOT", make(tmp_path / "project"))
    assert kills.main(["--kills", "2", "--seed", "1", "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "kills.json").read_text())
    assert {"command", "commit", "hardware", "date", "load_average_before", "versions", "target"} <= set(found) and found["met"]
    assert list(found["undisturbed"]["digests"]) == ["00_first", "01_second"] and sum(r["kills"] for r in found["runs"]) == len(found["rows"]) == 2
    assert all(r["same"] and r["differ"] == r["left"] == [] for r in found["runs"])
    assert all(r["stage"] in ("start", "00_first", "01_second") and r["seconds"] >= 0 and r["survivors"] == 0 and r["torn"] == [] for r in found["rows"])


def test_moments_lie_on_the_undisturbed_run():
    timeline = [("start", 0.0), ("00_first", 2.0), ("01_second", 5.0), ("end", 9.0)]
    assert kills.place(timeline, 1.5) == kills.Moment("start", 1.5) and kills.place(timeline, 8.0) == kills.Moment("01_second", 3.0)
    there = kills.reached(kills.Moment("00_first", 2.5), [s for s, _ in timeline])
    assert [there(kills.Moment(*m)) for m in (("start", 9.0), ("00_first", 2.4), ("00_first", 2.5), ("01_second", 0.0))] == [False, False, True, True]


def test_a_chapter_that_is_not_what_its_manifest_says_is_torn(tmp_path):
    with core.hand_over(tmp_path, "00_workspace", {}) as folder: (folder / "a").write_text("1")
    run = kills.Run(tmp_path, "smoke", [], 1)
    assert run.torn() == [] and list(run.digests()) == ["00_workspace"] and run.leftovers() == []
    (tmp_path / "00_workspace" / "a").write_text("2"), (tmp_path / ".01_episodes.part").mkdir()
    assert run.torn() == ["00_workspace"] and run.leftovers() == [".01_episodes.part"]
