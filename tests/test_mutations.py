"""Several hundred datasets, each with something wrong: a sentence about the right file, or provably no harm; never a traceback, a hang or a gulp of memory.

What users of GR00T and LeRobot report comes first, by name; then properties: any value anywhere in the JSON, any change to any column, any damage to any
file, any two mistakes at once. A process of its own looks at each dataset as a user would (validate, read, another clock, convert), with two gigabytes to spare.
"""
import contextlib, hashlib, io, json, os, resource, select, shutil, subprocess, sys, time, traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from groot_cookbook import cli, core
from groot_cookbook.core import CookbookError
from groot_cookbook.episodes import Dataset, at_rate, validate, write_dataset
from groot_cookbook.video import VideoWriter
from test_episodes import episode

SECONDS, PATIENCE, MEMORY = 20, 90, 2 << 30             # that one dataset may take: of a processor, on the clock (a busy machine is no hang), beyond what the imports hold
VERSIONS = ("v2.1", "v3.0")


# --- what a user does with a dataset, in a process of its own ----------------------------------------------------

def reading(path: Path) -> str:
    "Everything the readers give, as a hash: it differs where a mutation reached something that is relied on."
    d, h = Dataset(path), hashlib.sha256()
    h.update(repr((d.fps, d.robot_type, d.modality, {part: {k: v.round(6).tolist() for k, v in s.items()} for part, s in d.stats.items()})).encode())
    for i, e in enumerate(d):
        for a in (e.frames, e.state, e.actions): h.update(a.tobytes())
        h.update(e.instruction.encode())
        assert (d.frames(i, [e.length - 1])[0] == e.frames[-1]).all()
        for part, vectors in (("state", e.state), ("action", e.actions)):
            for s in getattr(d.modality, part).values(): assert vectors[:, s].shape[1] == s.stop - s.start
        for fps in (.5 * e.fps, 1.7 * e.fps): at_rate(e, fps)
    return h.hexdigest()


def numbers(path: Path) -> str: return hashlib.sha256(b"".join(e.state.tobytes() + e.actions.tobytes() + e.instruction.encode() for e in Dataset(path))).hexdigest()


def command(*args) -> int:
    "The command line, printing to something as strict as a terminal."
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")), contextlib.redirect_stderr(io.TextIOWrapper(io.BytesIO(), "utf-8")):
        return cli.main([*map(str, args)])


def examine(path: Path) -> dict:
    "Findings, reading and conversion of one dataset; only a CookbookError may end any of them."
    findings = validate(path)
    seen = {"findings": [[f.file, f.what, f.do, f.severity, str(f)] for f in findings], "read": ""}
    errors = any(f.severity == "error" for f in findings)
    try: seen["read"] = reading(path)
    except CookbookError as e:
        assert e.what and e.do and str(e).isprintable(), f"not a sentence: {e!r}"
        assert errors, f"no error was found, yet it cannot be read: {e}"
    other = path.with_name("converted")
    if not errors:
        done = command("convert", path, "--to", "v3.0" if (path / "meta/episodes.jsonl").is_file() else "v2.1", "--out", other)
        assert done or numbers(other) == numbers(path), "conversion changed what is read"
    return seen


def serve() -> None:
    "Examine the folders named on stdin, a line each; the first, which is whole, warms up, and from then on memory is counted."
    for i, line in enumerate(sys.stdin):
        try: seen = examine(Path(json.loads(line)))
        except BaseException: seen = {"fault": traceback.format_exc()[-2500:]}
        print(json.dumps(seen), flush=True)
        if not i:
            base = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (base + MEMORY, resource.RLIM_INFINITY))


class Examiner:
    "The process that examines, started again when a dataset has killed it."
    def __init__(self, whole: Path): self.whole, self.process = whole, None

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", "import test_mutations; test_mutations.serve()"], cwd=Path(__file__).parent, text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(Path(core.__file__).parent.parent)})
        assert "fault" not in self.ask(self.whole, 3 * PATIENCE)

    def spent(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def ask(self, path: Path, patience: float) -> dict:
        self.process.stdin.write(json.dumps(str(path)) + "\n"); self.process.stdin.flush()
        began, before = time.monotonic(), self.spent()
        while not select.select([self.process.stdout], [], [], 1)[0]:
            if self.spent() - before > SECONDS or time.monotonic() - began > patience:
                self.stop()
                return {"fault": f"no answer after {time.monotonic() - began:.0f} s"}
        if line := self.process.stdout.readline(): return json.loads(line)
        return {"fault": f"the process died ({self.process.wait()})"}

    def __call__(self, path: Path) -> dict:
        if self.process is None or self.process.poll() is not None: self.start()
        return self.ask(path, PATIENCE)

    def stop(self) -> None:
        if self.process: self.process.kill(), self.process.wait()


# --- the datasets that are broken, and the judge -------------------------------------------------------------------

@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> dict[str, Path]:
    "Two episodes of the same length, in either version: as hard to tell apart as can be."
    folder = tmp_path_factory.mktemp("whole")
    made = [episode(7, 32, 48, seed=i, text=f"pick up the {colour} block") for i, colour in enumerate(("red", "green"))]
    made[1] = replace(made[1], frames=np.roll(made[1].frames, 12, axis=1))
    return {v: write_dataset(made, folder / v, v) for v in VERSIONS}


@pytest.fixture(scope="session")
def examiner(whole):
    e = Examiner(whole["v2.1"])
    yield e
    e.stop()


@pytest.fixture(scope="session")
def base(whole, examiner) -> dict[str, str]:
    seen = {v: examiner(d) for v, d in whole.items()}
    assert all(s.get("findings") == [] and s["read"] for s in seen.values()), seen
    return {v: s["read"] for v, s in seen.items()}


@pytest.fixture
def broken(whole, tmp_path): return lambda version: shutil.copytree(whole[version], tmp_path / "d", symlinks=True)


def verdict(d: Path, seen: dict, base: str, *files: str) -> str:
    "'told', of one of the files, or 'harmless'; everything else fails."
    assert "fault" not in seen, seen["fault"]
    for name, what, do, severity, said in seen["findings"]:
        assert what and do and severity in ("error", "warning") and not os.path.isabs(name) and said.isprintable() and len(said) < 2000, said[:3000]
    told = [said for *_, said in seen["findings"]]
    if any(Path(file).name in said for said in told for file in files): return "told"
    assert not told, f"{files} was changed, but what is said is:\n" + "\n".join(told)
    assert seen["read"] == base, f"{files} was changed, what is read is not what it was, and not a word is said"
    return "harmless"


def data(d: Path) -> Path: return sorted(d.glob("data/*/*.parquet"))[-1]
def film(d: Path) -> Path: return sorted(d.rglob("*.mp4"))[-1]
def table(d: Path) -> Path: return d / "meta/episodes/chunk-000/file-000.parquet"


def at(value, path: tuple):
    for key in path: value = value[key]
    return value


def js(file: str, *path, **put):
    "Set keys of an object in a JSON file."
    def how(d):
        value = json.loads((d / file).read_text())
        at(value, path).update(put)
        (d / file).write_text(json.dumps(value))
        return file
    return how


def text(file: str, content):
    "Change the bytes of a file, or replace them by a text."
    def how(d):
        (d / file).write_bytes(content((d / file).read_bytes()) if callable(content) else content.encode())
        return file
    return how


def lines(file: str, change):
    "Change the rows of a JSON-lines file."
    def how(d):
        rows = [json.loads(line) for line in (d / file).read_text().splitlines()]
        rows = change(rows) or rows
        (d / file).write_text("\n".join(map(json.dumps, rows)))
        return file
    return how


def cols(which: Callable, change: Callable):
    "Change a parquet file, as a table."
    def how(d):
        path = which(d)
        pq.write_table(change(pq.read_table(path, partitioning=None)), path)
        return path.relative_to(d).as_posix()
    return how


def column(name: str, change: Callable):
    "Change a column: its values as a list, or as an Arrow array."
    def one(t: pa.Table) -> pa.Table:
        new = change(t[name].to_pylist())
        return t.set_column(t.column_names.index(name), name, new if isinstance(new, (pa.Array, pa.ChunkedArray)) else pa.array(new))
    return one


def put(i: int, value):
    def change(v): v[i] = value; return v
    return change


KEPT: dict[str, bytes] = {}               # what was replaced last, by name


def replaced(which: Callable, make: Callable):
    "A file replaced by what `make(path)` puts there."
    def how(d):
        path = which(d)
        KEPT[path.name] = path.read_bytes()
        path.unlink()
        make(path)
        return path.relative_to(d).as_posix()
    return how


def frames(change: Callable, fps: float = 10, **options):
    "The last film drawn again, changed."
    def how(d):
        from groot_cookbook.video import frame_times, read_frames
        path = film(d)
        new = change(read_frames(path, range(len(frame_times(path)[0]))))
        path.unlink()
        w = VideoWriter(path, fps, new.shape[1:])
        w.add(new), w.close()
        return path.relative_to(d).as_posix()
    return how


def outside(d: Path, path: Path) -> Path:
    "A copy of `path` beside the dataset, linked to from within."
    target = d.parent / "outside" / path.name
    target.parent.mkdir(exist_ok=True)
    path.rename(target), path.symlink_to(target)
    return path


def deep(n: int) -> str: return "[" * n + "]" * n


def stsz(path: Path, count: int) -> None:
    "A film whose table of sizes claims `count` frames of one size."
    raw = bytearray(path.read_bytes())
    at = raw.index(b"stsz")
    raw[at + 8:at + 16] = (1).to_bytes(4, "big") + count.to_bytes(4, "big")
    path.write_bytes(raw)


def bomb(path: Path) -> None:
    "A few kilobytes that become a gigabyte of numbers."
    schema = pa.schema([pa.field("action", pa.bool_(), nullable=False)])
    rows = pa.table([pa.array(np.zeros(50_000_000, bool))], schema)
    with pq.ParquetWriter(path, schema, compression="zstd") as w:
        for _ in range(5): w.write_table(rows, row_group_size=len(rows))


V2, V3 = ("v2.1",), ("v3.0",)
EP, TASKS, INFO, MODALITY, STATS = "meta/episodes.jsonl", "meta/tasks.jsonl", "meta/info.json", "meta/modality.json", "meta/stats.json"
CAMERA = "observation.images.front"
FILMS = {"v2.1": f"videos/chunk-000/{CAMERA}/episode_000001.mp4", "v3.0": f"videos/{CAMERA}/chunk-000/file-000.mp4"}
NO_TEXT = pa.StringArray.from_buffers(2, pa.py_buffer(np.int32([0, 2, 3]).tobytes()), pa.py_buffer(b"\xff\xfe\xff"))        # two strings that are no UTF-8


@dataclass(frozen=True)
class Mistake:
    "One thing wrong: how it is made (gives the file that was changed), in which versions, and whether it does any harm."
    how: Callable[[Path], str]
    versions: tuple = VERSIONS
    harmless: str = ""                                    # why, where nothing has to be said


MISTAKES = {
    # slices (upstream issues on modality.json)
    "a slice one short": Mistake(js(MODALITY, "action", arm={"start": 0, "end": 5})),
    "a slice one too far": Mistake(js(MODALITY, "action", arm={"start": 0, "end": 7})),
    "slices in each other's place": Mistake(js(MODALITY, "state", arm={"start": 1, "end": 7}, gripper={"start": 0, "end": 2})),
    "a slice from the end": Mistake(js(MODALITY, "state", gripper={"start": -1, "end": 7})),
    "slices of the wrong vector": Mistake(js(MODALITY, state={"arm": {"start": 0, "end": 6}})),
    "no slices of actions": Mistake(js(MODALITY, action={})),
    "a slice in words": Mistake(js(MODALITY, "state", arm={"start": "0", "end": "6"})),
    "a slice of fractions": Mistake(js(MODALITY, "state", arm={"start": .5, "end": 6.2})),
    "a slice of truths": Mistake(js(MODALITY, "state", gripper={"start": True, "end": 7})),
    "a slice of everything there is": Mistake(js(MODALITY, "state", arm={"start": 0, "end": 10**30})),
    "a slice that is a list": Mistake(js(MODALITY, "state", arm=[0, 6])),
    "a camera that is a list": Mistake(js(MODALITY, "video", front={"original_key": [CAMERA]})),
    "an annotation that is a list": Mistake(js(MODALITY, annotation={"human.task_description": {"original_key": ["x"]}})),
    "a modality of another camera": Mistake(js(MODALITY, video={"wrist": {"original_key": "observation.images.wrist"}})),
    # versions
    "v3.0 given as v2.1": Mistake(js(INFO, codebase_version="v2.1"), V3),
    "v2.1 given as v3.0": Mistake(js(INFO, codebase_version="v3.0"), V2),
    "v2.1 given as v2.0": Mistake(js(INFO, codebase_version="v2.0"), V2, "the two are read alike"),
    "a version in a list": Mistake(js(INFO, codebase_version=["v2.1"])),
    "a version yet to come": Mistake(js(INFO, codebase_version="v4.0")),
    "both versions in one folder": Mistake(lambda d: (d / EP).write_text('{"episode_index": 0, "length": 7}\n') and js(INFO, codebase_version="v2.1")(d) and TASKS, V3),             # read as info says: the tasks of v2 are missing
    # fps
    "fps of the video, not of the data": Mistake(js(INFO, fps=30)),
    "fps a hundredth off": Mistake(js(INFO, fps=10.1)),
    "fps one in a million off": Mistake(js(INFO, fps=1e-9)),
    "fps as text": Mistake(js(INFO, fps="10")),
    "fps true": Mistake(js(INFO, fps=True)),
    "fps not a number": Mistake(js(INFO, fps=float("nan"))),
    "fps enormous": Mistake(js(INFO, fps=10**400)),
    # counts and shapes
    "a trillion episodes": Mistake(js(INFO, total_episodes=10**12)),
    "chunks of a quadrillion": Mistake(js(INFO, chunks_size=10**15), harmless="every episode lies in chunk 0 either way"),
    "chunks of one": Mistake(lambda d: js(INFO, chunks_size=1)(d) and "chunk-001/episode_000001.parquet", V2),
    "chunks of less than none": Mistake(js(INFO, chunks_size=-5), V2),
    "chunks in words": Mistake(js(INFO, chunks_size="many"), V2),
    "chunks without end": Mistake(js(INFO, chunks_size=float("inf")), V2),
    "an enormous vector": Mistake(js(INFO, "features", "action", shape=[10**15])),
    "an enormous picture": Mistake(js(INFO, "features", CAMERA, shape=[10**9, 10**9, 3])),
    "a vector of lists": Mistake(js(INFO, "features", "action", shape=[[7]])),
    "a shape of truths": Mistake(js(INFO, "features", "action", shape=[True])),
    "no shape": Mistake(js(INFO, "features", "observation.state", shape=None)),
    "features in a list": Mistake(js(INFO, features=["action"])),
    "a feature that is text": Mistake(js(INFO, "features", action="float32")),
    "a robot in a list": Mistake(js(INFO, robot_type=["tabletop_arm"])),
    "no robot": Mistake(js(INFO, robot_type=None)),
    "a thousand cameras": Mistake(js(INFO, "features", **{f"observation.images.c{i}": {"dtype": "video", "shape": [8, 8, 3]} for i in range(1000)})),
    "splits of nobody": Mistake(js(INFO, splits={"train": "2:1"})),
    # JSON that is not what it seems
    "a byte order mark before info": Mistake(text(INFO, lambda b: b"\xef\xbb\xbf" + b)),
    "a byte order mark before the episodes": Mistake(text(EP, lambda b: b"\xef\xbb\xbf" + b), V2),
    "latin-1": Mistake(text(TASKS, lambda b: b.replace(b"red", "r\xe9d".encode("latin-1"))), V2),
    "utf-16": Mistake(text(MODALITY, lambda b: b.decode().encode("utf-16"))),
    "empty modality": Mistake(text(MODALITY, "")),
    "empty info": Mistake(text(INFO, "")),
    "empty statistics": Mistake(text(STATS, "")),
    "empty episodes": Mistake(text(EP, ""), V2),
    "empty tasks": Mistake(text(TASKS, ""), V2),
    "info cut in half": Mistake(text(INFO, lambda b: b[:len(b) // 2])),
    "statistics cut in half": Mistake(text(STATS, lambda b: b[:len(b) // 2])),
    "episodes cut in half": Mistake(text(EP, lambda b: b[:len(b) // 2]), V2),
    "windows line ends": Mistake(text(EP, lambda b: b.replace(b"\n", b"\r\n")), V2, "JSON lines may end in either"),
    "nesting that is just read": Mistake(lambda d: (d / INFO).write_text(json.dumps(json.loads((d / INFO).read_text()) | {"fps": "@"}).replace('"@"', deep(900))) and INFO),
    "nesting that a reader survives": Mistake(lambda d: (d / MODALITY).write_text(f'{{"state": {deep(400)}}}') and MODALITY),
    "nesting without end": Mistake(text(INFO, deep(200_000))),
    "nested statistics": Mistake(lambda d: (d / STATS).write_text(f'{{"action": {{"min": {deep(700)}}}}}') and STATS),
    "nested robot": Mistake(lambda d: (d / INFO).write_text(json.dumps(json.loads((d / INFO).read_text()) | {"robot_type": "@"}).replace('"@"', deep(800))) and INFO),
    "a nested line": Mistake(text(EP, f'{{"episode_index": 0, "length": {deep(900)}}}'), V2),
    "a number of five thousand digits": Mistake(text(EP, f'{{"episode_index": {"9" * 5000}, "length": 7}}'), V2),
    "half a pair of surrogates as a robot": Mistake(js(INFO, robot_type="\ud83d")),
    "half a pair of surrogates in a task": Mistake(lines(TASKS, lambda r: r[1].update(task="pick up \ud83d")), V2),
    "half a pair of surrogates in a path": Mistake(js(INFO, data_path="data/\ud83d/{episode_index}.parquet"), V2),
    "half a pair of surrogates as a slice": Mistake(js(MODALITY, state={"\ud83d": {"start": 0, "end": 7}})),
    "a command to the terminal as a path": Mistake(lambda d: js(INFO, data_path="data/\x1b[2J\x1b]0;pwned\x07/{episode_index}.parquet")(d) and "1.parquet", V2),
    "a command to the terminal as a camera": Mistake(js(INFO, "features", **{"observation.images.\x1b[2J": {"dtype": "video", "shape": [32, 48, 3]}})),
    "text from right to left as a split": Mistake(js(INFO, splits={"\u202etrain": "0:99"})),
    "statistics of another kind": Mistake(js(STATS, "action", min=["a"] * 7)),
    "statistics in words": Mistake(js(STATS, "action", max=["1"] * 7)),
    "a mean of another robot": Mistake(js(STATS, "action", mean=[100.] * 7)),
    "a spread of another robot": Mistake(js(STATS, "observation.state", std=[100.] * 7)),
    "quantiles of another robot": Mistake(js(STATS, "observation.state", q99=[100.] * 7)),
    "statistics that are not numbers": Mistake(js(STATS, "observation.state", q01=[float("nan")] * 7)),
    "a table of statistics that is a list": Mistake(text(STATS, "[1, 2]")),
    # the episode table and the tasks of v2
    "an episode twice": Mistake(lines(EP, lambda r: r + r[:1]), V2),
    "an episode too many": Mistake(lines(EP, lambda r: r + [{**r[1], "episode_index": 2}]), V2),
    "an episode less": Mistake(lines(EP, lambda r: r[:1]), V2),
    "an episode far away": Mistake(lines(EP, lambda r: r[1].update(episode_index=10**18)), V2),
    "an episode before the first": Mistake(lines(EP, lambda r: r[0].update(episode_index=-1)), V2),
    "an episode of no length": Mistake(lines(EP, lambda r: r[1].update(length=0)), V2),
    "an episode a trillion long": Mistake(lines(EP, lambda r: r[1].update(length=10**12)), V2),
    "half a frame": Mistake(lines(EP, lambda r: r[1].update(length=7.5)), V2),
    "a length in words": Mistake(lines(EP, lambda r: r[1].update(length="7")), V2),
    "a length that is true": Mistake(lines(EP, lambda r: r[0].update(length=True)), V2),
    "an instruction of another episode": Mistake(lines(EP, lambda r: r[1].update(tasks=r[0]["tasks"])), V2),
    "an instruction of nobody": Mistake(lines(EP, lambda r: r[1].update(tasks=["juggle"])), V2),
    "instructions that are numbers": Mistake(lines(EP, lambda r: r[1].update(tasks=[1])), V2),
    "a task twice with two sentences": Mistake(lines(TASKS, lambda r: r[1].update(task_index=0)), V2),
    "a task that is a number": Mistake(lines(TASKS, lambda r: r[0].update(task=5)), V2),
    "a task that is a list": Mistake(lines(TASKS, lambda r: r[0].update(task=["pick"])), V2),
    "a task number in words": Mistake(lines(TASKS, lambda r: r[0].update(task_index="0")), V2),
    "tasks exchanged": Mistake(lines(TASKS, lambda r: (r[0].update(task_index=1), r[1].update(task_index=0)) and None), V2),
    "another sentence in the task table": Mistake(lines(TASKS, lambda r: r[0].update(task="pick up the blue block")), V2),
    "lines that are lists": Mistake(text(EP, "[0, 7]\n[1, 7]"), V2),
    # ... and of v3.0
    "v3: an episode twice": Mistake(cols(table, lambda t: pa.concat_tables([t, t])), V3),
    "v3: an episode less": Mistake(cols(table, lambda t: t.slice(0, 1)), V3),
    "v3: no episode": Mistake(cols(table, lambda t: t.slice(0, 0)), V3),
    "v3: lengths in words": Mistake(cols(table, column("length", lambda v: ["7"] * 2)), V3),
    "v3: lengths in fractions": Mistake(cols(table, column("length", lambda v: [7., 6.5])), V3),
    "v3: lengths of another": Mistake(cols(table, column("length", lambda v: [7, 5])), V3),
    "v3: an episode of no length": Mistake(cols(table, column("length", lambda v: [7, 0])), V3),
    "v3: tasks of another": Mistake(cols(table, column("tasks", lambda v: v[::-1])), V3),
    "v3: an enormous file number": Mistake(lambda d: cols(table, column("data/file_index", lambda v: [0, 10**18]))(d) and f"file-{10**18}.parquet", V3),
    "v3: a film number without end": Mistake(cols(table, column(f"videos/{CAMERA}/file_index", lambda v: [0., float("inf")])), V3),
    "v3: a film at no time": Mistake(cols(table, column(f"videos/{CAMERA}/from_timestamp", lambda v: [0., float("nan")])), V3),
    "v3: a film before the beginning": Mistake(cols(table, column(f"videos/{CAMERA}/from_timestamp", lambda v: [0., -.7])), V3),
    "v3: the film of another episode": Mistake(cols(table, column(f"videos/{CAMERA}/from_timestamp", lambda v: [0., 0.])), V3),
    "v3: films exchanged": Mistake(cols(table, column(f"videos/{CAMERA}/from_timestamp", lambda v: v[::-1])), V3),
    "v3: a film one frame early": Mistake(cols(table, column(f"videos/{CAMERA}/from_timestamp", lambda v: [0., .6])), V3),
    "v3: a film one frame late": Mistake(cols(table, column(f"videos/{CAMERA}/from_timestamp", lambda v: [.1, .7])), V3),
    "v3: no films listed": Mistake(cols(table, lambda t: t.drop_columns([c for c in t.column_names if c.startswith("videos/")])), V3),
    "v3: provenance without end": Mistake(cols(table, column("provenance", lambda v: [deep(50_000)] * 2)), V3),
    "v3: provenance that is no JSON": Mistake(cols(table, column("provenance", lambda v: ["{"] * 2)), V3),
    "v3: sentences that are not text": Mistake(cols(table, column("tasks", lambda v: pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), NO_TEXT))), V3),
    "v3: tasks that are not text": Mistake(cols(lambda d: d / "meta/tasks.parquet", column("__index_level_0__", lambda v: NO_TEXT)), V3),
    "v3: tasks without a sentence": Mistake(cols(lambda d: d / "meta/tasks.parquet", column("__index_level_0__", lambda v: pa.array([None, "pick up the green block"]))), V3),
    "v3: tasks without a number": Mistake(cols(lambda d: d / "meta/tasks.parquet", column("task_index", lambda v: [None, 1])), V3),
    "v3: tasks numbered in words": Mistake(cols(lambda d: d / "meta/tasks.parquet", column("task_index", lambda v: ["one", "two"])), V3),
    "v3: tasks exchanged": Mistake(cols(lambda d: d / "meta/tasks.parquet", column("task_index", lambda v: v[::-1])), V3),
    "v3: a task twice": Mistake(cols(lambda d: d / "meta/tasks.parquet", column("task_index", lambda v: [0, 0])), V3),
    "v3: no tasks": Mistake(cols(lambda d: d / "meta/tasks.parquet", lambda t: t.slice(0, 0)), V3),
    # paths that lead elsewhere
    "both episodes read one film": Mistake(js(INFO, video_path=f"videos/chunk-000/{CAMERA}/episode_000000.mp4"), V2),
    "both episodes read one table": Mistake(js(INFO, data_path="data/chunk-000/episode_000000.parquet"), V2),
    "a path that is a folder": Mistake(js(INFO, data_path="data/chunk-000"), V2),
    "a path that is a point": Mistake(js(INFO, data_path=".")),
    "a path with a zero byte": Mistake(js(INFO, data_path="data/\0{episode_index}.parquet"), V2),
    "a path too long for any disk": Mistake(js(INFO, video_path="a" * 5000)),
    "a path that climbs": Mistake(js(INFO, data_path="data/../../../../etc/passwd")),
    "a path that climbs through the camera": Mistake(lambda d: js(INFO, "features", **{"../../../outside": {"dtype": "video", "shape": [32, 48, 3]}})(d)),
    "a path of backslashes": Mistake(lambda d: js(INFO, data_path="..\\..\\{episode_index}.parquet")(d) and "..\\..\\1.parquet", V2),
    "a path to a device": Mistake(js(INFO, data_path="/dev/zero")),
    "a path that is a list": Mistake(js(INFO, video_path=[1])),
    "a template of a million digits": Mistake(js(INFO, data_path="{episode_index:0999999d}")),
    # files that are links, or no files
    "info is a link out": Mistake(lambda d: outside(d, d / INFO) and INFO),
    "modality is a link out": Mistake(lambda d: outside(d, d / MODALITY) and MODALITY),
    "statistics are a link out": Mistake(lambda d: outside(d, d / STATS) and STATS),
    "episodes are a link out": Mistake(lambda d: outside(d, d / EP) and EP, V2),
    "tasks are a link out": Mistake(lambda d: outside(d, d / TASKS) and TASKS, V2),
    "v3: the episode table is a link out": Mistake(lambda d: outside(d, table(d)) and table(d).relative_to(d).as_posix(), V3),
    "v3: tasks are a link out": Mistake(lambda d: outside(d, d / "meta/tasks.parquet") and "meta/tasks.parquet", V3),
    "meta is a link out": Mistake(lambda d: outside(d, d / "meta") and INFO),
    "data are a link out": Mistake(lambda d: outside(d, d / "data") and "data/"),
    "a film is a link out": Mistake(lambda d: outside(d, film(d)).relative_to(d).as_posix()),
    "a link within the folder": Mistake(lambda d: (p := data(d)).rename(d / "kept") and p.symlink_to(d / "kept") or p.name, harmless="the file is inside the folder"),
    "a loop of links": Mistake(replaced(film, lambda p: p.symlink_to(p))),
    "a loop of links to info": Mistake(replaced(lambda d: d / INFO, lambda p: p.symlink_to(p))),
    "a loop of folders": Mistake(lambda d: shutil.rmtree(d / "data") or (d / "data").symlink_to(d / "data") or "data/"),
    "a link to the folder above": Mistake(lambda d: (d / "videos" / "up").symlink_to(d) or "videos/up", harmless="no path leads there"),
    "a pipe that nobody fills": Mistake(replaced(data, os.mkfifo)),
    "a pipe as a film": Mistake(replaced(film, os.mkfifo)),
    "a pipe as info": Mistake(replaced(lambda d: d / INFO, os.mkfifo)),
    "info is /dev/zero": Mistake(replaced(lambda d: d / INFO, lambda p: p.symlink_to("/dev/zero"))),
    "a folder as a film": Mistake(replaced(film, Path.mkdir)),
    "a folder as a table": Mistake(replaced(data, Path.mkdir)),
    "a folder as info": Mistake(replaced(lambda d: d / INFO, Path.mkdir)),
    "a folder as modality": Mistake(replaced(lambda d: d / MODALITY, Path.mkdir)),
    "a folder as statistics": Mistake(replaced(lambda d: d / STATS, Path.mkdir)),
    "a terabyte of nothing as statistics": Mistake(replaced(lambda d: d / STATS, lambda p: p.touch() or os.truncate(p, 1 << 40))),
    "a terabyte of nothing as a film": Mistake(replaced(film, lambda p: p.touch() or os.truncate(p, 1 << 40))),
    "a terabyte of nothing as a table": Mistake(replaced(data, lambda p: p.touch() or os.truncate(p, 1 << 40))),
    # rows
    "no clock": Mistake(cols(data, lambda t: t.drop_columns(["timestamp"])), harmless="frames are found by their number"),
    "a clock that jumps": Mistake(cols(data, column("timestamp", put(4, 5.)))),
    "a clock that runs back": Mistake(cols(data, column("timestamp", lambda v: v[::-1]))),
    "a clock below zero": Mistake(cols(data, column("timestamp", lambda v: [t - 3 for t in v]))),
    "one time below zero": Mistake(cols(data, column("timestamp", put(3, -5.)))),
    "two times exchanged": Mistake(cols(data, column("timestamp", lambda v: v[:2] + [v[3], v[2]] + v[4:]))),
    "a time that is none": Mistake(cols(data, column("timestamp", put(3, float("nan"))))),
    "a clock in words": Mistake(cols(data, column("timestamp", lambda v: [str(t) for t in v]))),
    "a clock of dates": Mistake(cols(data, column("timestamp", lambda v: pa.array([int(1e9 * t) for t in v], pa.timestamp("ns"))))),
    "a frame skipped": Mistake(cols(data, column("frame_index", put(6, 9)))),
    "frames numbered from one": Mistake(cols(data, column("frame_index", lambda v: [t + 1 for t in v]))),
    "frames numbered in words": Mistake(cols(data, column("frame_index", lambda v: [str(t) for t in v]))),
    "rows shuffled": Mistake(cols(data, lambda t: t.take([*range(t.num_rows - 7), *(t.num_rows - 7 + i for i in (2, 0, 1, 6, 5, 4, 3))]))),
    "a row twice": Mistake(cols(data, lambda t: t.take([*range(t.num_rows - 1), t.num_rows - 2]))),
    "a row lost": Mistake(cols(data, lambda t: t.slice(0, t.num_rows - 1))),
    "rows appended again": Mistake(cols(data, lambda t: pa.concat_tables([t, t.slice(t.num_rows - 7)]))),
    "no rows": Mistake(cols(data, lambda t: t.slice(0, 0))),
    "actions as whole numbers": Mistake(cols(data, column("action", lambda v: [[round(x) for x in a] for a in v]))),
    "actions in words": Mistake(cols(data, column("action", lambda v: [[str(x) for x in a] for a in v]))),
    "actions in lists of lists": Mistake(cols(data, column("action", lambda v: [[[x] for x in a] for a in v]))),
    "actions in a table": Mistake(cols(data, column("action", lambda v: [{"x": a[0]} for a in v]))),
    "actions of nobody": Mistake(cols(data, column("action", lambda v: [None] * len(v)))),
    "a row without actions": Mistake(cols(data, column("action", put(-1, None)))),
    "a number missing in a row": Mistake(cols(data, column("action", lambda v: v[:-1] + [[None] + v[-1][1:]]))),
    "actions too large for a float": Mistake(cols(data, column("action", lambda v: v[:-1] + [[1e300] * 7]))),
    "actions in another unit": Mistake(lambda d: cols(data, column("action", lambda v: [[x * 57.3 for x in a] for a in v]))(d) and STATS),
    "states and actions exchanged": Mistake(lambda d: cols(data, lambda t: t.rename_columns([{"action": "observation.state", "observation.state": "action"}.get(c, c) for c in t.column_names]))(d) and STATS),
    "actions twice": Mistake(cols(data, lambda t: t.append_column("action", t["action"]))),
    "a column in a dictionary": Mistake(cols(data, column("task_index", lambda v: pa.array(v).dictionary_encode())), harmless="the file gives the numbers back"),
    "tasks in lists": Mistake(cols(data, column("task_index", lambda v: [[x] for x in v])), harmless="lists of one, as GR00T-Dreams writes them"),
    "the sentence's number in a list": Mistake(cols(data, column("annotation.human.task_description", lambda v: [[x] for x in v])), harmless="lists of one, as GR00T-Dreams writes them"),
    "the sentence's number in a list of two": Mistake(cols(data, column("annotation.human.task_description", lambda v: [[x, x] for x in v]))),
    "the sentence's number in a table": Mistake(cols(data, column("annotation.human.task_description", lambda v: [{"a": x} for x in v]))),
    "the sentence's number in words": Mistake(cols(data, column("annotation.human.task_description", lambda v: [str(x) for x in v]))),
    "the sentence of another episode": Mistake(cols(data, column("annotation.human.task_description", lambda v: [1 - x for x in v]))),
    "a sentence in the middle of another": Mistake(cols(data, column("annotation.human.task_description", put(-3, 0)))),
    "no numbers of sentences": Mistake(cols(data, lambda t: t.drop_columns(["task_index", "annotation.human.task_description"])), harmless="the episode table has the sentence too"),
    "sentences without numbers": Mistake(cols(data, column("annotation.human.task_description", lambda v: pa.array([None] * len(v), pa.int64()))), harmless="the episode table has the sentence too"),
    "episodes in words": Mistake(cols(data, column("episode_index", lambda v: ["x"] * len(v)))),
    "episodes exchanged": Mistake(cols(data, column("episode_index", lambda v: [1 - x for x in v]))),
    "tables exchanged": Mistake(lambda d: (data(d).rename(d / "t"), (f := sorted(d.glob("data/*/*.parquet"))[0]).rename(f.with_name("episode_000001.parquet")), (d / "t").rename(f)) and "episode_00000", V2),
    "a table cut in half": Mistake(lambda d: data(d).write_bytes(data(d).read_bytes()[:data(d).stat().st_size // 2]) and data(d).name),
    "a table without its last byte": Mistake(lambda d: data(d).write_bytes(data(d).read_bytes()[:-1]) and data(d).name),
    "a table that unpacks to gigabytes": Mistake(replaced(data, bomb), V2),
    # films
    "a film stuck on its first frame": Mistake(frames(lambda f: np.repeat(f[:1], len(f), 0))),
    "a film stuck half-way": Mistake(frames(lambda f: np.concatenate([f[:-4], np.repeat(f[-5:-4], 4, 0)]))),
    "a film at another rate": Mistake(frames(lambda f: f, fps=30)),
    "a film a hundredth too fast": Mistake(frames(lambda f: f, fps=10.1)),
    "a film one frame short": Mistake(frames(lambda f: f[:-1])),
    "a film of one frame": Mistake(frames(lambda f: f[:1])),
    "a film of other size": Mistake(frames(lambda f: f[:, :16])),
    "a film of one pixel": Mistake(frames(lambda f: f[:, :1, :1])),
    "a film cut in half": Mistake(lambda d: film(d).write_bytes(film(d).read_bytes()[:film(d).stat().st_size // 2]) and film(d).name),
    "a film without its last byte": Mistake(lambda d: film(d).write_bytes(film(d).read_bytes()[:-1]) and film(d).name, harmless="it is of no frame"),
    "a film that claims a billion frames": Mistake(lambda d: stsz(film(d), 10**9) or film(d).name),
    "a film that claims a hundred million frames": Mistake(lambda d: stsz(film(d), 10**8) or film(d).name),
    "a list of films as a film": Mistake(replaced(film, lambda p: p.with_name("other.mp4").write_bytes(KEPT[p.name]) and p.write_text("ffconcat version 1.0\nfile other.mp4\n"))),
    "a playlist as a film": Mistake(replaced(film, lambda p: p.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n"))),
    "a picture as a film": Mistake(replaced(film, lambda p: __import__("PIL.Image").Image.new("RGB", (48, 32)).save(p, "png"))),
    # whole folders
    "no data": Mistake(lambda d: shutil.rmtree(d / "data") or "data/"),
    "no films": Mistake(lambda d: shutil.rmtree(d / "videos") or CAMERA),
    "no meta": Mistake(lambda d: shutil.rmtree(d / "meta") or INFO),
    "a file more": Mistake(lambda d: (d / "README.md").write_text("hello") and "README.md", harmless="nothing reads it"),
    "no statistics": Mistake(lambda d: (d / STATS).unlink() or STATS, harmless="they are computed"),
    "v2: no statistics of episodes": Mistake(lambda d: (d / "meta/episodes_stats.jsonl").unlink() or "x", V2, "LeRobot reads them, nothing here does"),
}
CASES = [(name, v) for name, m in MISTAKES.items() for v in m.versions]


@pytest.mark.parametrize("name, version", CASES, ids=[f"{n}, {v}" for n, v in CASES])
def test_a_mistake_is_told(broken, examiner, base, name, version):
    d, mistake = broken(version), MISTAKES[name]
    file = mistake.how(d)
    assert verdict(d, examiner(d), base[version], file) == ("harmless" if mistake.harmless else "told")


# --- properties -----------------------------------------------------------------------------------------------------

HARMLESS = {               # where nothing that is read depends on what stands there; file -> how a path in it begins
    INFO: ("total_", "splits", "data_files_size_in_mb", "video_files_size_in_mb", "chunks_size", "codebase_version", "data_path", "video_path",
           *(f"features.{c}" for c in ("episode_index", "index", "frame_index", "timestamp", "task_index", "next.", "annotation.")),
           *(f"features.{c}.{k}" for c in ("action", "observation.state", CAMERA) for k in ("names", "dtype", "info", "shape.1", "shape.2"))),
    MODALITY: ("annotation", "video"),         # one camera, one sentence: they are found by their usual names too
    STATS: ("",),                              # computed where any is missing
    EP: ("provenance", "tasks"), TASKS: (),
}
ANYTHING = st.one_of(st.none(), st.booleans(), st.integers(-10**20, 10**20), st.floats(), st.text(max_size=8), st.sampled_from(
    [[], {}, [[[1]]], {"a": None}, "../" * 9, "{" * 5, "a" * 5000, 10**400, -1, 0, 1, 7, "7", [7], [[0]], "\u2028", "\x1b[2J", "\ud83d", "\u202e", "v3.0", float("inf"), float("nan")]))
PROPERTY = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)


@pytest.fixture(scope="session")
def fresh(whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fresh")

    def copy(version):
        shutil.rmtree(folder, ignore_errors=True)
        return shutil.copytree(whole[version], folder / "d")
    return copy


@settings(PROPERTY, max_examples=100)
@given(st.data())
def test_any_value_anywhere_in_the_metadata(fresh, examiner, base, data):
    version = data.draw(st.sampled_from(VERSIONS))
    d = fresh(version)
    file = data.draw(st.sampled_from([INFO, INFO, MODALITY, STATS, *([EP, TASKS] if version == "v2.1" else [])]))
    rows = (d / file).read_text().splitlines() if file in (EP, TASKS) else [(d / file).read_text()]
    line, trail = data.draw(st.integers(0, len(rows) - 1)), []
    value = here = json.loads(rows[line])
    while True:
        trail.append(data.draw(st.sampled_from(sorted(here)) if isinstance(here, dict) else st.integers(0, len(here) - 1)))
        if not isinstance(here[trail[-1]], (dict, list)) or not here[trail[-1]] or data.draw(st.booleans()): break
        here = here[trail[-1]]
    if data.draw(st.integers(0, 5)): here[trail[-1]] = data.draw(ANYTHING)
    else: del here[trail[-1]]
    same, rows[line] = value == json.loads(rows[line]), json.dumps(value)
    (d / file).write_text("\n".join(rows))
    seen = examiner(d)
    if trail == ["robot_type"] and str(value.get("robot_type", "")).strip():                       # what the robot is called, its maker alone knows
        assert "fault" not in seen, seen["fault"]
    elif verdict(d, seen, base[version], file) == "harmless":
        assert same or ".".join(map(str, trail)).startswith(HARMLESS[file]), f"{file}: {trail} is passed without a word and is not listed"


def each(change: Callable) -> Callable:
    "Every number of a column changed; text stays."
    def one(x): return [one(y) for y in x] if isinstance(x, list) else change(x) if isinstance(x, (int, float)) else x
    return lambda v: [one(x) for x in v]


CHANGES = {                # of a column's values
    "nothing": lambda v: [None] * len(v), "one nothing": lambda v: [None] + v[1:], "words": lambda v: [str(x) for x in v], "lists": lambda v: [[x] for x in v],
    "tables": lambda v: [{"a": 1}] * len(v), "backwards": lambda v: v[::-1], "the first again": lambda v: v[:1] * len(v), "moved on": lambda v: v[1:] + v[:1],
    "bytes": lambda v: [b"\xff\x00"] * len(v), "dates": lambda v: pa.array([0] * len(v), pa.timestamp("us")), "empty": lambda v: [[]] * len(v), "negative": each(lambda x: -x - 1),
    "enormous": each(lambda x: x + 10**15), "nan": each(lambda x: float("nan")), "infinite": each(lambda x: float("inf")), "fractions": each(lambda x: x + .25),
    "truths": each(bool), "times ten": each(lambda x: x * 10), "whole": each(int),
}
VECTORS = ("action", "observation.state")
UNREAD = ("index", "next.", "meta/episodes/", "dataset_", "provenance",                        # columns that nothing here computes with,
          "task_index", "annotation.", "tasks", "timestamp", "frame_index", "episode_index", f"videos/{CAMERA}/to_timestamp")   # ... or that another can stand in for


@settings(PROPERTY, max_examples=100)
@given(st.data())
def test_any_change_to_any_column(fresh, examiner, base, data):
    version = data.draw(st.sampled_from(VERSIONS))
    d = fresh(version)
    path = data.draw(st.sampled_from(sorted(d.rglob("*.parquet"))))
    t, file = pq.read_table(path, partitioning=None), path.relative_to(d).as_posix()
    name, how = data.draw(st.sampled_from([c for c in t.column_names if not c.startswith("stats/")])), data.draw(st.sampled_from([*CHANGES, "dropped", "renamed"]))
    if how == "dropped": new = t.drop_columns([name])
    elif how == "renamed": new = t.rename_columns([f"{c}_" if c == name else c for c in t.column_names])
    else:
        try: new = column(name, CHANGES[how])(t)
        except (pa.ArrowException, TypeError, ValueError, OverflowError): return                  # there is no such column
    pq.write_table(new, path)
    seen = examiner(d)
    if name in VECTORS and how in ("backwards", "moved on"):                                       # numbers that could be true: nobody can tell
        assert "fault" not in seen, seen["fault"]
    elif verdict(d, seen, base[version], file, *([STATS] if name in VECTORS else [])) == "harmless":
        assert name.startswith(UNREAD) or new[name].to_pylist() == t[name].to_pylist(), f"{file}: {name}, {how}, is passed without a word and is not listed"


@settings(PROPERTY, max_examples=70)
@given(st.data())
def test_any_damage_to_any_file(fresh, examiner, base, data):
    "Of a byte that became another we ask only a sentence or a reading: in a picture or a number it cannot be seen."
    version = data.draw(st.sampled_from(VERSIONS))
    d = fresh(version)
    files = sorted(p for p in d.rglob("*") if p.is_file() and p.name != "episodes_stats.jsonl")
    file = data.draw(st.sampled_from(files))
    content, how = bytearray(file.read_bytes()), data.draw(st.sampled_from(["cut", "overwritten", "emptied", "zeros", "another file"]))
    third = len(content) // 3
    if how == "cut": content = content[:data.draw(st.integers(0, len(content) - 1))]
    elif how == "emptied": content = b""
    elif how == "zeros": content[third:2 * third] = bytes(third)
    elif how == "another file": content = data.draw(st.sampled_from([p for p in files if p.suffix != file.suffix])).read_bytes()
    else:
        for _ in range(data.draw(st.integers(1, 30))): content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    seen = examiner(d)
    if how in ("overwritten", "zeros"): assert "fault" not in seen, seen["fault"]
    else: verdict(d, seen, base[version], file.relative_to(d).as_posix())


@settings(PROPERTY, max_examples=40)
@given(st.data())
def test_any_two_mistakes_at_once(fresh, examiner, data):
    version = data.draw(st.sampled_from(VERSIONS))
    d = fresh(version)
    for name in data.draw(st.lists(st.sampled_from([n for n, v in CASES if v == version]), min_size=2, max_size=3, unique=True)):
        try: MISTAKES[name].how(d)
        except (OSError, ValueError, LookupError, TypeError): pass       # the first one took away what the second changes
    assert "fault" not in (seen := examiner(d)), seen["fault"]
