"""Execute the chapters in order by papermill: strict parameters, time limits, one lock per run folder, resume after anything."""
from __future__ import annotations

import fcntl, hashlib, json, os, re, shutil, sys, threading, time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from . import core
from .chapters import LIMITS, ROOT, SPINE, Chapter, chapters, pick, read_profile, resolve
from .core import CookbookError, Manifest


# --- the run folder ---------------------------------------------------------------------------------------------

@contextmanager
def locked(out: Path, patience: float = 15.0):
    "Hold the run folder for this process and the kernels it starts; yields the lock's file descriptor."
    out.mkdir(parents=True, exist_ok=True)
    fd, started = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o644), time.monotonic()
    try:
        while True:
            try: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB); break
            except BlockingIOError:
                # The kernel of a killed run holds the lock too and needs a second to notice that its parent has gone.
                if time.monotonic() - started > patience:
                    holder = os.read(fd, 20).decode().strip() or "unknown"
                    raise CookbookError(f"another run (process {holder}) is at work in this folder", out, "Wait until it ends, or choose another folder with --out") from None
                time.sleep(.2)
        os.ftruncate(fd, 0); os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield fd
    finally: os.close(fd)


def sweep(out: Path) -> None:
    "Remove what a killed run left half made, and put back what it had just set aside; nothing else in the folder is touched."
    ours = sorted(p for p in out.iterdir() if re.fullmatch(r"\.(\d\d\w*|run\.json|report\.html)\.(part|old)", p.name))
    for left in ours:
        final = out / left.name[1:-4]
        if left.suffix == ".old" and not final.exists(): left.rename(final)
        else: shutil.rmtree(left) if left.is_dir() else left.unlink()


def watched(params: dict) -> dict[str, str]:
    "Fingerprints of the folders and files that parameters name (a dataset, a checkpoint, a board's figures): a stage runs again when one is altered."
    found = {}
    for name, value in params.items():
        if name == "run" or not isinstance(value, str) or not value: continue
        for path in (ROOT / value, core.data_dir() / "checkpoints" / value):
            if os.path.exists(path):
                files = [(p.relative_to(path).as_posix(), p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(path.rglob("*")) or [path] if p.is_file()]
                found[name] = hashlib.sha256(repr(files).encode()).hexdigest()[:16]
                break
    return found


def notebook(out: Path, stage: str) -> Path: return out / "notebooks" / f"{stage}.ipynb"  # where the executed one is kept


def record(executed: Path) -> dict:
    "What the runner noted in an executed notebook; empty where there is none."
    try: return dict(json.loads(executed.read_text())["metadata"].get("groot_cookbook", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError): return {}


def stale(out: Path, stage: str, params: dict) -> str:
    "Why a stage has to run; empty when what is on disk is what a run would make."
    if notebook(out, stage).with_name(f".{stage}.part.ipynb").exists(): return "was interrupted"
    try: have = Manifest.read(out, stage)
    except CookbookError: return "not made yet" if not (out / stage).exists() else "its manifest is not of this version"
    try: want = core.expected(out, stage, have.params, have.inputs)
    except CookbookError: return "made from other inputs"
    noted = record(notebook(out, stage))
    if noted.get("failed"): return "failed before"
    if want.code != have.code: return "code changed"
    if want.inputs != have.inputs: return "inputs changed"
    seen = {**noted.get("params", {}), **have.params}       # what the chapter put on its manifest goes first
    changed = [k for k, v in json.loads(json.dumps(params)).items() if k != "run" and seen.get(k, v) != v]
    if changed: return "changed: " + ", ".join(changed)
    if noted.get("watched", watched(params)) != watched(params): return "a dataset or checkpoint changed"
    for name in have.volatile:
        if not (out / stage / name).is_file(): return f"{name} is missing"
    for name, digest in have.outputs.items():
        path = out / stage / name
        if not path.is_file() or core.sha256(path) != digest: return f"{name} is missing or altered"
    return ""


# --- execution --------------------------------------------------------------------------------------------------

@dataclass
class Step:
    "What became of one chapter in a run."
    stage: str
    status: str = "waiting"      # ran, unchanged, failed, stopped
    seconds: float = 0.0
    peak_mb: int = 0
    why: str = ""


class Line:
    "One line per chapter; on a terminal it counts cells and seconds while the chapter runs."
    def __init__(self, stage: str, quiet: bool = False):
        self.stage, self.quiet, self.started, self.at, self.done = stage, quiet, time.monotonic(), "starting", threading.Event()
        if not quiet and sys.stdout.isatty(): threading.Thread(target=self._tick, daemon=True).start()

    @property
    def seconds(self) -> float: return time.monotonic() - self.started  # since it began

    def _tick(self) -> None:
        while not self.done.wait(.5): print(f"\r\033[K{self.stage:<20}{self.seconds:6.0f} s  {self.at}", end="", flush=True)

    def end(self, text: str) -> None:
        "The last thing it says."
        self.done.set()
        if self.quiet: return
        print(("\r\033[K" if sys.stdout.isatty() else "") + f"{self.stage:<20}{self.seconds:7.1f} s  {text}", flush=True)


def execute(chapter: Chapter, to: Path, params: dict, limits: dict, lock: int, line: Line, root: Path = ROOT) -> None:
    "Run one chapter in a kernel of this very interpreter; every way to fail becomes a CookbookError with one sentence."
    import papermill
    from ipykernel.kernelspec import get_kernel_dict          # its command begins with sys.executable
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import Engine, papermill_engines

    class ThisPython(KernelSpecManager):
        def get_kernel_spec(self, kernel_name):               # whatever kernelspecs the user's machine has
            return KernelSpec(**get_kernel_dict())

    deadline, at, log = time.monotonic() + limits["chapter"], {}, to.with_suffix(".log")      # what compiled libraries print past Python

    class Counting(Engine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **_):
            code = [i for i, c in enumerate(nb_man.nb.cells) if c.cell_type == "code" and "injected-parameters" not in c.metadata.get("tags", [])]
            start = nb_man.cell_start

            def cell_start(cell, cell_index=None, **kw):
                if cell_index in code: at["cell"] = f"cell {code.index(cell_index) + 1}/{len(code)}"; line.at = at["cell"]
                if time.monotonic() > deadline: raise CellTimeoutError()
                return start(cell, cell_index, **kw)

            nb_man.cell_start = cell_start
            left = lambda cell: max(1, int(min(limits["cell"], deadline - time.monotonic())))
            client = PapermillNotebookClient(nb_man, timeout_func=left, startup_timeout=120, kernel_name=kernel_name)
            manager = client.create_kernel_manager()
            manager.kernel_spec_manager, manager.transport_encryption = ThisPython(), "auto"
            # PYTHONHASHSEED: the order of sets is part of "the same numbers". pass_fds: a kernel that outlives us keeps the folder locked.
            # GOMP_SPINCOUNT: a thread that waits spins a tenth as long as is usual before it sleeps. That costs nothing alone; spinning longer, it takes the core from whatever else runs, and a step that needs both waits for it: ten times as long.
            calm = {"GOMP_SPINCOUNT": "30000", **os.environ, "PYTHONHASHSEED": "0", core.BEGUN: f"{chapter.name} {core.code_digest(chapter.name)}"}
            with open(log, "wb") as noise: client.execute(cwd=str(root), pass_fds=(lock,), env=calm, cleanup_kc=True, stdout=noise, stderr=noise)

    papermill_engines.register("groot_cookbook", Counting)
    try:
        papermill.execute_notebook(str(chapter.path), str(to), parameters=params, engine_name="groot_cookbook", kernel_name="python3",
                                   progress_bar=False, cwd=str(root))
    except papermill.PapermillExecutionError as e:
        if core.disk_full(e.evalue): raise CookbookError("No space left on device", to.parent.parent, core.FULL) from e
        raise CookbookError(e.evalue if e.ename == "CookbookError" else f"{e.ename}: {e.evalue}", at.get("cell", "")) from e
    except CellTimeoutError as e:
        over = "chapter" if time.monotonic() > deadline - 1.5 else "cell"
        raise CookbookError(f"took longer than the {limits[over]} s that a {over} may take", at.get("cell", ""),
                            f"Raise it with --{over}-limit SECONDS, or choose a smaller profile") from e
    except DeadKernelError as e:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise CookbookError("the kernel died, most often for lack of memory" + "".join(f" (it said: {line})" for line in last), at.get("cell", ""),
                            "groot-cookbook doctor shows what this machine has") from e
    except RuntimeError as e:                # of a kernel that did not answer in time
        raise CookbookError(f"the kernel did not start ({e})", chapter.path, "Is the machine busy? groot-cookbook doctor shows what it has; run again to go on") from e
    finally: log.unlink(missing_ok=True)


def note(path: Path, **facts) -> None:
    "Write the runner's own record into an executed notebook."
    nb = json.loads(path.read_text())
    nb["metadata"]["groot_cookbook"] = facts
    core.write_json(path, nb)


def perform(chapter: Chapter, out: Path, params: dict, limits: dict, lock: int, line: Line, root: Path = ROOT) -> Manifest:
    "Execute a chapter; its notebook is kept whatever happens, and stands under its own name only when it has ended."
    kept = notebook(out, chapter.name)
    part, facts = kept.with_name(f".{chapter.name}.part.ipynb"), dict(params=params, watched=watched(params))
    kept.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(chapter.path.read_text())
    try:
        execute(chapter, part, params, limits, lock, line, root)
        made = Manifest.read(out, chapter.name)
        note(part, made=made.digest, seconds=round(line.seconds, 1), **facts)
    except CookbookError as e:
        note(part, failed=str(e), **facts)
        raise
    finally:
        if record(part): os.replace(part, kept)
    return made


@dataclass
class Run:
    "A run of the chapters into one folder."
    out: Path
    params: dict[str, dict]
    selected: list[Chapter]
    limits: dict = field(default_factory=lambda: dict(LIMITS))
    force: bool = False
    quiet: bool = False
    root: Path = ROOT
    about: dict = field(default_factory=dict)       # command, profile: for the report
    steps: list[Step] = field(default_factory=list)

    def go(self) -> list[Step]:
        "Every selected chapter in order; raises the CookbookError of the one that fails."
        where = os.path.relpath(self.out, self.root)
        as_parameter = str(self.out) if where.startswith("..") else where
        with locked(self.out) as lock:
            try:
                sweep(self.out)
                core.write_json(self.out / "run.json", {**self.about, "params": self.params})
                for chapter in self.selected: self._one(chapter, {**self.params[chapter.name], "run": as_parameter}, lock)
            except FileNotFoundError as e:
                if self.out.is_dir(): raise
                raise CookbookError("the run folder has gone while the run was at work", self.out, "Put it back and give the same command again, or begin anew where it stays") from e
        return self.steps

    def _one(self, chapter: Chapter, params: dict, lock: int) -> None:
        why = "forced" if self.force else stale(self.out, chapter.name, params)
        step, line = Step(chapter.name, why=why), Line(chapter.name, self.quiet)
        self.steps.append(step)
        try:
            if why: made = perform(chapter, self.out, params, self.limits, lock, line, self.root)
            else: made = Manifest.read(self.out, chapter.name)
            step.status, step.peak_mb = "ran" if why else "unchanged", made.peak_mb
            line.end(f"{made.peak_mb:6d} MB" + (f"  ({why})" if why not in ("not made yet", "forced") else "") if why else "unchanged")
        except BaseException as e:
            step.status = "stopped" if isinstance(e, (KeyboardInterrupt, SystemExit)) else "failed"
            line.end(step.status)
            raise
        finally: step.seconds = round(line.seconds, 1)


def prepare(profile=None, out=None, start=None, only=(), dataset=None, sets=(), cell_limit=None, chapter_limit=None, root: Path = ROOT, **rest) -> Run:
    "Check everything that can be checked before the first kernel starts."
    if out and not profile and (was := core.run_facts(Path(out).expanduser()).get("profile", "smoke")) != "smoke":
        raise CookbookError(f"holds a run of profile {was}, and no profile was named", out, f"Say --profile {was} to go on with it, --profile smoke to replace it")
    profile = profile or "smoke"
    available, blocks, about = chapters(root), read_profile(profile, root), rest.pop("about", {})
    asked, sets = list(sets), list(sets)
    if dataset:
        from .episodes import Dataset
        dataset = check_dataset(dataset)
        if "action" not in Dataset(dataset).layout.features: raise CookbookError("declares no column action, so nothing can be learned from it", dataset / "meta" / "info.json", "Record actions as action: GR00T and the policy here read them there")
        sets[:0] = [f"{c.name}.dataset={dataset}" for c in available if "dataset" in c.parameters()]
    params = resolve(available, blocks, f"nbs/params/{profile}.yaml", sets)
    picked = [pick(available, o) for o in only] or [c for c in available if c.name.startswith(SPINE)]
    first = pick(available, start).name if start else ""
    selected = [c for c in available if c in picked and c.name >= first]
    if not selected: raise CookbookError(f"no chapter is left to run from {first} on", "--from", f"Name one no later than {picked[-1].name}, or say --only {first[:2]}")
    for s in asked:
        if pick(available, s.partition(".")[0]) not in selected: print(f"-p {s}: that chapter does not run now, so this changes nothing", file=sys.stderr)
    if dataset:
        for camera in {params[c.name].get("camera") for c in selected} - {None, ""}: Dataset(dataset, camera)         # an unknown one ends here
    limits = {**LIMITS, **blocks.get("limits", {}), **{k: v for k, v in (("cell", cell_limit), ("chapter", chapter_limit)) if v}}
    folder = Path(out).expanduser() if out else root / "runs" / (f"{profile}-{dataset.name}" if dataset else profile)
    if dataset and not out and (other := dataset_of(folder)) not in ("", str(dataset)):
        raise CookbookError(f"holds a run on another dataset of that name, {other}", folder, "Give this one a folder of its own with --out")
    return Run(folder.resolve(), params, selected, limits, root=root, about={**about, "profile": profile}, **rest)


def dataset_of(out: Path) -> str:
    "The dataset that a run folder was last made from; empty where none was, or nobody can tell."
    try: return str(core.run_facts(out)["params"]["01_episodes"]["dataset"])
    except (KeyError, TypeError): return ""


def check_dataset(path: str | Path) -> Path:
    "The absolute path of a dataset that can be read; its warts are named, its errors end here."
    path = Path(path).expanduser().resolve()
    if not path.is_dir(): raise CookbookError("no such dataset folder", path, "Give the folder that holds meta/, data/ and videos/")
    from . import validation
    for wart in validation.check_dataset(path): print(f"dataset, {wart}", file=sys.stderr)
    return path
