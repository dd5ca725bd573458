"""The notebooks that trained the shipped checkpoints, from their first cell to their last at the smallest size: what runs once a year breaks unseen.

What each must make is loaded by the class that ships, from a data folder of the test's own: no shipped checkpoint is touched."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from groot_cookbook import core
from groot_cookbook.backbone import Backbone
from groot_cookbook.dreaming import dream, load_dreamer
from groot_cookbook.filtering import load_critic
from groot_cookbook.idm import InverseDynamics

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Path:
    "A data folder with the shipped checkpoints in it, and room for more."
    path = tmp_path_factory.mktemp("training")
    (path / "data" / "checkpoints").mkdir(parents=True)
    for shipped in (ROOT / "data" / "checkpoints").iterdir(): (path / "data" / "checkpoints" / shipped.name).symlink_to(shipped)
    return path


def execute(room: Path, name: str, **parameters):
    "The notebook run with these parameters, in a process and a folder of its own."
    told = [str(word) for item in parameters.items() for word in ("-p", *item)]
    ran = subprocess.run([sys.executable, "-m", "papermill", ROOT / "nbs" / "train" / f"{name}.ipynb", room / f"{name}.ipynb", "-k", "python3", "--cwd", room, "--no-progress-bar", *told],
                         env=os.environ | {"GROOT_COOKBOOK_DATA": str(room / "data"), "TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stderr[-3000:]


def card(folder: Path, notebook: str) -> dict:
    "What the notebook says of its checkpoint: by which command, with which figures."
    said = core.card(folder)
    assert notebook in said["command"] and said["figures"] and said["seed"] == 0 and str(folder.parent) not in json.dumps(said)
    return said


def test_autoencoder_then_world_model(room):
    "Notebook 91 trains on the latents of notebook 90, and what it leaves dreams."
    execute(room, "90_tiny_vae", clips=room / "clips", n_clips=3, n_unseen=1, steps=4, out=room / "made" / "vae")
    execute(room, "91_tiny_cosmos", clips=room / "clips", n_clips=4, autoencoder=room / "made" / "vae", steps=3, out=room / "made" / "cosmos")
    card(room / "made" / "vae", "90_tiny_vae")
    card(room / "made" / "cosmos", "91_tiny_cosmos")
    film = dream(load_dreamer(room / "made" / "cosmos"), np.zeros((64, 64, 3), np.uint8), "pick up the red block and place it in the left bin", steps=2)
    assert film.video.shape == (57, 64, 64, 3)


def test_critic(room):
    "Going on from the shipped critic, with dreams among its clips."
    execute(room, "92_tiny_reason", run=room / "reason", workspaces=4, steps=2, examined=2, dreams=4, share=.1, start="tiny-reason", save_as="taught")
    said = card(room / "data" / "checkpoints" / "taught", "92_tiny_reason")
    assert said["went_on_from"] and said["dreams_of"]
    load_critic(room / "data" / "checkpoints" / "taught")


def test_backbone(room):
    execute(room, "93_tiny_backbone", run=room / "backbone", traces=2, frames_per_trace=2, steps=2, batch=4)
    card(room / "backbone" / "tiny-backbone", "93_tiny_backbone")
    Backbone.from_pretrained(room / "backbone" / "tiny-backbone")


def test_inverse_dynamics(room):
    execute(room, "94_tiny_idm", out=room / "idm", work=room / "idm_work", demonstrated=1, played=0, steps=3, form_steps=2, unseen=4, dreamer="")
    card(room / "idm", "94_tiny_idm")
    InverseDynamics.from_pretrained(room / "idm")
    assert (room / "idm" / "results.json").is_file() and not (room / "data" / "results").exists()        # what the shipped one is told of is left alone
