"Closed loop, intervals and pairing, without any policy that had to be trained."
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groot_cookbook.backbone import Backbone
from groot_cookbook.core import CookbookError
from groot_cookbook.episodes import Dataset, Episode, write_dataset
from groot_cookbook.evaluation import Expert, Idle, PolicyActor, Trial, compare, contact_sheet, evaluate, open_loop, outcome, rollout, score
from groot_cookbook.policy import Embodiment, build_policy, drawn_noise
from groot_cookbook.workspace import BLOCK, Tabletop, block_slice, demonstrate, proprioception, sample_scene, seeds

SCENES = [sample_scene(s, .5) for s in seeds("evaluation", 3)]


def trial(seed, won): return Trial(seed, 0., "", "placed" if won else "missed", 10, np.zeros((2, 8, 8, 3), np.uint8))


class Noisy:
    "Wanders at random, by the generator alone."
    def act(self, images, states, instructions, generator):
        assert images.dtype == np.uint8 and images.shape[1:] == (64, 64, 3) and states.shape == (len(images), 7) and len(instructions) == len(images)
        step = drawn_noise(len(images), (16, 7), generator).numpy() * .05
        return np.repeat(states[:, None], 16, 1) + step.cumsum(1)


def test_the_loop_replans_when_it_should_and_stops_at_the_limit():
    class Counter(Idle):
        calls = 0
        def act(self, *a):
            Counter.calls += 1
            return super().act(*a)
    trials = rollout(Counter(), SCENES[:2], replan=8, limit=20)
    assert Counter.calls == 3 and [t.steps for t in trials] == [20, 20] and [len(t.images) for t in trials] == [4, 4]
    assert not any(t.success for t in trials) and {t.outcome for t in trials} == {"missed"}


def test_same_seed_same_episodes_whatever_the_grouping_of_processes():
    one, again, grouped, other = (evaluate(Noisy, SCENES, replan=8, limit=16, seed=s, group=g) for s, g in ((1, 2), (1, 2), (1, 3), (2, 2)))
    for a, b, c in zip(one, again, grouped):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.images, c.images)
    assert any((a.images != b.images).any() for a, b in zip(one, other))


def test_actions_reach_the_robot():
    class Lift:
        def act(self, images, states, instructions, generator):
            return np.repeat((states + np.float32([.3, 0, 0, 0, 0, 0, 0]))[:, None], 16, 1)
    class Watch(Lift):
        first = []
        def act(self, images, states, *rest):
            self.first.append(states[0, 0])
            return super().act(images, states, *rest)
    rollout(Watch(), SCENES[:1], replan=8, limit=17)
    assert np.diff(Watch.first).min() > .15


@pytest.mark.parametrize("where, lifted, expected", [
    ("right place", {"target"}, "placed"), ("other bin", {"target"}, "wrong bin"), ("table", {"target"}, "dropped"), ("table", {"other"}, "wrong block"), ("table", set(), "missed")])
def test_outcomes_tell_failures_apart(where, lifted, expected):
    scene = next(s for s in (sample_scene(i) for i in range(100)) if len(s.blocks) == 2)
    world = Tabletop().arrange(scene)
    other = next(c for c in scene.blocks if c != scene.target)
    wrong = next(s for s in scene.bins if s != scene.side)
    if where != "table": world.data.qpos[block_slice(scene.target)][:3] = [*scene.bins[scene.side if where == "right place" else wrong], BLOCK + .008]
    assert outcome(world, {scene.target if c == "target" else other for c in lifted}) == expected


def test_bad_commands_are_refused():
    class Nan(Idle):
        def act(self, *a): return super().act(*a) * np.nan
    with pytest.raises(CookbookError, match="not finite"): rollout(Nan(), SCENES[:1])
    with pytest.raises(CookbookError, match="cannot replan after 17 of 16"): rollout(Idle(), SCENES[:1], replan=17)
    with pytest.raises(CookbookError, match="no trials"): score("x", "y", [])


@given(won=st.integers(0, 50), n=st.integers(1, 50))
@settings(max_examples=50, deadline=None)
def test_wilson_contains_the_rate_and_never_says_never(won, n):
    won = min(won, n)
    s = score("c", "w", [trial(i, i < won) for i in range(n)])
    assert 0 <= s.low <= s.rate + 1e-9 and s.rate - 1e-9 <= s.high <= 1 and s.high > 0 and s.low < 1 and s.n == n and sum(s.outcomes.values()) == n


def test_wilson_is_at_95_percent():
    "No success in ten tries: up to 27.8 %, Wilson's own figure."
    s = score("c", "w", [trial(i, False) for i in range(10)])
    assert (round(s.low, 3), round(s.high, 3)) == (0., .278)


def test_the_difference_is_paired():
    rng = np.random.default_rng(0)
    hard = rng.uniform(size=60) < .5
    a, b = [trial(i, not h) for i, h in enumerate(hard)], [trial(i, not h or i % 3 == 0) for i, h in enumerate(hard)]
    d = compare("a", "b", "w", a, b)
    assert d.only_first == 0 and d.only_second == sum(hard[::3]) and d.low > 0 and d.low <= d.gain <= d.high
    assert compare("a", "b", "w", a, b) == d and compare("b", "a", "w", b, a).gain == -d.gain
    same = compare("a", "a", "w", a[:4], a[:4])
    assert same.gain == 0 and same.low < -.2 and same.high > .2      # four ties are not certainty
    with pytest.raises(CookbookError, match="different workspaces"): compare("a", "b", "w", a, b[::-1])
    with pytest.raises(CookbookError, match="different workspaces"): compare("a", "b", "w", a, b[:-1])


def test_open_loop_needs_no_simulator(tmp_path):
    rng = np.random.default_rng(0)
    def episode(T):
        q = np.cumsum(rng.normal(0, .01, (T, 7)), 0).astype(np.float32)
        return Episode(rng.integers(0, 255, (T, 16, 16, 3), dtype=np.uint8), q, q, "do it", 10.)
    dataset = Dataset(write_dataset([episode(40), episode(17)], tmp_path / "d"))
    found = open_loop("idle", Idle(), dataset)
    assert found.chunks == 3 and set(found.mae) == {"arm", "gripper"} and found.mae["arm"] > 0
    class Cheat:
        def act(self, images, states, instructions, generator):
            q = np.concatenate([dataset[i].actions for i in range(2)] + [np.zeros((16, 7))])
            at = [int(np.abs(q - s).sum(1).argmin()) for s in states]
            return np.stack([q[t:t + 16] for t in at])
    assert max(open_loop("cheat", Cheat(), dataset).mae.values()) < 1e-6
    with pytest.raises(CookbookError, match="at least 17"): open_loop("idle", Idle(), Dataset(write_dataset([episode(16)], tmp_path / "short")))
    mixed = Dataset(write_dataset([episode(16), episode(40)], tmp_path / "mixed"))
    assert open_loop("idle", Idle(), mixed).chunks == open_loop("idle", Idle(), Dataset(write_dataset([episode(40)], tmp_path / "long"))).chunks


def test_contact_sheet_is_the_same_twice():
    a, b = (contact_sheet({"idle": rollout(Idle(), SCENES[:2], limit=8)}) for _ in range(2))
    assert a.dtype == np.uint8 and a.ndim == 3 and np.array_equal(a, b)


@pytest.mark.slow
def test_processes_change_nothing_but_the_time():
    alone, shared = (evaluate(Noisy, SCENES, replan=4, limit=8, seed=1, group=1, processes=p) for p in (1, 2))
    for a, b in zip(alone, shared): np.testing.assert_array_equal(a.images, b.images)


def test_the_expert_is_the_ceiling():
    trials = [rollout(Expert(s), [s])[0] for s in SCENES]
    assert sum(t.picked for t in trials) >= 2
    assert replace(trials[0], outcome="dropped").picked and not replace(trials[0], outcome="dropped").success


def test_a_cool_policy_says_the_same_whatever_the_noise(tmp_path):
    build_policy(Backbone.from_pretrained("tiny-backbone"), Embodiment.of(Dataset(write_dataset([demonstrate(seeds("teleop", 1)[0])], tmp_path / "teleop")))).save_pretrained(folder := tmp_path / "policy")
    scene = sample_scene(seeds("evaluation", 1)[0])
    world = Tabletop().arrange(scene)
    seen = world.look().rgb[None], proprioception(world.data.qpos)[None], [scene.instruction]
    plan = lambda actor, seed: actor.act(*seen, torch.Generator().manual_seed(seed))
    cool, warm = PolicyActor(folder), PolicyActor(folder, temperature=1.)
    assert (plan(cool, 0) == plan(cool, 1)).all() and (plan(warm, 0) == plan(warm, 0)).all() and (plan(warm, 0) != plan(warm, 1)).any()
    assert np.abs(plan(PolicyActor(folder, temperature=.01), 0) - plan(cool, 0)).max() < np.abs(plan(warm, 0) - plan(cool, 0)).max()


def test_drawn_noise_is_a_workspaces_own():
    "Whoever else is met beside it, and however long they last, the same workspace is given the same noise under the same seed."
    class Listener:
        def __init__(self): self.heard = {}
        def act(self, images, states, instructions, generator):
            noise = drawn_noise(len(states), (2,), generator)
            for said, n in zip(instructions, noise): self.heard.setdefault(said, []).append(n)
            return np.repeat(np.asarray(states)[:, None], 16, 1)
    scenes = [sample_scene(s) for s in seeds("evaluation", 6)]
    scenes = list({s.instruction: s for s in scenes}.values())
    every, alone = Listener(), Listener()
    rollout(every, scenes, limit=24, seed=3)
    rollout(alone, scenes[1:2], limit=24, seed=3)
    mine = scenes[1].instruction
    assert len(scenes) > 1 and len(alone.heard[mine]) == 3 and all(torch.equal(a, b) for a, b in zip(alone.heard[mine], every.heard[mine]))
    assert not torch.equal(every.heard[mine][0], every.heard[scenes[0].instruction][0])
