"Inverse dynamics: order, clock, votes, refusal, resumption. Random weights and a few steps are enough for all of it."
import json, weakref
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groot_cookbook import core
from groot_cookbook.core import CookbookError
from groot_cookbook.episodes import TABLETOP, Dataset, Episode, Modality, at_rate
from groot_cookbook.idm import (IDMConfig, InverseDynamics, best_lag, by_key, compare, configure, fit_idm, knows, label, label_dream, measure, pairs, prepare,
                                spoil, usual_doubt)
from groot_cookbook.optimizer import State
from groot_cookbook.workspace import demonstrate, seeds


def clip(T=24, A=4, size=16, fps=10., seed=0, still=True):
    "A bright bar whose column is the first action; the last dimension is a gripper, the third stands still."
    rng = np.random.default_rng(seed)
    place = np.clip(np.cumsum(rng.normal(0, 1.5, T)) + size / 2, 1, size - 3)
    frames = np.full((T, size, size, 3), 40, np.uint8)
    for t, p in enumerate(place): frames[t, :, int(p):int(p) + 2] = 220
    actions = rng.normal(0, .3, (T, A)).astype(np.float32)
    actions[:-1, 0] = place[1:].astype(int) / size
    if still: actions[:, 2] = .5
    actions[:, -1] = rng.integers(0, 2, T)
    return Episode(frames, np.zeros((T, A), np.float32), actions, "move the bar", fps)


CLIPS = [clip(seed=s) for s in range(4)]
SMALL = dict(image_size=16, width=8)


class Counting(InverseDynamics):
    "An IDM that is right by construction: frame t is painted with the number t, action t is t."
    def forward(self, first, second, seed=0):
        t = (first.mean((1, 2, 3)) * 255).round()
        ahead = t[:, None] + torch.arange(self.config.gap)
        a = (ahead / 50 - 1)[None, :, :, None]
        return a.expand(self.config.members, -1, -1, self.config.action_dim)


def counting(gap, **kw): return Counting(IDMConfig([0.], [100.], 10., gap=gap, **SMALL, **kw)).eval()


@pytest.mark.parametrize("gap", [1, 2, 16])
@pytest.mark.parametrize("T", [17, 57, 93, 130])
def test_labels_are_in_the_order_of_the_frames(gap, T):
    if T <= gap: pytest.skip("too short for this gap")
    frames = np.broadcast_to(np.arange(T, dtype=np.uint8)[:, None, None, None], (T, 16, 16, 3))
    read = label(counting(gap), np.ascontiguousarray(frames), 10.)
    assert read.actions.shape == (T - 1, 1) and read.confidence.shape == (T - 1,)
    np.testing.assert_allclose(read.actions[:, 0], np.arange(T - 1), atol=1e-3)


def test_a_permuted_labeller_would_be_caught():
    "Upstream's mistake: predictions indexed in the order in which threads finished."
    frames = np.ascontiguousarray(np.broadcast_to(np.arange(57, dtype=np.uint8)[:, None, None, None], (57, 16, 16, 3)))
    order = np.random.default_rng(1).permutation(57)
    np.testing.assert_allclose(label(counting(1), frames[order], 10.).actions[:, 0], order[:-1], atol=1e-3)   # labels follow the frames, not a clock of their own


def test_the_clock_is_checked():
    idm = counting(1)
    with pytest.raises(CookbookError, match="20 Hz for an IDM at 10 Hz"): label(idm, CLIPS[0].frames, 20.)
    with pytest.raises(CookbookError, match="Hz"): measure(idm, [replace(CLIPS[0], fps=20.)])
    with pytest.raises(CookbookError, match="frames a second"): configure([CLIPS[0], replace(CLIPS[1], fps=20.)])
    assert len(label(idm, at_rate(replace(CLIPS[0], fps=20.), 10.).frames, 10.).actions) == 11


@given(T=st.integers(2, 40), gap=st.integers(1, 20), A=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_pairs(T, gap, A):
    e = Episode(np.arange(T, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8), np.zeros((T, 1)), np.arange(T * A).reshape(T, A), "", 10.)
    if T <= gap:
        with pytest.raises(CookbookError, match="no pair"): pairs(e, gap)
        return
    first, second, between = pairs(e, gap)
    assert between.shape == (T - gap, gap, A) and len(first) == len(second) == T - gap
    for i in range(T - gap):
        assert second[i, 0, 0, 0] - first[i, 0, 0, 0] == gap
        np.testing.assert_array_equal(between[i], e.actions[i:i + gap])


def test_configuration_is_read_off_the_data():
    c = configure(CLIPS, Modality({"arm": slice(0, 3), "hand": slice(3, 4)}, {"arm": slice(0, 3), "hand": slice(3, 4)}, "front"))
    assert c.binary == [3] and c.constant == [2] and c.fps == 10. and c.names == ["arm.0", "arm.1", "arm.2", "hand"]
    restless = replace(CLIPS[0], actions=np.random.default_rng(0).normal(size=(24, 4)))
    assert configure([restless]).binary == []


class Split(InverseDynamics):
    "Three of four opinions say shut; the fourth is very sure of open. A mean would be half open."
    def forward(self, first, second, seed=0):
        said = torch.tensor([.1, .1, .1, -.9])[:, None, None, None]
        return said.expand(4, len(first), self.config.gap, self.config.action_dim)


def test_a_gripper_is_voted_on_and_a_joint_averaged():
    actions = label(Split(IDMConfig([0., 0.], [1., 1.], 10., binary=[1], **SMALL)).eval(), CLIPS[0].frames, 10.).actions
    np.testing.assert_allclose(actions[:, 0], (np.mean([.1, .1, .1, -.9]) + 1) / 2, atol=1e-6)
    assert set(actions[:, 1]) == {1.}


@pytest.mark.parametrize("settings_", [dict(gap=1), dict(gap=4), dict(gap=4, head="flow")])
def test_fit_label_save_load(tmp_path, settings_):
    idm = fit_idm(CLIPS, configure(CLIPS, **SMALL, **settings_), steps=6, batch=8)
    a = label(idm, CLIPS[0].frames, 10.)
    assert a.actions.shape == (23, 4) and np.isfinite(a.actions).all() and ((0 <= a.confidence) & (a.confidence <= 1)).all()
    assert set(a.actions[:, 3]) <= {0., 1.} and np.allclose(a.actions[:, 2], .5)      # two values; a still joint stays where it stood
    again = label(InverseDynamics.from_pretrained(idm.save_pretrained(tmp_path / "idm")), CLIPS[0].frames, 10.)
    np.testing.assert_array_equal(a.actions, again.actions)
    np.testing.assert_array_equal(a.confidence, again.confidence)


def test_fitting_is_deterministic_and_resumes_to_the_same_weights(tmp_path, monkeypatch):
    import groot_cookbook.idm as module
    config, save = configure(CLIPS, **SMALL), State.save
    whole = fit_idm(CLIPS, config, steps=8, batch=8, seed=3)
    monkeypatch.setattr(module, "EVERY", 2)
    calls = []

    def killed(state, step):
        save(state, step=step)
        if state.file: calls.append(step)
        if step == 4: raise KeyboardInterrupt
    monkeypatch.setattr(State, "save", killed)
    with pytest.raises(KeyboardInterrupt): fit_idm(CLIPS, config, steps=8, batch=8, seed=3, work=tmp_path)
    taken_up = fit_idm(CLIPS, config, steps=8, batch=8, seed=3, work=tmp_path)
    assert calls == [2, 4, 6, 8]
    for (name, a), b in zip(whole.state_dict().items(), taken_up.state_dict().values()): assert torch.equal(a, b), name
    state = torch.get_rng_state()
    fit_idm(CLIPS, config, steps=1, batch=8, seed=3)
    assert torch.equal(state, torch.get_rng_state())       # nobody else's random numbers are touched


def test_it_learns_what_is_there_to_be_learned():
    clips = [clip(T=40, seed=s) for s in range(24)]
    idm = fit_idm(clips[:20], configure(clips, **SMALL), steps=150, batch=48, spoiling=.2)
    reading = measure(idm, clips[20:])
    kinds = {d.name: d for d in reading.dimensions}
    assert kinds["0"].r2 > .8 and kinds["1"].r2 < .5          # the bar's column can be seen, dimension 1 is noise
    assert kinds["2"].kind == "still" and kinds["2"].r2 is None and kinds["3"].kind == "binary" and kinds["3"].r2 is None
    assert reading.lag == 0 and json.dumps(reading.as_dict()) and "R2" in reading.table()


def test_a_guess_is_measured_like_a_reading():
    config = configure(CLIPS, Modality({}, {"arm": slice(0, 3), "hand": slice(3, 4)}, "front"))
    truth = CLIPS[0].actions[:-1]
    exact, mean = (compare(config, said, truth) for said in (truth, np.broadcast_to(truth.mean(0), truth.shape)))
    assert [d.kind for d in exact] == ["moving", "moving", "still", "binary"] and all(d.mae == 0 for d in exact) and exact[0].r2 == exact[3].accuracy == 1
    assert mean[0].r2 == pytest.approx(0, abs=1e-5) and mean[0].mae > .01 and mean[3].accuracy == max((truth[:, 3] > .5).mean(), (truth[:, 3] <= .5).mean())
    assert by_key(config, mean) == {"arm": {"r2": pytest.approx(0, abs=1e-5), "mae": pytest.approx(np.mean([d.mae for d in mean[:3]]), abs=1e-5), "accuracy": None},
                                    "hand": {"r2": None, "mae": pytest.approx(mean[3].mae, abs=1e-5), "accuracy": pytest.approx(mean[3].accuracy, abs=1e-5)}}


def test_lag_is_found():
    a = np.cumsum(np.random.default_rng(0).normal(size=(60, 3)), 0)
    for k in (-3, -1, 0, 1, 4): assert best_lag(np.roll(a, k, 0), a) == k


@pytest.mark.parametrize("config, complaint", [
    ({"architecture": "GrootPolicy"}, "architecture GrootPolicy"), ({"model_type": "gr00t_n1_5"}, "architecture gr00t_n1_5"), ({"gap": 8, "horizon": 16}, "16 actions for frames 8 apart"),
    ({"width": 16}, "not an inverse dynamics checkpoint"), ({"head": "magic"}, "no IDM head")])
def test_a_checkpoint_of_something_else_is_refused(tmp_path, config, complaint):
    fit_idm(CLIPS, configure(CLIPS, **SMALL), steps=1, batch=4).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    if "model_type" in config: del saved["architecture"]
    (tmp_path / "config.json").write_text(json.dumps(saved | config))
    with pytest.raises(CookbookError, match=complaint): InverseDynamics.from_pretrained(tmp_path)


def test_bad_input_has_one_sentence(tmp_path):
    idm = counting(16)
    with pytest.raises(CookbookError, match="Give at least 17"): label(idm, CLIPS[0].frames[:16], 10.)
    with pytest.raises(CookbookError, match="uint8"): label(idm, CLIPS[0].frames.astype(np.float32), 10.)
    with pytest.raises(CookbookError, match="not an inverse dynamics checkpoint"): InverseDynamics.from_pretrained(tmp_path)
    weights = idm.save_pretrained(tmp_path / "cut") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CookbookError, match="not an inverse dynamics checkpoint"): InverseDynamics.from_pretrained(tmp_path / "cut")
    with pytest.raises(CookbookError, match="Train an IDM for this robot"): fit_idm([clip(A=5)], configure(CLIPS, **SMALL), steps=1)
    with pytest.raises(CookbookError, match="no episodes"): fit_idm([], configure(CLIPS, **SMALL), steps=1)


def test_images_of_any_size_and_spoiling(tmp_path):
    corner = np.zeros((3, 256, 192, 3), np.uint8)
    corner[:, :128, 96:] = 255                                                     # the upper right quarter stays the upper right quarter, and whole
    small = prepare(corner, 64)
    assert small.shape == (3, 3, 64, 64) and min(small[..., :24, 40:].min(), 255 - small[..., 40:, :].max(), 255 - small[..., :24].max()) == 255
    a, b = torch.rand(6, 3, 16, 16), torch.rand(6, 3, 16, 16)
    for x, y in zip(spoil(a, b, torch.Generator().manual_seed(0), 0.), (a, b)): torch.testing.assert_close(x, y)
    one, two = (spoil(a, b, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(one[0], two[0]) and not torch.equal(one[0], a) and one[0].min() >= 0 and one[0].max() <= 1


def test_a_labelled_dream_has_no_state_and_says_how_sure(tmp_path):
    dream = Episode(CLIPS[0].frames, np.zeros((24, 0)), np.zeros((24, 0)), "move the bar", 10., {"generator": "toy"})
    idm = fit_idm(CLIPS, configure(CLIPS, **SMALL), steps=2, batch=4)
    e, read = label_dream(idm, dream, 4)
    assert e.state.shape == (24, 4) and not e.state.any() and e.actions.shape == (24, 4)
    np.testing.assert_array_equal(e.actions[-1], e.actions[-2])
    assert e.provenance["generator"] == "toy" and 0 <= e.provenance["least_confidence"] <= e.provenance["confidence"] <= 1
    spread = np.concatenate([label(idm, e.frames, e.fps).spread for e in CLIPS])
    assert .9 < (spread <= usual_doubt(idm, CLIPS)).mean() < 1                     # what nineteen steps in twenty stay below


def test_gr1(gr1):
    "44 dimensions, 256x256, 20 Hz: the same code."
    dataset = Dataset(gr1)
    short = [replace(e, frames=e.frames[:40], state=e.state[:40], actions=e.actions[:40]) for e in (dataset[4],)]
    idm = fit_idm(short, configure([dataset[4]], dataset.modality, width=8), steps=2, batch=8)
    assert idm.config.fps == 20. and idm.config.action_dim == 44 and idm.config.names[22] == "right_arm.0" and set(idm.config.binary) == set(range(29, 34))
    reading = measure(idm, short)
    assert set(reading.keys) == set(dataset.modality.action) and reading.keys["left_leg"]["r2"] is None and reading.steps == 39
    with pytest.raises(CookbookError, match="20 Hz"): label(idm, short[0].frames, 10.)


def test_a_fit_is_resumed_only_by_itself(tmp_path):
    config = configure(CLIPS, **SMALL)
    fit_idm(CLIPS, config, steps=2, batch=4, seed=3, work=tmp_path)
    same = fit_idm(CLIPS, config, steps=2, batch=4, seed=3, work=tmp_path)
    for other in (dict(seed=4), dict(lr=1e-3), dict(steps=3), dict(start=same), dict(config=replace(config, width=16)), dict(episodes=CLIPS[:3])):
        with pytest.raises(CookbookError, match="another training"): fit_idm(**{**dict(episodes=CLIPS, config=config, steps=2, batch=4, seed=3, work=tmp_path), **other})


def test_an_idm_knows_its_own_robot_only():
    idm, clips = InverseDynamics.from_pretrained(core.checkpoint("tiny-idm")), [demonstrate(s) for s in seeds("heldout", 2)]
    config = configure(clips, TABLETOP)
    assert knows(idm, config, clips) and not knows(idm, replace(config, fps=20.), clips) and not knows(idm, configure(clips), clips)
    another = [replace(e, actions=np.ascontiguousarray(e.actions[:, [1, 2, 3, 4, 5, 0, 6]])) for e in clips]       # as many numbers under the same names, and other joints
    assert not knows(idm, configure(another, TABLETOP), another)


def test_clips_too_short_to_be_read_are_left_out(tmp_path):
    short = replace(CLIPS[0], frames=CLIPS[0].frames[:1], state=CLIPS[0].state[:1], actions=CLIPS[0].actions[:1])
    config = configure(CLIPS, **SMALL)
    got, want = (fit_idm(clips, config, steps=2, batch=4) for clips in ([short, *CLIPS], CLIPS))
    assert all(torch.equal(a, b) for a, b in zip(got.state_dict().values(), want.state_dict().values()))
    with pytest.raises(CookbookError, match="no episodes of more than 1 frames"): fit_idm([short, short], config, steps=2)


def test_films_are_looked_at_one_at_a_time():
    "Reading off the data, measuring and fitting: never two films at the camera's size in memory, and the same numbers as from small ones."
    class Films(Sequence):
        def __init__(self): self.given, self.most = [], 0
        def __len__(self): return len(CLIPS)
        def __getitem__(self, i):
            big = replace(CLIPS[i], frames=CLIPS[i].frames.repeat(4, 1).repeat(4, 2))
            self.given = [r for r in self.given if r() is not None] + [weakref.ref(big.frames)]
            self.most = max(self.most, len(self.given))
            return big
    films, whole = Films(), [Films()[i] for i in range(len(CLIPS))]
    config = configure(films, **SMALL)
    idm, same = (fit_idm(clips, config, steps=2, batch=4) for clips in (films, whole))
    assert all(torch.equal(a, b) for a, b in zip(idm.state_dict().values(), same.state_dict().values())) and idm.config.unsure == same.config.unsure
    assert measure(idm, films).as_dict() == measure(idm, whole).as_dict() and films.most <= 2 < len(films)      # the next is made before the last is let go
