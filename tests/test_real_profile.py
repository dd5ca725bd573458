"""The profile `real`, from the hub's cache to an exported policy: the names are NVIDIA's, what lies behind them are small stand-ins of the same architectures, in the
hub's folder layout and without anything that this project writes beside its own weights (cards, experiment.json, a policy's tokenizer)."""
import json, os, shutil, subprocess, sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from groot_cookbook import chapters, core
from groot_cookbook.backbone import TOKENIZER, Backbone, tiny_tokenizer
from groot_cookbook.cli import BESIDE
from groot_cookbook.episodes import Dataset, Normalizer
from groot_cookbook.filtering import judge, load_critic
from groot_cookbook.policy import Embodiment, GrootPolicy, build_policy

pytestmark = pytest.mark.slow
ROOT = Path(core.__file__).parent.parent
REAL = {stage: {k: v for k, v in block.items() if isinstance(v, str) and v.startswith("nvidia/")} for stage, block in chapters.read_profile("real").items()}
SMALL = ("02_dreaming.size=64x64", "02_dreaming.frames=57", "02_dreaming.steps=2", "02_dreaming.dreams_per_seed=1", "00_workspace.new_workspaces=4", "01_episodes.dream_seeds=2",
         "03_idm.steps=20", "03_idm.scratch_steps=20", "03_idm.batch=16", "04_filtering.workspaces=2", "06_flare_finetune.steps=4", "06_flare_finetune.batch=8", "07_evaluation.episodes=2", "07_evaluation.processes=1",
         "08_thor_export.samples=2", "09_benchmark.n=3", "09_benchmark.nudges=2")
GUARD = '''
import os
import torch

class Qwen3Guard(torch.nn.Module):
    dtype = torch.float32                         # and no device

class CosmosSafetyChecker(torch.nn.Module):
    "Stands for cosmos-guardrail 0.3.2's: lets everything pass, and says what it was shown. Where it is it asks its first model, as that one does."
    def __init__(self):
        super().__init__()
        self.models = [Qwen3Guard()]
    @property
    def nn_models(self): return self.models
    @property
    def device(self): return next(m.device for m in self.nn_models)
    @property
    def dtype(self): return next(m.dtype for m in self.nn_models)
    def to(self, device=None, dtype=None):
        for m in self.nn_models: m.to(device=device, dtype=dtype)
    def note(self, *words): print(*words, file=open(os.environ["GUARD_LOG"], "a"))
    def check_text_safety(self, prompt): self.note("prompt", prompt); return True
    def check_video_safety(self, frames): self.note("video", *frames.shape); return frames
'''


def on_the_hub(cache: Path, name: str, folder: Path) -> None:
    "As huggingface_hub keeps a download: blobs by their hash, a snapshot of links, and the revision that points to it."
    repo, revision = name.partition("@")[::2]
    home, commit = cache / f"models--{repo.replace('/', '--')}", "0" * 39 + "1"
    (home / "blobs").mkdir(parents=True)
    for f in (p for p in folder.rglob("*") if p.is_file()):
        shutil.copyfile(f, blob := home / "blobs" / core.sha256(f))
        (link := home / "snapshots" / commit / f.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (ref := home / "refs" / (revision or "main")).parent.mkdir(parents=True)
    ref.write_text(commit)


def bare(name: str, to: Path) -> Path:
    "One of our checkpoints without its card: nobody's, as far as the library can tell."
    return shutil.copytree(core.checkpoint(name), to, ignore=shutil.ignore_patterns("card.json"))


def published_policy(to: Path) -> Path:
    "A whole policy as NVIDIA publishes its own: config and weights; no robot, no tokenizer."
    one = Normalizer("min_max", -np.ones(7), np.ones(7))
    parts = {"arm": list(range(6)), "gripper": [6]}
    build_policy(Backbone.from_pretrained("tiny-backbone"), Embodiment("gr1", parts, parts, one, one), layers=6).save_pretrained(to)       # deeper than the book's own, as N1.5's is
    for f in to.glob("*"):
        if f.name.startswith("tokenizer") or f.name in ("experiment.json", "card.json"): f.unlink()
    return to


def eagles_files(to: Path) -> Path:
    "A tokenizer as lerobot keeps N1.5's: vocabulary, merges and added tokens, and names of code that must not be run."
    to.mkdir()
    made = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    (to / "vocab.json").write_text(json.dumps(made["model"]["vocab"]))
    (to / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in made["model"]["merges"]))
    added = {str(t.pop("id")): t for t in made["added_tokens"]}
    (to / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer", "pad_token": "<pad>", "eos_token": "<end>", "unk_token": "<end>", "added_tokens_decoder": added,
                                                          "auto_map": {"AutoProcessor": "processing_eagle2_5_vl.Eagle2_5_VLProcessor"}}))
    (to / "processing_eagle2_5_vl.py").write_text("raise SystemExit('code from the hub was run')\n")
    return to


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "Chapters 00 to 09 under the profile's own names; only sizes are made small."
    home = tmp_path_factory.mktemp("real")
    made = {REAL["02_dreaming"]["checkpoint_name"]: bare("tiny-cosmos", home / "cosmos"), REAL["04_filtering"]["critic_name"]: bare("tiny-reason", home / "reason"),
            REAL["05_policy"]["backbone"]: published_policy(home / "policy"), TOKENIZER: eagles_files(home / "eagle")}
    for name, folder in made.items(): on_the_hub(home / "hub", name, folder)
    for part, text in (("cosmos_guardrail/__init__.py", GUARD), ("cosmos_guardrail-0.0.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: cosmos-guardrail\nVersion: 0.0.0\n")):
        (at := home / "guard" / part).parent.mkdir(parents=True)
        at.write_text(text)
    settings = [x for pair in SMALL for x in ("-p", pair)]
    env = os.environ | {"HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": "1", "GUARD_LOG": str(home / "guard.log"), "PYTHONPATH": str(home / "guard"), "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run([sys.executable, "-m", "groot_cookbook.cli", "run", "--profile", "real", "--out", str(home / "run"), *settings, "--only", *(f"0{n}" for n in range(10))],
                         cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    return home


def test_every_name_of_the_profile_has_a_stand_in_here():
    assert sorted(k for block in REAL.values() for k in block) == ["backbone", "checkpoint_name", "critic_name"] and TOKENIZER in BESIDE


def test_dreams_say_whose_they_are_and_passed_the_guardrail(done):
    dreams = Dataset(done / "run" / "02_dreaming" / "dreams")
    assert {dreams[i].provenance["checkpoint"] for i in range(len(dreams))} == {REAL["02_dreaming"]["checkpoint_name"]} and dreams[0].frames.shape == (57, 64, 64, 3)
    seen = (done / "guard.log").read_text().splitlines()
    for i in range(len(dreams)): assert f"prompt {dreams[i].instruction}" in seen
    assert seen.count("video 57 64 64 3") >= len(dreams)


def test_the_critic_and_the_policy_are_those_that_were_named(done):
    verdicts = json.loads((done / "run" / "04_filtering" / "verdicts.json").read_text())
    assert verdicts and {v["critic"] for v in verdicts} == {REAL["04_filtering"]["critic_name"]}
    critic, first = load_critic(core.checkpoint("tiny-reason"), "cpu"), Dataset(done / "run" / "02_dreaming" / "dreams")[0]
    raw = judge(replace(critic, calibration={}), first).probabilities
    assert any(abs(raw[q] - p) > 1e-3 for q, p in verdicts[0]["probabilities"].items()), "a critic without a card is calibrated on the chapter's own clips"
    params, first = core.Manifest.read(done / "run", "05_policy").params, GrootPolicy.from_pretrained(done / "run" / "05_policy" / "policy")
    assert first.config.action_head.diffusion_model_cfg["num_layers"] == 6, "the published head goes on, no new one is begun"
    assert params["backbone"] == REAL["05_policy"]["backbone"] and (done / "run" / "05_policy" / "policy" / "tokenizer.json").is_file()


def test_the_chain_goes_through_to_the_end(done):
    scores = json.loads((done / "run" / "07_evaluation" / "report.json").read_text())["scores"]
    assert scores and all(core.Manifest.read(done / "run", stage).outputs for stage in core.STAGES)
