"A real robot in place of the workspace: the whole chain on the GR-1 sample, at smoke size."
import json

import pytest

from groot_cookbook import cli
from groot_cookbook.core import STAGES, Manifest
from groot_cookbook.episodes import Dataset

pytestmark = [pytest.mark.gr1, pytest.mark.slow]


@pytest.fixture(scope="module")
def run(gr1, tmp_path_factory):
    out = tmp_path_factory.mktemp("gr1") / "run"
    assert cli.main(["run", "--profile", "smoke", "--dataset", str(gr1), "--out", str(out)]) == 0
    return out


def read(path): return json.loads(path.read_text())


def test_every_stage_is_there(run):
    for stage in STAGES: assert Manifest.read(run, stage).outputs
    assert (run / "report.html").stat().st_size > 50_000


def test_its_warts_are_named_and_its_last_episode_held_out(run):
    source = read(run / "01_episodes" / "source.json")
    assert (source["kind"], source["embodiment"]) == ("dataset", "gr1") and source["findings"] == 6
    assert len(Dataset(run / "01_episodes" / "teleop")) == 4 and len(Dataset(run / "01_episodes" / "heldout")) == 1


def test_labels_and_dreams_share_a_clock(run):
    "The camera runs at 20 Hz, the tiny world model at 10: the slower one counts."
    report, labelled = read(run / "03_idm" / "report.json"), Dataset(run / "03_idm" / "labelled")
    assert report["from"] == "scratch" and report["fps"] == labelled.fps == 10
    assert labelled[0].actions.shape == (57, 44) and report["heldout"]["steps"] > 100 and report["heldout"]["lag"] is not None


def test_dreams_of_a_kitchen_are_dropped(run):
    verdicts = read(run / "04_filtering" / "verdicts.json")
    assert verdicts and not any(v["kept"] for v in verdicts) and not (run / "04_filtering" / "kept").exists()


def test_the_policy_drives_arms_and_hands_and_is_judged_in_the_open_loop(run):
    policy, report = read(run / "05_policy" / "report.json"), read(run / "07_evaluation" / "report.json")
    assert (policy["embodiment"], policy["slot"], policy["action_dims"]) == ("gr1", 24, 26)
    assert report["source"] == "dataset" and not report["scores"]
    for o in report["open_loop"]: assert set(o["mae"]) == {"left_arm", "right_arm", "left_hand", "right_hand"} and all(v >= 0 for v in o["mae"].values())
