"What trains the tiny checkpoints: the lessons are in nbs/train."
import json

import numpy as np
import pytest
import torch

from groot_cookbook import core
from groot_cookbook.autoencoder import DECODER, PHASES, Clips, forget_where, make_clips, read_clips, tiny_vae, vae_step
from groot_cookbook.core import CookbookError
from groot_cookbook.critic_data import KNOWN, UNSEEN, make_shards, read_shards
from groot_cookbook.optimizer import Trainer, resume
from groot_cookbook.tiny_reason import batch_of, draw, marks


# --- clips and the autoencoder ----------------------------------------------------------------------------------

def test_clips_are_shifted_as_often_as_asked(tmp_path, monkeypatch):
    asked = {}
    class Made:
        def __init__(self, seed): self.provenance, self.frames, self.instruction = {"seed": seed}, np.zeros((3, 4, 4, 3), np.uint8), "pick"
    monkeypatch.setattr("groot_cookbook.workspace.demonstrations", lambda seeds, shift, noise, workers: asked.update({shift: seeds}) or [Made(s) for s in seeds])
    for far, n in ((.5, 10), (.8, 10), (0., 4), (1., 4), (.3, 7)):
        folder = make_clips(tmp_path / f"{far}", n, far=far)
        assert len(asked[1.]) == np.ceil(far * n) and len(asked[1.]) + len(asked[0.]) == n and len(read_clips(folder)) == n
        assert len(asked[1.]) < 2 or np.ptp(np.diff(asked[1.])) <= 1                    # evenly spread
    with pytest.raises(CookbookError, match="80% are shifted"): make_clips(tmp_path / "0.8", 10, far=.5)
    assert make_clips(tmp_path / "0.8", 10, far=.8) == tmp_path / "0.8"


def test_a_decoder_that_learns_leaves_latents_as_they_are(tmp_path):
    clips = Clips(np.random.default_rng(0).integers(0, 255, (2, 17, 16, 16, 3), dtype=np.uint8), ["a", "b"])
    vae = tiny_vae(base=8)
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    for piece in (vae.encoder, vae.quant_conv): piece.requires_grad_(False)
    trainer = Trainer(vae, tmp_path / "state.safetensors")
    while trainer.step < 2: vae_step(trainer, clips, 2, phases=DECODER)
    changed = {k.split(".")[0] for k, v in vae.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"decoder", "post_quant_conv"} and trainer.phase == 1
    assert trainer.log[0] < 5                                                            # no layer was set back to single images on the way


def test_a_training_killed_after_single_images_ends_as_if_it_had_not_been(tmp_path):
    clips, phases = Clips(np.random.default_rng(0).integers(0, 255, (2, 5, 16, 16, 3), dtype=np.uint8), ["a", "b"]), ((.4, 1, 2), (1., 5, 1))
    def begun(name: str) -> Trainer: return Trainer(tiny_vae(base=8), tmp_path / f"{name}.safetensors")
    def go_on(t: Trainer, until: int) -> Trainer:
        while t.step < until: vae_step(t, clips, 5, phases=phases)
        return t
    whole, killed = go_on(begun("whole"), 5), go_on(begun("killed"), 4)
    killed.save()
    again = go_on(resume(begun("killed")), 5)
    assert killed.phase == 1 and all(torch.equal(a, b) for a, b in zip(whole.params + whole.mean, again.params + again.mean))


def test_phases_end_with_the_whole_budget():
    for phases in (PHASES, DECODER): assert phases[-1][0] == 1. and all(a[0] < b[0] for a, b in zip(phases, phases[1:]))


def test_a_checkpoint_forgets_where_its_pieces_lay(tmp_path):
    (tmp_path / "vae").mkdir()
    for at in ("config.json", "vae/config.json"): (tmp_path / at).write_text(json.dumps({"_name_or_path": "/home/me/vae", "z_dim": 12}))
    forget_where(tmp_path)
    assert json.loads((tmp_path / "vae" / "config.json").read_text()) == {"z_dim": 12} == json.loads((tmp_path / "config.json").read_text())


def test_cards_name_no_path_of_a_machine():
    root = core.data_dir().parent.resolve()
    assert core.told("tiny-cosmos") == "tiny-cosmos" and core.told(root / "runs" / "train" / "tiny-vae") == "runs/train/tiny-vae" and core.told("/somewhere/else/vae") == "vae"


# --- the critic -------------------------------------------------------------------------------------------------

def test_every_fourth_clip_is_a_dream():
    table = {"kind": np.array(["true", "slide"] * 500 + ["dream"] * 5)}
    rows = np.concatenate([draw(table, 8, np.random.default_rng(i)) for i in range(200)])
    assert .23 < (table["kind"][rows] == "dream").mean() < .3
    assert len(draw({"kind": table["kind"][:10]}, 8, np.random.default_rng(0))) == 8     # no dreams: any clips


def test_a_mirrored_clip_has_mirrored_notes():
    T, there = 4, [1., 1., 0., 1.]
    place = np.random.default_rng(0).random((T, 7, 2)).round(3)                           # column and row of four blocks, the fingertips, two bins
    notes = np.concatenate([np.concatenate([np.full((T, 1), k), place[:, i]], 1) for i, k in enumerate([*there, .25])] + [place[:, 5], place[:, 6]], 1).astype(np.float32)
    table = {"frames": np.random.default_rng(1).integers(0, 255, (1, T, 8, 8, 3), dtype=np.uint8), "notes": notes[None], "answers": np.ones((1, 6), int),
             "asked": np.array(["pick up the red block and place it in the left bin"]), "wrong": np.array(["pick up the red block and place it in the right bin"])}
    class Always:                                                                          # mirrors every clip; questions of grounding may fall as they like
        def random(self): return 0.
        def __getattr__(self, name): return getattr(np.random.default_rng(2), name)
    plain, mirrored = batch_of(table, np.array([0])), batch_of(table, np.array([0]), Always())
    assert torch.equal(mirrored[0][0], plain[0][0].flip(-1))
    was, now = plain[3][0].numpy(), mirrored[3][0].numpy()
    for k in (1, 4, 7, 10, 13): assert np.allclose(now[:, k], 63 / 64 - was[:, k]) and (now[:, k + 1] == was[:, k + 1]).all()
    assert (now[:, [0, 3, 6, 9, 12]] == was[:, [0, 3, 6, 9, 12]]).all()
    assert np.allclose(now[:, [15, 17]], 63 / 64 - was[:, [17, 15]]) and (now[:, [16, 18]] == was[:, [18, 16]]).all()      # what was the left bin is the right one


def exam(kinds: list[str], truth: list[int], odds: list[float]) -> dict:
    truth = np.repeat(np.array(truth)[:, None], 6, 1); truth[:, 5] = 0
    return marks(np.repeat(np.array(odds, float)[:, None], 6, 1) * np.array([1, 1, 1, 1, 1, -1]), truth, np.array(kinds), {q: (1., 0.) for q in KNOWN})


def test_marks_keep_dreams_apart_from_forgeries():
    kinds, truth, odds = ["true"] * 4 + ["slide"] * 4 + [UNSEEN[0]] * 4, [1] * 4 + [0] * 8, [3, 2, 3, 2, -3, -2, -3, 5, -2, -2, 4, -2]
    plain = exam(kinds, truth, odds)
    assert plain["kind_auc"]["slide"] == .75 and "dreams" not in plain
    both = exam(kinds + ["dream"] * 4, truth + [1, 1, 0, 0], odds + [3, -3, 3, -3])
    assert {k: v for k, v in both.items() if k != "dreams"} == plain
    assert both["dreams"] == {"dreams": 4, "repeatable": .5, "kept": 2, "repeatable_of_those_kept": 1, "auc": .5}


def test_marks_of_dreams_that_are_all_alike_are_json():
    assert json.loads(json.dumps(exam(["true", "slide", UNSEEN[0], "dream"], [1, 0, 0, 0], [1, -1, -1, -1]), allow_nan=False))["dreams"]["auc"] is None


def test_shelves_are_read_together(tmp_path):
    clip = lambda kind: lambda seed: [dict(kind=kind, frames=np.zeros((2, 4, 4, 3), np.uint8), seed=seed)]
    make_shards(tmp_path / "a", clip("true"), 0, 5, 2)
    make_shards(tmp_path / "b", clip("dream"), 10, 3, 2)
    table = read_shards(tmp_path / "a", tmp_path / "b")
    assert table["kind"].tolist() == ["true"] * 5 + ["dream"] * 3 and table["files"] == 5 and len(set(table["seed"])) == 8
    assert read_shards(tmp_path / "a", tmp_path / "b", known=table) is table
    make_shards(tmp_path / "b", clip("dream"), 13, 1, 2)
    assert len(read_shards(tmp_path / "a", tmp_path / "b", known=table)["kind"]) == 9
    with pytest.raises(CookbookError, match="no clips"): read_shards(tmp_path / "c")


def test_a_backbone_is_taught_where_things_are():
    "Its answers are spelt in location tokens, which are taken from a stranger's sentence and must stay in these."
    from groot_cookbook import grounding
    from groot_cookbook.backbone import tiny_backbone
    from groot_cookbook.workspace import seeds
    model, looks = grounding.Grounding(tiny_backbone(0)), grounding.draw_looks(seeds("backbone", 2), 2, 1)
    losses = grounding.grounding_loss(model, looks, np.random.default_rng(0))
    assert losses and all(torch.isfinite(v) and v > 0 for v in losses.values())
