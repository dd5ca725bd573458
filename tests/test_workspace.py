"""The workspace at its edges: what the chapter does not show."""
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings, strategies as st

from groot_cookbook import workspace as W


@given(st.integers(0, 2**31 - 1), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_a_scene_is_solvable_by_construction(seed, shift):
    scene = W.sample_scene(seed, shift)
    spots = [np.array(b[:2]) for b in scene.blocks.values()]
    assert scene.target in scene.blocks and 1 <= len(spots) <= 2
    assert all(np.linalg.norm(a - b) > 2 * W.BLOCK * 2**.5 for i, a in enumerate(spots) for b in spots[:i])
    assert all(np.abs(np.subtract(bin_, spot)).max() > .07 for bin_ in scene.bins.values() for spot in spots)
    assert scene.bins["left"][1] < 0 < scene.bins["right"][1]


def test_the_expert_succeeds_where_it_is_hardest():
    done = [W.simulate(s := W.sample_scene(k, 1.), W.expert(s, .5)).success for k in W.seeds("heldout", 40, 500)]
    assert np.mean(done) >= .975


def test_what_a_trembling_hand_lets_go_of_is_not_thrown():
    "Before set points travelled, a third of these blocks left the bin at a metre a second."
    def placed(seed):
        scene, tremor = W.sample_scene(seed), np.random.default_rng(seed).normal(0, .04, (W.FRAMES - 1, 7))
        return W.simulate(scene, W.expert(scene) + tremor * [1, .3, .3, 0, .3, 1, 0]).success
    assert np.mean([placed(k) for k in W.seeds("heldout", 12, 300)]) > .9


def test_a_tick_ends_where_it_was_told_to():
    "Set points have arrived, and the arm has settled, before the next command."
    scene = W.sample_scene(5, 1.)
    trace = W.simulate(scene, W.expert(scene))
    assert np.abs(trace.state[1:, :6] - trace.actions[:-1, :6]).max() < .02


def test_success_needs_the_right_block_in_the_right_bin_and_an_open_hand():
    scene = W.sample_scene(11)
    other = {"left": "right", "right": "left"}[scene.side]
    wrong = W.Scene(**{**vars(scene), "side": other})
    trace = W.simulate(scene, W.expert(wrong))
    assert trace.picked and not trace.success
    held = W.simulate(scene, W.expert(scene)[:45])
    assert held.picked and not held.success


def test_environment_keeps_gymnasiums_contract():
    check_env(W.Workspace(), skip_render_check=True)


def test_episodes_are_cut_at_the_limit():
    env = W.Workspace(limit=3)
    env.reset(seed=0)
    assert [env.step(np.r_[W.HOME, 0])[3] for _ in range(3)] == [False, False, True]


def test_play_stays_in_reach_and_differs_from_the_expert():
    actions = W.play(np.random.default_rng(0))
    assert actions.shape == (W.FRAMES - 1, 7) and np.isfinite(actions).all() and abs(actions[:, :6]).max() < np.pi
    assert set(np.unique(actions[:, 6])) <= {0., 1.}


def test_parallel_demonstrations_are_the_serial_ones():
    ks = W.seeds("heldout", 2, 50)
    for a, b in zip(W.demonstrations(ks, workers=1), W.demonstrations(ks, workers=2)):
        assert (a.frames == b.frames).all() and (a.actions == b.actions).all()


def test_seeds_of_a_purpose_end_where_the_next_begin():
    with pytest.raises(ValueError): W.seeds("idm", 2, 999_999)
    assert W.seeds("idm", 1, 999_999)[0] + 1 == W.seeds("critic", 1)[0]
