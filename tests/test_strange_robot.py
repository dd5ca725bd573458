"""A robot as unlike the workspace's as datasets come, through the whole chain: what a chapter shows on the workspace must not stop it.

Three pictures a second, no measured state, movements of millimetres told as differences, a gripper that never opens, no named parts, and a first episode shorter than a chunk."""
import json

import numpy as np
import pytest

from groot_cookbook import cli
from groot_cookbook.episodes import Episode, write_dataset

pytestmark = pytest.mark.slow


def pushed(length: int, rng: np.random.Generator) -> Episode:
    "A red square wanders over a grey table; its way is told from one picture to the next, in metres."
    place = (40 + rng.normal(0, 3, (length, 2)).cumsum(0)).clip(0, 80).astype(int)
    frames = np.full((length, 96, 128, 3), 90, np.uint8)
    for picture, (x, y) in zip(frames, place): picture[y:y + 16, x:x + 16] = 200, 40, 30
    actions = np.concatenate([np.diff(place, axis=0, append=place[-1:]) / 1000, np.zeros((length, 4)), np.ones((length, 1))], 1)
    return Episode(frames, np.zeros((length, 0), np.float32), actions.astype(np.float32), "push the red square", 3.)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    room, rng = tmp_path_factory.mktemp("strange"), np.random.default_rng(0)
    dataset = write_dataset([pushed(n, rng) for n in (12, 25, 28, 22)], room / "dataset")
    (dataset / "meta" / "modality.json").unlink()
    assert cli.main(["run", "--profile", "smoke", "--dataset", str(dataset), "--out", str(room / "run"), "--only", *(f"0{n}" for n in range(9))]) == 0
    return room / "run"


def read(path): return json.loads(path.read_text())


def test_it_is_read_on_its_own_clock_and_judged_in_its_own_units(run):
    assert read(run / "01_episodes" / "source.json")["kind"] == "dataset" and read(run / "03_idm" / "report.json")["fps"] == 3
    policy, judged = read(run / "05_policy" / "report.json"), read(run / "07_evaluation" / "report.json")
    assert policy["embodiment"] == "new_embodiment" and policy["action_dims"] == 7
    for o in judged["open_loop"]: assert o["mae"] and all(np.isfinite(v) for v in o["mae"].values())


def test_a_bundle_leaves_for_the_board(run):
    border = np.load(next((run / "08_thor_export").rglob("pipeline.npz")), allow_pickle=False)
    assert border["columns"].dtype.kind == "i" and len(border["columns"]) == 0
