"""The camera: what it sees is where it is, and nobody can tell which rays were saved."""
import numpy as np
from hypothesis import given, settings, strategies as st

from groot_cookbook import workspace as W
from groot_cookbook.camera import Backdrop, Camera, Plane, look


def test_left_is_left_in_the_image():
    scene, camera = W.sample_scene(1), Camera()
    left, right = (camera.project(np.array([*scene.bins[s], 0.])) for s in W.SIDES)
    assert left[0] < W.SIZE / 2 < right[0]


def test_every_bin_and_block_of_the_farthest_workspaces_is_in_the_picture():
    camera = Camera()
    for seed in W.seeds("heldout", 200):
        scene = W.sample_scene(seed, 1.)
        points = camera.project(np.array([*((x, y, 0.) for x, y in scene.bins.values()), *((x, y, W.BLOCK) for x, y, _ in scene.blocks.values())]))
        assert (points > 0).all() and (points < W.SIZE - 1).all(), seed


def test_segmentation_and_projection_agree_on_where_a_block_is():
    scene = W.sample_scene(5)
    view = W.Tabletop().arrange(scene).look()
    for colour, (x, y, _) in scene.blocks.items():
        rows, columns = np.nonzero(view.segmentation == 4 + list(W.COLOURS).index(colour))
        assert np.abs(np.array([columns.mean(), rows.mean()]) - Camera().project(np.array([x, y, W.BLOCK]))).max() < 1.5


def test_depth_is_the_distance_along_the_axis():
    camera, world = Camera(), W.Tabletop().arrange(W.sample_scene(5))
    view = world.look()
    table = (view.segmentation == 0) & np.isfinite(view.depth)
    rays = camera.rays()[:, 0].reshape(W.SIZE, W.SIZE, 3)
    heights = camera.position[2] + (rays * (view.depth / -(rays @ camera.plane.axes[2]))[..., None])[..., 2]
    assert np.abs(heights[table]).max() < 1e-3


def test_the_arm_casts_a_shadow():
    scene, camera = W.sample_scene(3), Camera(samples=1)
    world = W.Tabletop(camera).arrange(scene)
    with_arm = world.look()
    arm = world.backdrop.labels[:-1] == 1
    world.model.geom_pos[:] = np.where(arm[:, None], [0, 0, 50.], world.model.geom_pos)                                # the arm is gone, the table stays
    world.pose(world.data.qpos.copy())
    without = look(world.data, Backdrop(world.model, world.data, scene, camera))
    table = (with_arm.segmentation == 0) & (without.segmentation == 0)
    darker = without.rgb[table].sum(-1).astype(int) - with_arm.rgb[table].sum(-1)
    assert (darker >= 0).all() and (darker > 30).sum() > 20


@given(st.integers(0, 2**31 - 1), st.floats(0, 1), st.lists(st.floats(-2.5, 2.5), min_size=6, max_size=6), st.sampled_from([24, 64]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_no_ray_that_was_saved_would_have_shown_anything(seed, shift, joints, size, first):
    world = W.Tabletop(Camera(size=size)).arrange(W.sample_scene(seed, shift))
    if first: world.look()                                                          # the backdrop is older than the pose
    pose = world.data.qpos.copy(); pose[:6] = joints                                # anywhere: before the lens, behind it, through the table
    pose[W.block_slice(world.scene.target)][:3] += .1
    saved = world.pose(pose).look()
    whole = Backdrop(world.model, world.data, world.scene, world.camera)
    for name in ("plane", "lamp"): setattr(whole, name, Everything(**vars(getattr(whole, name))))
    every = look(world.data, whole)
    for name in ("rgb", "depth", "segmentation"): np.testing.assert_array_equal(getattr(saved, name), getattr(every, name))


class Everything(Plane):
    "A plane on which every cell may be hidden, so that every ray is cast."
    def cover(self, corners): return np.ones((self.n, self.n), bool)


def test_a_lamp_beside_the_table_saves_nothing_and_still_draws_right():
    scene = W.Scene(**{**vars(W.sample_scene(4)), "light": (.9, .3, .25)})         # lower than the arm
    world = W.Tabletop().arrange(scene)
    assert world.look().rgb.std() > 20 and world.backdrop.lamp.cover(world.backdrop.boxes(world.data)).all()
    whole = Backdrop(world.model, world.data, scene, world.camera)
    whole.lamp = whole.plane = Everything(**vars(whole.plane))
    np.testing.assert_array_equal(world.look().rgb, look(world.data, whole).rgb)


def test_another_scene_is_another_backdrop():
    world = W.Tabletop().arrange(W.sample_scene(1, 1.))
    world.look()
    other = W.sample_scene(2, 1.)
    np.testing.assert_array_equal(world.arrange(other).look().rgb, W.Tabletop().arrange(other).look().rgb)
