"The validator: each break by its name, and never a traceback whatever the folder holds."
import json
import os
import shutil

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from groot_cookbook import cli
from groot_cookbook.core import CookbookError, data_dir
from groot_cookbook.episodes import Dataset, Episode, convert, take, validate, write_dataset
from groot_cookbook.runner import prepare
from groot_cookbook.video import VideoWriter, read_frames
from test_episodes import episode

PARQUET, FILM = "data/chunk-000/episode_000001.parquet", "videos/chunk-000/observation.images.front/episode_000001.mp4"


@pytest.fixture(scope="session")
def clean(tmp_path_factory):
    return write_dataset([episode(12, 64, 64, seed=i, text=f"pick up block {i}") for i in range(3)], tmp_path_factory.mktemp("clean") / "d")


@pytest.fixture(scope="session")
def clean3(clean): return convert(clean, clean.parent / "v3", "v3.0")


@pytest.fixture
def d(clean, tmp_path): return shutil.copytree(clean, tmp_path / "d")


@pytest.fixture
def d3(clean3, tmp_path): return shutil.copytree(clean3, tmp_path / "d3")


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def info(**values): return lambda d: edit(d / "meta/info.json", lambda v: v.update(values))


def rows(change):
    def apply(d):
        table = pq.read_table(d / PARQUET).to_pydict()
        table = change(table) or table
        pq.write_table(pa.table(table), d / PARQUET)
    return apply


def film(frames, fps=10):
    def apply(d):
        (d / FILM).unlink()
        writer = VideoWriter(d / FILM, fps, frames.shape[1:])
        writer.add(frames)
        writer.close()
    return apply


def modality(change): return lambda d: edit(d / "meta/modality.json", change)


def set_cell(column, t, k, value):
    def change(table): table[column][t][k] = value
    return change


def numbers(column, values):
    def change(table): table[column] = values(table[column])
    return change


def link_out(d):
    shutil.copy(d / PARQUET, d.parent / "outside.parquet")
    (d / PARQUET).unlink()
    (d / PARQUET).symlink_to(d.parent / "outside.parquet")


def letterboxed():
    frames = episode(12, 64, 64).frames.copy()
    frames[:, :10] = frames[:, -10:] = 0
    frames[:, 10:54] += np.arange(12, dtype=np.uint8)[:, None, None, None] * 8
    return frames


NOISE = np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3), dtype=np.uint8)
BREAKS = {                                     # what was done -> (how, file named, words, severity)
    "no info": (lambda d: (d / "meta/info.json").unlink(), "meta/info.json", "missing", "error"),
    "info is no JSON": (lambda d: (d / "meta/info.json").write_text("{"), "meta/info.json", "not JSON", "error"),
    "info is a list": (lambda d: (d / "meta/info.json").write_text("[1]"), "meta/info.json", "not an object", "error"),
    "info is binary": (lambda d: (d / "meta/info.json").write_bytes(b"\xff\xfe\x00"), "meta/info.json", "not JSON", "error"),
    "unknown version": (info(codebase_version="v1.6"), "meta/info.json", "codebase_version is 'v1.6'", "error"),
    "no version": (lambda d: edit(d / "meta/info.json", lambda v: v.pop("codebase_version")), "meta/info.json", "codebase_version is None", "error"),
    "v2 called v3": (info(codebase_version="v3.0"), "meta/info.json", "laid out as v2", "error"),
    "fps 0": (info(fps=0), "meta/info.json", "fps is 0", "error"),
    "no action": (lambda d: edit(d / "meta/info.json", lambda v: v["features"].pop("action")), "meta/info.json", "declares no column action", "warning"),
    "no state": (lambda d: edit(d / "meta/info.json", lambda v: v["features"].pop("observation.state")), "meta/info.json", "declares no column observation.state", "warning"),
    "a gripper of its own": (lambda d: edit(d / "meta/info.json", lambda v: v["features"].update({"action.gripper": {"dtype": "float32", "shape": [1]}})), "meta/info.json", "columns action.gripper are not read", "warning"),
    "fps infinite": (info(fps=float("inf")), "meta/info.json", "fps is inf", "error"),
    "fps is text": (info(fps="ten"), "meta/info.json", "fps is 'ten'", "error"),
    "another fps": (info(fps=30), PARQUET.replace("1.p", "0.p"), "0.1 s apart", "error"),
    "no episodes.jsonl": (lambda d: (d / "meta/episodes.jsonl").unlink(), "meta/episodes.jsonl", "missing", "error"),
    "broken line": (lambda d: (d / "meta/episodes.jsonl").write_text('{"episode_index": 0, "length": 3}\n{"epi'), "meta/episodes.jsonl", "line 2", "error"),
    "episode without length": (lambda d: (d / "meta/episodes.jsonl").write_text('{"episode_index": 0}'), "meta/episodes.jsonl", "not understood", "error"),
    "an episode twice": (lambda d: (d / "meta/episodes.jsonl").write_text('{"episode_index": 0, "length": 12}\n' * 2), "meta/episodes.jsonl", "twice", "error"),
    "no parquet": (lambda d: (d / PARQUET).unlink(), PARQUET, "missing", "error"),
    "parquet is text": (lambda d: (d / PARQUET).write_text("hello"), PARQUET, "not a readable parquet", "error"),
    "parquet cut": (lambda d: (d / PARQUET).write_bytes((d / PARQUET).read_bytes()[:900]), PARQUET, "not a readable parquet", "error"),
    "parquet empty": (lambda d: (d / PARQUET).write_bytes(b""), PARQUET, "not a readable parquet", "error"),
    "no film": (lambda d: (d / FILM).unlink(), FILM, "missing", "error"),
    "film is text": (lambda d: (d / FILM).write_text("hello"), FILM, "cannot be opened", "error"),
    "film cut": (lambda d: (d / FILM).write_bytes((d / FILM).read_bytes()[:2000]), FILM, "cannot be opened", "error"),
    "film empty": (lambda d: (d / FILM).write_bytes(b""), FILM, "cannot be opened", "error"),
    "film too short": (film(NOISE[:8]), FILM, "8 frames, but episode 1 has 12", "error"),
    "film too long": (film(np.concatenate([NOISE, NOISE])), FILM, "24 frames, but episode 1 has 12", "warning"),
    "film at another rate": (film(NOISE, fps=20), FILM, "runs at 20 fps", "error"),
    "film stuck": (film(np.repeat(NOISE[:1], 12, 0)), FILM, "never changes, though the robot moves", "error"),
    "film of another size": (film(NOISE[:, :48]), FILM, "frames are (48, 64, 3)", "warning"),
    "film letterboxed": (film(letterboxed()), FILM, "10 of 64 rows above and below", "warning"),
    "too narrow": (rows(numbers("action", lambda v: [a[:5] for a in v])), PARQUET, "action is 5 wide", "error"),
    "ragged": (rows(numbers("action", lambda v: [a[:5 + t % 2] for t, a in enumerate(v)])), PARQUET, "different widths", "error"),
    "actions are text": (rows(numbers("action", lambda v: [["a"] * 7 for _ in v])), PARQUET, "not numbers", "error"),
    "no action column": (rows(lambda t: {k: v for k, v in t.items() if k != "action"}), PARQUET, "'action' is missing", "error"),
    "NaN": (rows(set_cell("action", 7, 2, float("nan"))), PARQUET, "action row 7, number 2 is nan", "error"),
    "infinite": (rows(set_cell("observation.state", 0, 6, float("inf"))), PARQUET, "observation.state row 0, number 6 is inf", "error"),
    "shuffled": (rows(lambda t: {k: v[::-1] for k, v in t.items()}), PARQUET, "out of order", "error"),
    "rows lost": (rows(lambda t: {k: v[:10] for k, v in t.items()}), PARQUET, "10 rows, but", "error"),
    "another episode's rows": (rows(numbers("episode_index", lambda v: [5] * len(v))), PARQUET, "another episode_index", "error"),
    "clock at another rate": (rows(numbers("timestamp", lambda v: [2 * t for t in v])), PARQUET, "0.2 s apart", "error"),
    "clock since 1970": (rows(numbers("timestamp", lambda v: [1.7e9 + t / 10 for t in range(len(v))])), PARQUET, "begins at 1.7e+09 s", "warning"),
    "splits": (info(splits={"train": "0:1", "val": "1:3"}), "meta/info.json", "splits val are not followed", "warning"),
    "pictures in the table": (lambda d: edit(d / "meta/info.json", lambda v: v["features"]["observation.images.front"].update(dtype="image")), "meta/info.json", "declares no camera", "error"),
    "clock late": (rows(numbers("timestamp", lambda v: [t + .1 for t in v])), PARQUET, "begins at 0.1 s", "warning"),
    "task beyond the table": (rows(numbers("task_index", lambda v: [9] * len(v))), PARQUET, "task_index is 9", "error"),
    "annotation beyond": (rows(numbers("annotation.human.task_description", lambda v: [-1] * len(v))), PARQUET, "is -1, but meta/tasks.jsonl", "error"),
    "slice beyond": (modality(lambda m: m["action"]["gripper"].update(end=9)), "meta/modality.json", "action.gripper is 6:9, but the action vector has 7", "error"),
    "slice backwards": (modality(lambda m: m["state"]["arm"].update(start=6)), "meta/modality.json", "state.arm is 6:6", "error"),
    "slice without end": (modality(lambda m: m["state"]["arm"].pop("end")), "meta/modality.json", "not a modality table", "error"),
    "modality is a list": (lambda d: (d / "meta/modality.json").write_text("[]"), "meta/modality.json", "not a modality table", "error"),
    "no modality": (lambda d: (d / "meta/modality.json").unlink(), "meta/modality.json", "missing", "warning"),
    "unknown camera": (modality(lambda m: m["video"].update(front={"original_key": "x"})), "meta/modality.json", "'x', which meta/info.json does not declare", "error"),
    "actions that are changes": (modality(lambda m: m["action"]["arm"].update(absolute=False)), "meta/modality.json", "action.arm is a change, not a target", "error"),
    "other column": (modality(lambda m: m["state"]["arm"].update(original_key="observation.eef")), "meta/modality.json", "not read here", "warning"),
    "camera never filmed": (lambda d: edit(d / "meta/info.json", lambda v: v["features"].update({"observation.images.ego": v["features"]["observation.images.front"]})),
                            "meta/info.json", "observation.images.ego is declared, but has no files", "warning"),
    "no films at all": (lambda d: shutil.rmtree(d / "videos"), "meta/info.json", "has no files", "error"),
    "no camera": (lambda d: edit(d / "meta/info.json", lambda v: v["features"].pop("observation.images.front")), "meta/info.json", "declares no camera", "error"),
    "no chunks": (info(total_chunks=0), "meta/info.json", "total_chunks is 0", "warning"),
    "enormous counts": (info(total_frames=10**15, total_episodes=10**12, chunks_size=10**18), "meta/info.json", "total_frames says 1000000000000000", "warning"),
    "enormous length": (lambda d: (d / "meta/episodes.jsonl").write_text('{"episode_index": 0, "length": 1000000000000, "tasks": ["pick it up"]}'),
                        PARQUET.replace("1.p", "0.p"), "1000000000000 frames", "error"),
    "splits beyond": (info(splits={"train": "0:100"}), "meta/info.json", "split 'train' is 0:100", "warning"),
    "splits unreadable": (info(splits={"train": [1]}), "meta/info.json", "split 'train' is [1]", "warning"),
    "labels among tasks": (lambda d: open(d / "meta/tasks.jsonl", "a").write('{"task_index": 3, "task": "valid"}\n'), "meta/tasks.jsonl", "labels ('valid')", "warning"),
    "a task is empty": (lambda d: open(d / "meta/tasks.jsonl", "a").write('{"task_index": 3, "task": " "}\n'), "meta/tasks.jsonl", "empty", "error"),
    "paths lead out": (info(data_path="../{episode_index:06d}.parquet"), "meta/info.json", "leads out", "error"),
    "absolute path": (info(data_path="/etc/passwd"), "meta/info.json", "leads out", "error"),
    "video path leads out": (info(video_path="../../{video_key}/{episode_index}.mp4"), "meta/info.json", "leads out", "error"),
    "a link leads out": (link_out, "meta/info.json", "leads out", "error"),
    "template asks for more": (info(data_path="{episode_index.__class__}"), "meta/info.json", "not understood", "error"),
    "stale statistics": (lambda d: edit(d / "meta/stats.json", lambda s: s["action"]["max"].__setitem__(3, 99.)), "meta/stats.json", "is not of this data: action[3]", "warning"),
    "narrow statistics": (lambda d: edit(d / "meta/stats.json", lambda s: s["action"].update(max=[1.0])), "meta/stats.json", "no statistics of action with 7", "warning"),
}


def test_a_clean_dataset_has_no_findings(clean, clean3):
    assert validate(clean) == [] and validate(clean3) == []


@pytest.mark.parametrize("name", BREAKS)
def test_each_break_by_its_name(d, name):
    how, file, words, severity = BREAKS[name]
    how(d)
    found = validate(d)
    assert any(f.file == file and words in f.what and f.severity == severity and f.do for f in found), "\n".join(map(str, found))
    assert all(os.path.isabs(f.file) is False and f.what and f.do for f in found)
    try: [e.length for e in Dataset(d)]              # reading gives the same kind of sentence, or works
    except CookbookError as e: assert e.what and e.do
    if severity == "error":
        with pytest.raises(CookbookError): take(d, 1)


def test_convert_says_what_it_leaves_behind(d, tmp_path, capsys):
    BREAKS["a gripper of its own"][0](d)
    assert cli.main(["convert", str(d), "--to", "v3.0", "--out", str(tmp_path / "v3")]) == 0
    said = capsys.readouterr().err
    assert "not carried over: action.gripper" in said and "written anew, not copied: next.done, next.reward" in said


def test_a_run_on_a_dataset_without_actions_is_refused_before_it_dreams(d):
    BREAKS["no action"][0](d)
    (d / "meta/modality.json").unlink()
    with pytest.raises(CookbookError, match="declares no column action"): prepare(dataset=d)


def test_films_without_numbers_can_be_converted(tmp_path):
    dreams = write_dataset([episode(6, states=0, actions=0)], tmp_path / "dreams")
    assert cli.main(["convert", str(dreams), "--to", "v3.0", "--out", str(tmp_path / "v3")]) == 0 and len(Dataset(tmp_path / "v3")) == 1


@pytest.mark.parametrize("name", [n for n, b in BREAKS.items() if b[3] == "error"][::4])
def test_a_run_on_a_broken_dataset_is_one_sentence_and_touches_nothing(d, tmp_path, capsys, name):
    how, file, words, _ = BREAKS[name]
    how(d)
    earlier = tmp_path / "out" / "02_dreaming" / "manifest.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("{}")
    assert cli.main(["run", "--dataset", str(d), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert (words in said or "more: groot-cookbook validate" in said) and "Traceback" not in said      # the first of several errors is told
    assert [p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*")] == ["02_dreaming", "02_dreaming/manifest.json"]


def test_v3_breaks(d3):
    (d3 / "meta/tasks.parquet").rename(d3 / "meta/kept")
    assert "missing" in validate(d3)[0].what and validate(d3)[0].file == "meta/tasks.parquet"
    (d3 / "meta/kept").rename(d3 / "meta/tasks.parquet")
    mp4 = next(d3.rglob("*.mp4"))
    shorter = episode(20, 64, 64).frames
    mp4.unlink()
    w = VideoWriter(mp4, 10, shorter.shape[1:]); w.add(shorter); w.close()
    assert any("0 frames, but episode 2" in f.what for f in validate(d3)) and any("8 frames, but episode 1" in f.what for f in validate(d3))
    with pytest.raises(CookbookError, match="frame 23 of a video of 20"): Dataset(d3)[1]
    edit(d3 / "meta/info.json", lambda v: v.update(codebase_version="v2.1"))
    assert "laid out as v3.0" in validate(d3)[0].what


def test_many_alike_are_counted(tmp_path):
    d = write_dataset([episode(5, 64, 64, seed=i) for i in range(6)], tmp_path / "d")
    for f in d.rglob("*.parquet"): f.unlink()
    found = validate(d)
    assert len(found) == 3 and "the like in 3 more places" in found[-1].what


def test_a_dream_need_not_move_its_robot(tmp_path):
    e = episode(6, states=0, actions=0)
    assert validate(write_dataset([e], tmp_path / "d")) == []
    still = Episode(np.repeat(e.frames[:1], 6, 0), e.state, e.actions, "t", 10)
    assert [f.what for f in validate(write_dataset([still], tmp_path / "s"))] == ["the picture never changes"]


def test_nothing_at_all(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path, tmp_path / "a\0b"):
        found = validate(path)
        assert len(found) == 1 and found[0].severity == "error"
    (tmp_path / "file").write_text("x")
    assert validate(tmp_path / "file")[0].what == "no such folder" and validate(tmp_path / "file")[0].file == str(tmp_path / "file")


def test_gr1_has_warts_and_no_errors(gr1):
    found = validate(gr1)
    assert {f.severity for f in found} == {"warning"}
    words = ["total_chunks is 0", "0:100, but there are 5", "labels ('valid')", "observation.images.egoview is declared, but has no files", "letterboxed (48 and 48 of 256", "begins at 0.05 s"]
    for word in words: assert sum(word in f.what for f in found) == 1, word
    assert len(found) == len(words)
    recorded = json.loads((data_dir() / "results" / "gr1_findings.json").read_text())["findings"]
    assert [(f["file"], f["what"], f["do"]) for f in recorded] == [(f.file, f.what, f.do) for f in found], "regenerate it with the command it names"


def test_films_of_other_codecs_are_read(tmp_path):
    "LeRobot writes AV1, cameras write mpeg4: the reader does not care, and B-frames do not confuse it."
    frames = np.stack([np.full((48, 64, 3), 8 * t, np.uint8) for t in range(30)])
    for codec, options in (("libx264", {"bf": "3", "g": "12"}), ("mpeg4", {"g": "10"})):
        path = tmp_path / f"{codec}.mp4"
        with av.open(str(path), "w") as c:
            s = c.add_stream(codec, rate=10, options=options)
            s.width, s.height, s.pix_fmt = 64, 48, "yuv420p"
            for f in frames: c.mux(s.encode(av.VideoFrame.from_ndarray(f, format="rgb24")))
            c.mux(s.encode())
        with av.open(str(path)) as c: played = [f.to_ndarray(format="rgb24") for f in c.decode(video=0)]
        assert len(played) == 30 and len({f.tobytes() for f in played}) == 30
        for t, f in zip((29, 0, 13, 14, 5), read_frames(path, [29, 0, 13, 14, 5])): np.testing.assert_array_equal(f, played[t])


def test_findings_are_of_the_dataset_wherever_one_stands(d, monkeypatch):
    (d / FILM).unlink()
    set_cell_of = rows(set_cell("action", 7, 2, float("nan")))
    set_cell_of(d)
    monkeypatch.chdir(d.parent)
    assert [f.file for f in validate(d.name)] == [f.file for f in validate(d)] and not any(d.name + "/" in f.file for f in validate(d.name))
    shutil.copy(d / FILM.replace("1.mp4", "0.mp4"), d / FILM)
    with pytest.raises(CookbookError, match="episode_000001.parquet: actions.7, 2. is nan"): Dataset(d)[1]
    (d / FILM.replace("1.mp4", "0.mp4")).unlink()
    with pytest.raises(CookbookError, match="episode_000000.mp4"): Dataset(d)[0]


def test_a_sentence_is_read_from_its_own_column(d3):
    path = d3 / "meta" / "tasks.parquet"
    table = pq.read_table(path).to_pydict()
    (text,) = [k for k, v in table.items() if isinstance(v[0], str)]
    pq.write_table(pa.table({"task_index": table["task_index"], "skill": ["grasp"] * len(table["task_index"]), "__index_level_0__": table[text]}), path)
    assert Dataset(d3)[1].instruction == "pick up block 1"
