"Datasets: what is written comes back, exactly where it can; who mixes, mixes exactly; who fails, leaves things as they were."
import json
import shutil
import weakref
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groot_cookbook import episodes as lib
from groot_cookbook import layout, video, writing
from groot_cookbook.core import CookbookError, sha256
from groot_cookbook.episodes import TABLETOP, Dataset, Episode, at_rate, Modality, Normalizer, RatioSampler, convert, mix, take, write_dataset

VERSIONS = ("v2.1", "v3.0")


def episode(length=9, height=32, width=48, states=7, actions=7, fps=10.0, seed=0, text="pick up the red block"):
    "A square that walks over a gradient, so that every frame is known from its picture."
    rng = np.random.default_rng(seed)
    frames = np.full((length, height, width, 3), 90, np.uint8)
    frames[..., 0] += np.linspace(0, 60, width).astype(np.uint8)
    for t in range(length): frames[t, 4:12, (3 * t) % (width - 8):(3 * t) % (width - 8) + 8] = (220, 40, 30)
    return Episode(frames, rng.normal(size=(length, states)), rng.normal(size=(length, actions)), text, fps, {"kind": "teleop", "seed": seed, "success": True})


def psnr(a, b): return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(version=st.sampled_from(VERSIONS), lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4), size=st.sampled_from([(32, 48), (17, 33), (64, 64)]),
       states=st.sampled_from([0, 1, 5]), actions=st.sampled_from([0, 1, 44]), fps=st.sampled_from([5.0, 10.0, 29.97, 30.0]))
def test_what_is_written_comes_back(tmp_path_factory, version, lengths, size, states, actions, fps):
    given_ = [episode(n, *size, states, actions, fps, i, f"task {i % 2}") for i, n in enumerate(lengths)]
    d = Dataset(write_dataset(given_, tmp_path_factory.mktemp("d") / "d", version, "some_robot"))
    assert len(d) == len(given_) and d.fps == fps and d.robot_type == "some_robot"
    for before, after in zip(given_, d):
        np.testing.assert_array_equal(after.state, before.state)
        np.testing.assert_array_equal(after.actions, before.actions)
        assert after.instruction == before.instruction and after.provenance == before.provenance
        assert after.frames.shape == before.frames.shape and psnr(after.frames, before.frames) > 28
    half = [f"declares no column {c}" for c, n in (("observation.state", states), ("action", actions)) if not n and states + actions]
    assert {f.what for f in lib.validate(d.path)} - set(half) <= {"the picture never changes", "the picture never changes, though the robot moves", *(f"episode {i} has 1 frame" for i, n in enumerate(lengths) if n == 1)}


@pytest.mark.parametrize("version", VERSIONS)
def test_same_episodes_same_bytes(tmp_path, version):
    first = sha256(write_dataset([episode(seed=1), episode(seed=2)], tmp_path / "a", version))
    assert first == sha256(write_dataset([episode(seed=1), episode(seed=2)], tmp_path / "b", version))


@pytest.mark.parametrize("version", VERSIONS)
def test_any_frame_by_number(tmp_path, version):
    d = Dataset(write_dataset([episode(20, seed=i, text=f"t {i}") for i in range(3)], tmp_path / "d", version))
    whole = [d[i].frames for i in range(3)]
    for i, wanted in ((1, [19, 0, 7, 7]), (2, [3]), (0, [])):
        got = d.frames(i, wanted)
        assert len(got) == len(wanted)
        for f, t in zip(got, wanted): np.testing.assert_array_equal(f, whole[i][t])
    with pytest.raises(CookbookError, match="frame"): d.frames(2, [20])
    with pytest.raises(IndexError): d[3]


def test_v3_spreads_over_files_and_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "DATA_MB", 0), monkeypatch.setattr(writing, "VIDEO_MB", 0), monkeypatch.setattr(writing, "FILES_PER_CHUNK", 2)
    given_ = [episode(5, seed=i) for i in range(5)]
    d = Dataset(write_dataset(given_, tmp_path / "d", "v3.0"))
    assert len(list(d.path.glob("data/chunk-*/file-*.parquet"))) == 5 and (d.path / "data/chunk-002/file-000.parquet").is_file()
    assert len(list(d.path.rglob("*.mp4"))) == 5
    for before, after in zip(given_, d): np.testing.assert_array_equal(after.actions, before.actions)
    assert lib.validate(d.path) == []


def test_one_v3_film_holds_many_episodes(tmp_path):
    given_ = [episode(5, seed=i) for i in range(4)]
    given_ = [Episode(np.roll(e.frames, 5 * i, axis=1), e.state, e.actions, e.instruction, e.fps) for i, e in enumerate(given_)]
    d = Dataset(write_dataset(given_, tmp_path / "d", "v3.0"))
    assert len(list(d.path.rglob("*.mp4"))) == 1
    for i, e in enumerate(d): assert np.argmax([psnr(e.frames, g.frames) for g in given_]) == i


def test_conversion_there_and_back(tmp_path):
    a = write_dataset([episode(seed=i) for i in range(2)], tmp_path / "a", modality=Modality(TABLETOP.state, TABLETOP.action, "wrist"))
    c = Dataset(convert(convert(a, tmp_path / "b", "v3.0"), tmp_path / "c", "v2.1"))
    assert c.modality == Dataset(a).modality and c.modality.video_key == "observation.images.wrist"
    np.testing.assert_array_equal(c[1].actions, Dataset(a)[1].actions)
    with pytest.raises(CookbookError, match="v9"): convert(a, tmp_path / "d", "v9")


def test_episode_refuses_what_cannot_be_learned_from():
    e = episode()
    bad = e.actions.copy(); bad[3, 1] = np.inf
    with pytest.raises(CookbookError, match=r"actions\[3, 1\] is inf"): Episode(e.frames, e.state, bad, "x", 10)
    with pytest.raises(CookbookError, match="one row for each"): Episode(e.frames, e.state[:-1], e.actions, "x", 10)
    with pytest.raises(CookbookError, match="uint8"): Episode(e.frames / 255, e.state, e.actions, "x", 10)


def test_a_failed_write_leaves_the_old_dataset(tmp_path, monkeypatch):
    path = write_dataset([episode()], tmp_path / "d")
    before = sha256(path)

    def broken():
        yield episode()
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): write_dataset(broken(), path)
    with pytest.raises(CookbookError, match="one kind"): write_dataset([episode(), episode(states=3)], path)
    with pytest.raises(CookbookError, match="no episodes"): write_dataset([], path)

    def full(self, frames): raise OSError(28, "No space left on device")
    monkeypatch.setattr(video.VideoWriter, "add", full)
    with pytest.raises(CookbookError, match="No space left.*Free some space"): write_dataset([episode()], path)
    assert sha256(path) == before and [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_write_killed_between_two_renames_loses_nothing(tmp_path):
    path = write_dataset([episode()], tmp_path / "d")
    before = sha256(path)
    path.rename(tmp_path / ".d.old")
    with pytest.raises(CookbookError): write_dataset([], path)
    assert sha256(path) == before


def test_only_datasets_are_replaced(tmp_path):
    (tmp_path / "thesis").mkdir(), (tmp_path / "thesis" / "chapter1.tex").write_text("…")
    with pytest.raises(CookbookError, match="not a dataset"): write_dataset([episode()], tmp_path / "thesis")


def test_slices_beyond_the_vector_are_refused(tmp_path):
    wide = Modality({"arm": slice(0, 9)}, {"arm": slice(0, 7)})
    with pytest.raises(CookbookError, match="0:9.*7 numbers"): write_dataset([episode()], tmp_path / "d", modality=wide)


def test_statistics_are_those_of_the_data(tmp_path):
    given_ = [episode(30, seed=i) for i in range(3)]
    d = Dataset(write_dataset(given_, tmp_path / "d"))
    states = np.concatenate([e.state for e in given_]).astype(np.float64)
    for name, value in {"mean": states.mean(0), "std": states.std(0), "min": states.min(0), "q01": np.quantile(states, .01, axis=0)}.items():
        np.testing.assert_allclose(d.stats["state"][name], value, atol=1e-9)
    (d.path / "meta/stats.json").unlink()
    np.testing.assert_allclose(d.stats["state"]["q99"], np.quantile(states, .99, axis=0), atol=1e-9)


arrays = st.integers(1, 6).flatmap(lambda d: st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=d, max_size=d), min_size=1, max_size=20)).map(np.float32)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(arrays)
def test_normalizer_round_trips(x):
    n = Normalizer.fit(x)
    y = n.normalize(x)
    assert np.abs(y).max() <= 1 + 1e-6
    np.testing.assert_allclose(n.denormalize(y), x, atol=1e-6 * (1 + np.ptp(x)) + 1e-6 * np.abs(x).max())
    assert (y[:, np.ptp(x.astype(np.float64), axis=0) == 0] == 0).all()
    same = Normalizer.from_dict(json.loads(json.dumps(n.to_dict())))
    np.testing.assert_array_equal(same.normalize(x), y)
    assert np.abs(Normalizer.fit(x, "q99").normalize(x * 3)).max() <= 1


def test_a_joint_that_never_moved_returns_to_its_place():
    n = Normalizer.fit(np.float32([[1, 5], [2, 5]]))
    assert n.denormalize(np.float32([[0, .8]]))[0, 1] == 5
    with pytest.raises(CookbookError, match="min_max or q99"): Normalizer("mean_std", [0], [1])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4), batch=st.integers(1, 33), seed=st.integers(0, 9), data=st.data())
def test_the_ratio_holds_in_every_batch(sizes, batch, seed, data):
    ratios = np.array(data.draw(st.lists(st.integers(1, 9), min_size=len(sizes), max_size=len(sizes))), float)
    batches = iter(RatioSampler(sizes, ratios, batch, seed))
    total = np.zeros(len(sizes))
    for n in range(1, 25):
        drawn = next(batches)
        assert len(drawn) == batch
        counts = np.bincount([k for k, _ in drawn], minlength=len(sizes))
        total += counts
        assert (np.abs(counts - batch * ratios / ratios.sum()) < len(sizes)).all()          # each batch, up to rounding
        assert (np.abs(total - n * batch * ratios / ratios.sum()) < len(sizes)).all()       # and nothing is ever lost
        assert all(0 <= i < sizes[k] for k, i in drawn)


def test_no_item_comes_again_before_all_have_come():
    batches = iter(mix([range(10), range(6)], [.5, .5], 4, seed=3))
    drawn = [x for _ in range(3) for x in next(batches)]
    assert sorted(i for k, i in drawn if k == 1) == list(range(6))
    again = iter(mix([range(10), range(6)], [.5, .5], 4, seed=3))
    assert [x for _ in range(3) for x in next(again)] == drawn
    for bad in (([5, 0], [.7, .3], 8), ([5], [.7, .3], 8), ([5, 5], [0, 0], 8), ([5, 5], [1, 1], 0)):
        with pytest.raises(CookbookError): RatioSampler(*bad)


def test_memory_holds_one_episode(tmp_path):
    "Episodes are taken from a generator one by one, and may be forgotten at once."
    made, most = [], 0

    def stream():
        nonlocal most
        for i in range(6):
            e = episode(seed=i)
            made.append(weakref.ref(e))
            yield e
            del e
            most = max(most, sum(r() is not None for r in made))
    write_dataset(stream(), tmp_path / "d")
    assert most <= 1


# --- the GR-1 sample --------------------------------------------------------------------------------------------

def test_gr1_reads_as_it_is(gr1):
    d = Dataset(gr1)
    assert (len(d), d.fps, d.robot_type) == (5, 20.0, "GR1ArmsOnly")
    assert d.modality.video_key == "observation.images.ego_view" and d.modality.action["right_hand"] == slice(29, 35)
    e = d[4]
    assert e.frames.shape == (328, 256, 256, 3) and e.state.shape == e.actions.shape == (328, 44)
    assert e.instruction == "pick the cupcake from the counter and place it in the plate"
    np.testing.assert_array_equal(d.frames(4, [300, 12]), e.frames[[300, 12]])
    with pytest.raises(CookbookError, match="no camera called"): Dataset(gr1, "wrist")


def test_gr1_is_held_out_whole_and_streamed(gr1, tmp_path):
    source = take(gr1, heldout=1)
    assert (len(source.teleop), len(source.heldout), source.embodiment) == (4, 1, "gr1")
    assert source.heldout[0].instruction.startswith("pick the cupcake")
    written = Dataset(write_dataset([source.heldout[0]], tmp_path / "d", robot_type=source.robot_type, modality=source.modality))
    np.testing.assert_array_equal(written[0].actions, source.heldout[0].actions)
    assert psnr(written.frames(0, [100]), source.heldout.dataset.frames(4, [100])) > 36
    assert len(take(gr1, heldout=32).heldout) == 1               # a fifth at most: a profile's number fits a small dataset


def test_a_flat_column_is_a_vector_of_one():
    assert layout.matrix(pa.table({"action": [1.0, 2.0]}), "action").shape == (2, 1)
    with pytest.raises(CookbookError, match="different widths"): layout.matrix(pa.table({"action": [[1.0], [1.0, 2.0]]}), "action")
    with pytest.raises(CookbookError, match="not numbers"): layout.matrix(pa.table({"action": ["a"]}), "action")


def test_templates_cannot_reach_into_python():
    for bad in ("{episode_index.__class__}", "{episode_index!r}", "{secret}", "{episode_index:0999999999d}", "{"):
        with pytest.raises(CookbookError): layout.fill(bad, episode_index=1)
    assert layout.fill("e_{episode_index:06d}", episode_index=7) == "e_000007"


def test_the_hubs_cache_may_link_to_its_blobs(tmp_path):
    real = write_dataset([episode()], tmp_path / "real")
    snapshot = tmp_path / "hub" / "snapshots" / "abc"
    (tmp_path / "hub" / "blobs").mkdir(parents=True)
    for i, f in enumerate(p for p in sorted(real.rglob("*")) if p.is_file()):
        (blob := tmp_path / "hub" / "blobs" / str(i)).write_bytes(f.read_bytes())
        (link := snapshot / f.relative_to(real)).parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    assert lib.validate(snapshot) == [] and Dataset(snapshot)[0].length == 9
    shutil.copytree(snapshot, inner := tmp_path / "hub" / "snapshots" / "def" / "gr1.CanSort", symlinks=True)          # one dataset of several in a repository
    assert lib.validate(inner) == [] and Dataset(inner)[0].length == 9


def test_parquet_is_what_pandas_and_gr00t_expect(tmp_path):
    d = write_dataset([episode(seed=i, text=f"t {i}") for i in range(2)], tmp_path / "d")
    t = pq.read_table(d / "data/chunk-000/episode_000001.parquet")
    assert {"observation.state", "action", "timestamp", "frame_index", "episode_index", "index", "task_index",
            "annotation.human.task_description", "next.reward", "next.done"} == set(t.column_names)
    assert t["index"][0].as_py() == 9 and t["task_index"][0].as_py() == 1 and t["next.done"].to_pylist() == [False] * 8 + [True]
    stats = json.loads((d / "meta/stats.json").read_text())
    assert all(set(s) == {"mean", "std", "min", "max", "q01", "q99"} for s in stats.values())      # one more key and GR00T's loader fails on it


@given(T=st.integers(1, 60), fps=st.sampled_from([8., 10., 16., 20., 30.]), to=st.sampled_from([5., 8., 10., 16., 20., 30.]))
@settings(max_examples=60, deadline=None)
def test_another_clock_keeps_order_duration_and_the_last_command(T, fps, to):
    clock = np.arange(T, dtype=np.float32)[:, None]
    e = Episode((clock[:, None, None] * np.ones((1, 2, 2, 3))).astype(np.uint8), clock, np.minimum(clock, max(T - 2, 0)), "", fps)
    out = at_rate(e, to)
    ticks = np.arange(out.length) * fps / to                                   # in old frames
    assert abs((out.length - 1) / to - (T - 1) / fps) < 1 / to and out.fps == to
    assert np.abs(out.frames[:, 0, 0, 0] - ticks).max() <= .5 + 1e-6
    np.testing.assert_allclose(out.state[:, 0], ticks, atol=1e-4)
    for i in range(out.length - 1):                                            # the last command that was given before the next frame
        assert out.actions[i, 0] == max(k for k in range(max(T - 1, 1)) if k < ticks[i + 1] - 1e-6)
    if out.length > 1: assert (out.actions[-1] == out.actions[-2]).all()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("listed", (True, False))
def test_cameras_whose_names_end_alike_are_told_apart(tmp_path, version, listed):
    e = episode()
    sides = {f"{side}_rgb": e.frames[::-1] if side == "right" else e.frames[:, ::-1] for side in ("left", "right")}
    modality = Modality(TABLETOP.state, TABLETOP.action, "front", others={name: f"observation.images.{name.replace('_', '.')}" for name in sides})
    path = write_dataset([replace(e, views=sides)], tmp_path / "d", version, modality=modality)
    if not listed: (path / "meta" / "modality.json").unlink()
    d = Dataset(path, views=True)
    assert d.modality.cameras == {"front": "observation.images.front", "left_rgb": "observation.images.left.rgb", "right_rgb": "observation.images.right.rgb"}
    for name, frames in sides.items():
        assert psnr(d[0].views[name], frames) > 30
        for asked in (name, modality.others[name]):
            own = Dataset(path, asked)
            assert own.modality.video_key == modality.others[name] and psnr(own[0].frames, frames) > 30
    with pytest.raises(CookbookError, match="rgb"): Dataset(path, "rgb")
    again = Dataset(convert(path, tmp_path / "again", version), views=True)
    assert set(again[0].views) == set(sides)


def test_a_name_means_the_same_camera_whoever_asks(tmp_path):
    e, views = episode(), ("left.rgb", "right.rgb")
    path = write_dataset([replace(e, views={v.replace(".", "_"): e.frames for v in views})], tmp_path / "d",
                         modality=Modality(TABLETOP.state, TABLETOP.action, "front", others={v.replace(".", "_"): f"observation.images.{v}" for v in views}))
    table = path / "meta" / "modality.json"
    for listed in ({"rgb": "observation.images.right.rgb"}, {"front": "observation.images.front", "ego_view": "observation.images.front"}, {}):
        told = json.loads(table.read_text()) | {"video": {name: {"original_key": key} for name, key in listed.items()}}
        table.write_text(json.dumps(told))
        named = Dataset(path).modality.cameras
        assert sorted(named.values()) == sorted(f"observation.images.{v}" for v in ("front", *views))
        for name, column in named.items():
            for asked in (name, column): assert Dataset(path, asked).modality.video_key == column and Dataset(path, asked).modality.cameras == {name: column} | named
        for name, column in listed.items(): assert Dataset(path, name).modality.video_key == column


@pytest.mark.parametrize("version", VERSIONS)
def test_the_camera_that_was_chosen_stays_the_first(tmp_path, version):
    e = episode()
    path = write_dataset([replace(e, views={"front": e.frames[:, ::-1]})], tmp_path / "d", version, camera="wrist")
    assert Dataset(path).modality.video == "wrist" and psnr(Dataset(path)[0].frames, e.frames) > 30
    again = Dataset(convert(path, tmp_path / "again", version, "front"))
    assert list(again.modality.cameras) == ["front", "wrist"] and psnr(again[0].frames, e.frames[:, ::-1]) > 30
    many = write_dataset([replace(episode(seed=i), views={"front": e.frames[:, ::-1]}) for i in range(2)], tmp_path / "many", version, camera="wrist")
    assert take(many, 1, "front").modality.video == "front" and take(many, 1).modality.video == "wrist"


def test_no_film_takes_the_place_of_another(tmp_path):
    e = episode()
    with pytest.raises(CookbookError, match="camera=NAME"): write_dataset([replace(e, views={"front": e.frames[::-1]})], tmp_path / "d")
    twice = Modality(TABLETOP.state, TABLETOP.action, "front", "observation.images.front", others={"side": "observation.images.front"})
    with pytest.raises(CookbookError, match="two are one"): write_dataset([replace(e, views={"side": e.frames[::-1]})], tmp_path / "d", modality=twice)
    assert not (tmp_path / "d").exists()


def test_what_films_distances_is_no_camera_to_learn_from(tmp_path):
    e = episode()
    path = write_dataset([replace(e, views={"colour": e.frames[::-1]})], tmp_path / "d", camera="depth")
    info = json.loads((path / "meta/info.json").read_text())
    info["features"]["observation.images.depth"]["info"]["video.is_depth_map"] = True
    (path / "meta/info.json").write_text(json.dumps(info))
    d = Dataset(path, views=True)
    assert d.modality.video == "colour" and not d.modality.others and Dataset(path, "depth").modality.video == "depth"
    assert any("depth films distances" in f.what for f in lib.validate(path))
    del info["features"]["observation.images.colour"]
    (path / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(CookbookError, match="no camera films colours"): Dataset(path)
    assert any(f.severity == "error" and "depth films distances" in f.what for f in lib.validate(path)) and Dataset(path, "depth").modality.video == "depth"


def test_a_link_is_followed_and_home_is_home(tmp_path, monkeypatch):
    (tmp_path / "big").mkdir()
    (link := tmp_path / "link").symlink_to(tmp_path / "big")
    for _ in range(2): assert Dataset(write_dataset([episode()], link))[0].length == 9
    assert link.is_symlink() and (tmp_path / "big" / "meta").is_dir() and sorted(p.name for p in tmp_path.iterdir()) == ["big", "link"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert write_dataset([episode()], "~/mine") == tmp_path / "mine" and len(Dataset("~/mine")) == 1 and lib.validate("~/mine") == []
    with pytest.raises(CookbookError, match="is the dataset that is read"): convert(link, tmp_path / "big", "v3.0")


@pytest.mark.parametrize("how, words", [(dict(fps=0.), "fps is 0"), (dict(fps=float("nan")), "fps is nan"), (dict(instruction=None), "instruction is None"), (dict(instruction=["a"]), "one sentence")])
def test_an_episode_says_what_it_cannot_be(how, words):
    with pytest.raises(CookbookError, match=words): replace(episode(), **how)


def test_what_cannot_be_written_is_said_before_a_film_is_made(tmp_path):
    with pytest.raises(CookbookError, match="episode 0: its provenance"): write_dataset([replace(episode(), provenance={"seed": np.int64(3)})], tmp_path / "d")
    d = Dataset(write_dataset([episode()], tmp_path / "d"))
    with pytest.raises(CookbookError, match="no camera called 'nope'"): d.frames(0, [0], "nope")


def test_the_frame_nearest_to_a_time_though_the_film_changes_its_pace(monkeypatch, tmp_path):
    fast, slow = np.arange(60) / 60, 1 + np.arange(30) / 10
    monkeypatch.setattr(video, "frame_times", lambda path: (np.round(1000 * np.r_[fast, slow]) + 40, None, 1 / 1000))
    assert [video.frame_at(tmp_path, t) for t in np.r_[fast, slow]] == list(range(90))
    assert video.frame_at(tmp_path, slow[-1] + .2) == 90


def test_an_episode_in_a_long_film_begins_where_the_clock_of_the_film_says(tmp_path):
    "Films at 29.97 in a dataset that says 30, as many are: by the declared rate an episode far into a file would be read a frame late, further on many."
    given_ = [episode(n, fps=29.97, seed=i) for i, n in enumerate((1200, 60))]
    path = write_dataset(given_, tmp_path / "d", "v3.0")
    info = path / "meta" / "info.json"
    told = json.loads(info.read_text())
    told["fps"] = 30
    info.write_text(json.dumps(told))
    assert psnr(Dataset(path)[1].frames, given_[1].frames) > 30
    assert not [f for f in lib.validate(path) if "frames, but episode" in str(f)]


@pytest.mark.parametrize("robot, slot", [("GR1ArmsAndWaistFourierHands", "gr1"), ("fourier GR-1", "gr1"), ("oxe_droid", "new_embodiment"), ("agibot_genie1", "new_embodiment"),
                                         ("android_v2", "new_embodiment"), ("gr100_arm", "new_embodiment"), ("so100", "new_embodiment")])
def test_a_robot_gets_the_slot_of_its_own_name(robot, slot): assert lib.slot(robot) == slot


def test_episodes_on_another_clock_stay_on_disk(tmp_path):
    "Read when they are asked for, and then what `at_rate` gives."
    dataset = Dataset(write_dataset([episode(20, seed=i, text=f"t {i}") for i in range(3)], tmp_path / "d"))
    slow = lib.AtRate(dataset, 5.)
    first = weakref.ref(slow[0])
    assert len(slow) == 3 and first() is None and [e.fps for e in slow] == [5.] * 3
    np.testing.assert_array_equal(slow[1].frames, at_rate(dataset[1], 5.).frames)
