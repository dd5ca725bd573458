"What lerobot wrote is read here, number by number and frame by frame; what is written here survives both formats, there and back."
import json, os, threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groot_cookbook import cli
from groot_cookbook.core import CookbookError, data_dir
from groot_cookbook.episodes import Dataset, Episode, Modality, at_rate, convert, validate, write_dataset
from groot_cookbook.layout import inside, read_json, read_rows
from groot_cookbook.video import KEPT, frame_times, read_frames

HERE = Path(__file__).parent
LEROBOT = HERE / "fixtures" / "lerobot_v30"          # made by tests/peers/lerobot_write.py in lerobot's own environment
GRID = (48, 64)                                      # pixels of the pictures below: places for 48 frames


def picture(number: int, height: int, width: int) -> np.ndarray:
    image, columns = np.full((height, width, 3), 90, np.uint8), width // 8
    row, column = divmod(number, columns)
    image[8 * row:8 * row + 8, 8 * column:8 * column + 8] = (220, 220, 60)
    return image


def shown(frames: np.ndarray) -> list[int]:          # (T, H, W, 3) -> the number that each frame shows
    (t, h, w), red = frames.shape[:3], frames[..., 0].astype(int)
    return red.reshape(t, h // 8, 8, w // 8, 8).mean((2, 4)).reshape(t, -1).argmax(1).tolist()


def two_eyed(length: int, seed: int, fps: float = 10., joints: int = 3) -> Episode:
    rng = np.random.default_rng(seed)
    film = lambda size, first: np.stack([picture(first + t, *size) for t in range(length)])
    return Episode(film(GRID, seed), rng.normal(size=(length, joints)), rng.normal(size=(length, joints)), f"task {seed % 2}", fps, {"kind": "teleop", "seed": seed},
                   {"wrist": film((40, 80), seed + 1)})


# --- lerobot's dataset, our reader ------------------------------------------------------------------------------

def test_what_lerobot_wrote_is_read_exactly():
    assert [f.file for f in validate(LEROBOT)] == ["meta/modality.json"]                           # which lerobot knows nothing of
    d = Dataset(LEROBOT, views=True)
    assert (len(d), d.fps, d.robot_type, d.layout.version) == (2, 30., "so101_follower", "v3.0")
    assert d.modality.cameras == {"front": "observation.images.front", "wrist": "observation.images.wrist"}
    assert d.names["action"] == ["shoulder_pan.pos", "elbow_flex.pos", "gripper.pos"]
    for i, (length, task) in enumerate(((24, "pick up the cup"), (17, "put the cup down"))):
        e, wave = d[i], lambda t: np.sin(np.arange(3) + .1 * np.asarray(t)[:, None] + i).astype(np.float32)
        assert (e.length, e.instruction) == (length, task)
        assert shown(e.frames) == shown(e.views["wrist"]) == [20 * i + t for t in range(length)]        # the second episode begins in the middle of the film
        np.testing.assert_allclose(e.state, wave(range(length)), atol=1e-6)
        np.testing.assert_allclose(e.actions, wave(range(1, length + 1)), atol=1e-6)
        assert shown(d.frames(i, [16, 2, 2])) == [20 * i + 16, 20 * i + 2, 20 * i + 2]


def test_what_lerobot_wrote_becomes_what_gr00t_reads(tmp_path):
    arm = Modality({"arm": slice(0, 2), "gripper": slice(2, 3)}, {"arm": slice(0, 2), "gripper": slice(2, 3)})
    d = Dataset(convert(LEROBOT, tmp_path / "d", "v2.1", modality=arm), views=True)
    assert validate(d.path) == [] and d.names == Dataset(LEROBOT).names
    table = json.loads((d.path / "meta" / "modality.json").read_text())
    assert table["action"] == {"arm": {"start": 0, "end": 2}, "gripper": {"start": 2, "end": 3}}
    assert shown(d[1].views["wrist"]) == [20 + t for t in range(17)]


# --- our dataset, both formats, there and back ------------------------------------------------------------------

@settings(max_examples=8, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), fps=st.sampled_from([5., 10., 29.97, 30., 50.]), camera=st.sampled_from(["front", "wrist"]))
def test_from_v21_to_v30_and_back_nothing_is_lost_but_video_coding(tmp_path_factory, lengths, fps, camera):
    at, names = tmp_path_factory.mktemp("d"), {"action": ["a.pos", "b.pos", "grip.pos"]}
    episodes = [two_eyed(n, i, fps) for i, n in enumerate(lengths)]
    first = write_dataset(episodes, at / "a", "v2.1", "some_arm", camera="front", modality=Modality({"arm": slice(0, 2)}, {"arm": slice(0, 2), "grip": slice(2, 3)}), names=names)
    last = convert(convert(first, at / "b", "v3.0", camera), at / "c", "v2.1", "front")
    for name in ("info.json", "modality.json", "tasks.jsonl", "episodes.jsonl", "stats.json"):
        before, after = (read_json(d / "meta" / name, lines=name.endswith("l")) for d in (first, last))
        assert before == after, name
    for p in sorted(first.rglob("*.parquet")): assert p.read_bytes() == (last / p.relative_to(first)).read_bytes()
    for before, after in zip(episodes, Dataset(last, views=True)):
        assert shown(after.frames) == shown(before.frames) and shown(after.views["wrist"]) == shown(before.views["wrist"])
        assert after.provenance == before.provenance


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_every_time_stamp_leads_to_its_frame(tmp_path, version):
    "As GR00T and LeRobot look frames up: by the row's time stamp, from the second at which the episode begins."
    d = Dataset(write_dataset([two_eyed(n, i, 29.97) for i, n in enumerate((7, 1, 11, 5))], tmp_path / "d", version))
    for i, entry in enumerate(d.layout.entries):
        stamps = read_rows(d.layout, entry, ["timestamp", "episode_index"])["timestamp"].to_numpy()
        for key, (film, begin) in entry.videos.items():
            times, _, tick = frame_times(inside(d.path, film))
            asked, seen = begin + stamps.astype(np.float64), (times - times[0]) * tick
            nearest = np.abs(asked[:, None] - seen).argmin(1)
            assert np.abs(asked - seen[nearest]).max() < 1e-4                                   # LeRobot's tolerance
            assert shown(read_frames(inside(d.path, film), nearest)) == [i + (key.endswith("wrist")) + t for t in range(entry.length)]


def test_cameras_keep_their_columns_and_one_is_learned_from(tmp_path):
    d = Dataset(write_dataset([two_eyed(5, 0)], tmp_path / "d", "v3.0"))
    assert d[0].views == {} and set(Dataset(d.path, views=True)[0].views) == {"wrist"}
    other = Dataset(d.path, "wrist", views=True)
    assert shown(other[0].frames) == shown(d.frames(0, range(5), "wrist")) and set(other[0].views) == {"front"}
    slow = at_rate(Dataset(d.path, views=True)[0], 5.)
    assert shown(slow.views["wrist"]) == [1, 3, 5]


def test_a_camera_cannot_lead_out_of_the_folder(tmp_path):
    for key in ("observation.images.../../../evil", "/etc/evil", "a/b", "..", ""):
        m = Modality({}, {}, "front", "observation.images.front", others={"wrist": key or "x/.."})
        with pytest.raises(CookbookError, match="cannot name a folder"): write_dataset([two_eyed(2, 0)], tmp_path / "d", modality=m)
    assert [p.name for p in tmp_path.iterdir()] == []


def test_cameras_of_an_episode_share_its_clock(tmp_path):
    e = two_eyed(4, 0)
    with pytest.raises(CookbookError, match="saw 3 and 4 frames"): Episode(e.frames, e.state, e.actions, "x", 10., {}, {"wrist": e.views["wrist"][:3]})
    with pytest.raises(CookbookError, match="one kind"): write_dataset([e, Episode(e.frames, e.state, e.actions, "x", 10.)], tmp_path / "d")


@pytest.mark.parametrize("names, expected", [(["a", "b"], ["a", "b"]), ({"motors": ["a", "b"]}, ["a", "b"]), ({"axes": {"b": 1, "a": 0}}, ["a", "b"]), ([["a", "b"]], ["a", "b"]),
                                             (["a"], []), (None, []), ("ab", []), ({"motors": [1, 2]}, [])])
def test_names_are_found_however_they_are_nested(tmp_path, names, expected):
    d = write_dataset([two_eyed(2, 0, joints=2)], tmp_path / "d")
    info = json.loads((d / "meta" / "info.json").read_text())
    info["features"]["action"]["names"] = names
    (d / "meta" / "info.json").write_text(json.dumps(info))
    assert Dataset(d).names["action"] == expected


def test_convert_keeps_all_cameras(tmp_path, capsys):
    assert cli.main(["convert", str(LEROBOT), "--to", "v2.1", "--out", str(tmp_path / "d")]) == 0
    assert "2 episodes written as LeRobot v2.1" in capsys.readouterr().out
    assert len(list((tmp_path / "d").rglob("*.mp4"))) == 4


# --- a film that stays open -------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def films(tmp_path_factory) -> list[Path]:
    at = tmp_path_factory.mktemp("films")
    return [next(write_dataset([two_eyed(12, i)], at / str(i)).rglob("*front/*.mp4")) for i in range(KEPT + 3)]


def test_open_films_do_not_mix(films):
    rng = np.random.default_rng(0)
    for _ in range(60):
        i, wanted = int(rng.integers(len(films))), rng.integers(0, 12, rng.integers(1, 5))
        assert shown(read_frames(films[i], wanted)) == [i + int(t) for t in wanted]


def test_a_film_that_was_replaced_is_opened_anew(films, tmp_path):
    film = tmp_path / "film.mp4"
    for i in (0, 3):
        film.write_bytes(films[i].read_bytes())
        os.utime(film, ns=(i + 1, i + 1))
        assert shown(read_frames(film, [5, 1])) == [i + 5, i + 1]


def test_threads_have_films_of_their_own(films):
    wrong = []

    def look(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for t in rng.integers(0, 12, 40):
            if shown(read_frames(films[0], [t])) != [int(t)]: wrong.append(int(t))
    threads = [threading.Thread(target=look, args=(s,)) for s in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore")
def test_after_a_fork_nobody_moves_the_others_place(films):
    read_frames(films[0], [3])
    child = os.fork()
    if not child:
        try: os._exit(0 if all(shown(read_frames(films[0], [t])) == [t] for t in range(11, -1, -1)) else 1)
        finally: os._exit(2)
    mine = [shown(read_frames(films[0], [t])) == [t] for t in range(12)]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 and all(mine)


# --- what was held against the peers ----------------------------------------------------------------------------

def test_the_peers_found_every_number_and_frame_in_its_place():
    results = json.loads((data_dir() / "results" / "peers.json").read_text())
    for name in ("v2.1", "v3.0", "chapter 20, v2.1", "chapter 20, v3.0"):
        found = results[name]
        assert set(found["frame_offset"]) == {"0"} and not any(v for k, v in found.items() if k.endswith("wrong"))
        assert sum(found["frame_offset"].values()) >= (read := found.get("steps_read") or found.get("frames_read")) > 0
        if name.startswith("chapter 20"): assert f"{read} steps of {found.get('steps') or found.get('frames')}" in (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
