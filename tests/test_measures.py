"""What a dream is worth, at the edges: every measure must fail on the films that it is there to catch."""
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from groot_cookbook import measures as M
from groot_cookbook.workspace import BLOCK, Tabletop, block_slice, expert, render, sample_scene, seeds, simulate


@pytest.fixture(scope="module")
def filmed():
    scene = sample_scene(seeds("heldout", 1, 9100)[0], .7)
    trace = simulate(scene, expert(scene))
    return scene, trace, render(trace)


@given(st.integers(0, 2**31 - 1), st.floats(0, 1))
@settings(max_examples=15, deadline=None)
def test_every_block_of_a_seed_image_is_found_where_it_stands(seed, shift):
    scene, world = sample_scene(seed, shift), Tabletop()
    picture = world.arrange(scene).look().rgb
    seen = M.sightings(picture[None].repeat(2, 0), scene)
    assert set(seen) == set(scene.blocks)
    for colour, (x, y, _) in scene.blocks.items():
        assert .6 < seen[colour].area[0] < 1.4
        assert np.abs(seen[colour].place[0] - world.camera.project(np.array([x, y, BLOCK]))).max() < 2
    assert M.permanence(seen, scene.target) == 1


def test_a_film_that_stops_half_way_was_not_followed(filmed):
    scene, _, film = filmed
    assert M.worth(film, scene).followed
    assert not M.worth(np.concatenate([film[:30], film[29:30].repeat(27, 0)]), scene).followed


def test_a_block_that_fades_or_doubles_is_not_permanent(filmed):
    scene, trace, film = filmed
    qpos = trace.qpos.copy(); qpos[20:40, block_slice(scene.target).start] = -2.
    gone = film.copy(); gone[20:40] = [Tabletop().arrange(scene).pose(q).look().rgb for q in qpos[20:40]]
    assert M.permanence(M.sightings(gone, scene), scene.target) == pytest.approx(37 / 57)
    column, row = np.round(M.sightings(film, scene)[scene.target].place[0]).astype(int)
    patch, doubled = film[0, row - 5:row + 6, column - 5:column + 6], film[:1].repeat(57, 0)
    doubled[30:, 52:63, 5:16] = patch                                                # one copy, beside it
    assert M.permanence(M.sightings(doubled, scene), scene.target) == pytest.approx(30 / 57)


def test_replay_asks_the_simulator(filmed):
    scene, trace, film = filmed
    turned = trace.actions[:-1] + np.array([.15, 0, 0, 0, 0, 0, 0])                  # nine degrees beside the block
    right, beside = M.worth(film, scene, trace.actions[:-1]), M.worth(film, scene, turned)
    assert right.replayed and right.picked and not beside.picked and not beside.replayed


def test_kinds_of_wishes_are_what_they_say():
    kinds = M.examination(5)
    assert all(len(v) == 5 for v in kinds.values())
    assert all(s.shift == 0 for k in ("nominal", "object", "behaviour") for s in kinds[k]) and all(s.shift == 1 for s in kinds["environment"])
    assert all(a.side != b.side and a.blocks == b.blocks for a, b in zip(kinds["nominal"], kinds["behaviour"]))
    assert all(s.target != sample_scene(s.seed).target and len(s.blocks) == 2 for s in kinds["object"])


def test_the_mean_leaves_out_what_was_not_taken():
    whole, part = M.Worth(True, 1., True, False, 30., .9), M.Worth(False, .5)
    assert M.mean_worth([whole, part]) == {"followed": .5, "permanence": .75, "picked": 1., "replayed": 0., "psnr": 30., "ssim": .9}
    assert M.mean_worth([]) == {}


def test_a_block_behind_the_arm_is_not_gone_and_one_that_never_comes_back_is():
    hidden, gone, there = np.ones(10), np.ones(10), np.ones(10)
    hidden[3:6], gone[6:] = 0, 0
    sighting = lambda area: M.Sighting(area, np.zeros((10, 2)))
    assert M.permanence({"red": sighting(there), "blue": sighting(hidden)}, "red") == 1
    assert M.permanence({"red": sighting(there), "blue": sighting(gone)}, "red") == .6
    assert M.permanence({"red": sighting(hidden), "blue": sighting(there)}, "red") == .7
