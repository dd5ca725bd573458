"""What every chapter shares: errors that help, the run folder and its manifests, checkpoints by name, figures."""
from __future__ import annotations

import errno, functools, hashlib, importlib, inspect, json, multiprocessing, os, platform, re, shlex, shutil, sys, threading, time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path

from safetensors import SafetensorError

STAGES = ("00_workspace", "01_episodes", "02_dreaming", "03_idm", "04_filtering", "05_policy",
          "06_flare_finetune", "07_evaluation", "08_thor_export", "09_benchmark")
VERSIONED = ("groot_cookbook", "torch", "diffusers", "transformers", "accelerate", "mujoco", "numpy", "av", "pyarrow", "onnxruntime")


def printable(text: str) -> str:
    "Text that a terminal only shows: what it would obey, or could not encode, is spelled out, and the middle of what goes on and on left out."
    if len(text) > 1200: text = f"{text[:800]} … {text[-300:]}"
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


class CookbookError(Exception):
    "Something the user can mend: `what` was found, `where`, and what to `do` next."
    def __init__(self, what: str, where: str | Path = "", do: str = ""):
        self.what, self.where, self.do = what, str(where), do
        super().__init__(printable(": ".join(filter(None, [self.where, what])) + (f". {do}" if do else "")))


# --- what is installed ------------------------------------------------------------------------------------------

NAMED = {"PIL": "pillow", "c2pa": "c2pa-python", "skimage": "scikit-image"}      # modules that are installed under another name


def plain(name: str) -> str:
    "A distribution's name as indices compare it."
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> dict[str, list[str]]:
    "Extra -> distributions, as the installed project declares them; those of the base under the empty name."
    found: dict[str, list[str]] = {}
    try: lines = metadata.requires("groot_cookbook") or []
    except metadata.PackageNotFoundError: lines = []              # a folder on the path, not an installation
    for line in lines:
        name, _, marker = line.partition(";")
        extra = re.search(r"""extra == ['"](.+)['"]""", marker)
        found.setdefault(extra[1] if extra else "", []).append(name.strip())
    return found


def version(package: str) -> str | None:
    "Of an installed distribution."
    try: return metadata.version(package)
    except metadata.PackageNotFoundError: return None


def missing(e: ModuleNotFoundError) -> CookbookError:
    "The extra to install for a module that is not there."
    module = (e.name or "").partition(".")[0]
    extra = next((x for x, names in requirements().items() if plain(NAMED.get(module, module)) in map(plain, names)), "all")
    return CookbookError(f"{module} is not installed", f"the [{extra}] extra", f"Install it: pip install -c constraints.txt '.[{extra}]' in a checkout, pip install 'groot_cookbook[{extra}]' elsewhere")


# --- hashes and manifests ---------------------------------------------------------------------------------------

def sha256(path: str | Path) -> str:
    "Hash of one file, or of a folder's files by name and content."
    path, h = Path(path), hashlib.sha256()
    if path.is_dir():
        for f in sorted(p for p in path.rglob("*") if p.is_file()): h.update(f"{f.relative_to(path).as_posix()} {sha256(f)}\n".encode())
    else:
        with open(path, "rb") as stream:
            while block := stream.read(1 << 20): h.update(block)
    return h.hexdigest()


def only_own(folder: Path, kind: str, mark: str) -> Path:
    "The folder, if what stands there may be replaced: nothing, or one of its kind, known by a file or folder called `mark`."
    if not folder.exists() or folder.is_dir() and ((folder / mark).exists() or not any(folder.iterdir())): return folder
    raise CookbookError(f"exists and is not {kind}", folder, f"Choose another folder: nothing but {kind} is ever replaced")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    "A path to write to, which takes the place of `path` once all is there; a device or a pipe, such as /dev/null, is written to as it is."
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()): yield path
    else:
        part = path.with_name(f".{path.name}.part")
        yield part
        os.replace(part, path)


def write_json(path: str | Path, value, sort: bool = True) -> Path:   # sort: keys by the alphabet, else as they stand
    "Write `value` so that a reader sees the old file or the new one, never half of it."
    with replacing(path) as part: part.write_text(json.dumps(value, indent=1, sort_keys=sort, ensure_ascii=False) + "\n", encoding="utf-8")
    return Path(path)


def run_facts(run: str | Path) -> dict:
    "What `run.json` says of how a run was made; nothing where there is none, or none that can be read."
    try: facts = json.loads((Path(run) / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError): facts = {}
    return facts if isinstance(facts, dict) else {}


def made_by(run: str | Path, stage: str) -> str:
    "The command that makes one stage of a run as the rest of it was made: same profile, same dataset, same parameters."
    said = str(run_facts(run).get("command", ""))
    words = shlex.split(said) if said.startswith("groot-cookbook run") else ["groot-cookbook", "run", "--out", str(run)]
    flags = [i for i, w in enumerate(words) if w.startswith("-")] + [len(words)]
    picks = [range(i, j) for i, j in zip(flags, flags[1:]) if words[i].partition("=")[0] in ("--only", "--from", "--force")]      # each with what follows it
    return shlex.join([w for i, w in enumerate(words) if not any(i in p for p in picks)] + ["--only", stage[:2]])


@dataclass
class Manifest:
    "Why a stage's folder looks as it does: parameters, code and inputs that made it, hashes of what came out."
    stage: str
    params: dict
    inputs: dict[str, str]                # stage -> digest of its manifest
    code: str                             # digest of the library and of the chapter's code cells
    outputs: dict[str, str] = field(default_factory=dict)   # file -> sha256
    volatile: list[str] = field(default_factory=list)       # files that hold timings and so are not hashed
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    peak_mb: int = 0

    @property
    def digest(self) -> str:
        "What the next stage depends on: everything but versions and timings."
        parts = [self.stage, self.params, self.inputs, self.code, self.outputs]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @classmethod
    def read(cls, run: str | Path, stage: str) -> "Manifest":
        "That of a finished stage."
        path = Path(run) / stage / "manifest.json"
        if not path.exists():
            raise CookbookError(f"stage {stage} has not been run", path, f"Run it first: {made_by(run, stage)}")
        try: made = cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError, RecursionError) as e: raise CookbookError(f"not a manifest of this version ({e})", path, f"Delete {path.parent} and run the stage again") from e
        sound = made.stage == stage and isinstance(made.code, str) and isinstance(made.peak_mb, int) and isinstance(made.volatile, list) and all(isinstance(v, dict) for v in (made.params, made.inputs, made.outputs))
        if not sound or not all(isinstance(v, str) for v in [*made.volatile, *made.inputs.values(), *made.outputs.values()]):
            raise CookbookError(f"not a manifest of {stage}", path, f"Delete {path.parent} and run the stage again")
        return made


CARRIED = {"08_thor_export": "thor/*.*", "09_benchmark": "published_latency.json"}     # files of data/ that a chapter copies or reads as they are


def code_digest(stage: str) -> str:
    "Digest of the library, of the code cells of `stage`'s chapter and of what it carries: when any of them changes, the stage runs again."
    package, h = Path(__file__).parent, hashlib.sha256()
    for f in sorted(package.glob("*.py")):
        if f.name not in ("cli.py", "runner.py", "report.py", "_modidx.py"): h.update(f.read_bytes())
    chapter = package.parent / "nbs" / f"{stage}.ipynb"
    if chapter.exists():
        for cell in json.loads(chapter.read_text())["cells"]:
            if cell["cell_type"] == "code": h.update("".join(cell["source"]).encode())
    if stage in CARRIED:
        for f in sorted(data_dir().glob(CARRIED[stage])): h.update(f.read_bytes())
    return h.hexdigest()


def expected(run: str | Path, stage: str, params: dict, inputs=()) -> Manifest:
    "The manifest that `stage` would have if it were run now, outputs aside."
    return Manifest(stage, json.loads(json.dumps(params)), {i: Manifest.read(run, i).digest for i in inputs}, code_digest(stage))


def run_folder(run: str | Path) -> Path:
    "A run folder given relative to the project's root, whatever folder the notebook runs in."
    return (Path(__file__).parent.parent / run).resolve()


def told(path: str | Path) -> str:
    "A folder or checkpoint as a card may name it: relative to the project's root, or by its last part; never a path of this machine."
    path = Path(path)
    if not path.is_absolute(): return str(path)
    root = Path(__file__).parent.parent.resolve()
    return str(path.resolve().relative_to(root)) if path.resolve().is_relative_to(root) else path.name


def require(run: str | Path, *stages: str) -> list[Path]:
    "Folders of finished earlier stages; says which chapter to run where one is missing."
    for stage in stages: Manifest.read(run, stage)
    return [Path(run) / stage for stage in stages]


_started = time.monotonic()
BEGUN = "GROOT_COOKBOOK_BEGUN"                     # the stage that a kernel was started for, and the digest of the code then


FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)             # no space left, a quota exceeded, a file larger than a limit allows
CLOSED = (errno.EACCES, errno.ENOTDIR, errno.EROFS)               # a folder in which nothing may be written


def disk_full(words: str) -> bool:
    "Whether an error speaks of a full disk; safetensors has its own words for it."
    return any(f"[Errno {n}]" in words or f"os error {n})" in words for n in FULL_DISK)


FULL = "Free some space or choose another folder with --out; earlier stages are untouched"


def peak_mb() -> int:
    "The most memory that this process or one of its children has held."
    import resource                                   # not on Windows, where the rest of this module is of use
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return most // (2**20 if sys.platform == "darwin" else 2**10)


@contextmanager
def hand_over(run: str | Path, stage: str, params: dict, inputs=(), volatile=()):
    "Build a stage's folder out of sight, write its manifest, and rename: half a stage is never seen."
    final, manifest = Path(run) / stage, expected(run, stage, params, inputs)
    begun, _, with_code = os.environ.get(BEGUN, "").partition(" ")
    if begun == stage: manifest.code = with_code      # code that was edited while the chapter ran is not the code that made this
    part, old = final.with_name(f".{stage}.part"), final.with_name(f".{stage}.old")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        manifest.volatile = sorted(volatile)
        manifest.outputs = {f.relative_to(part).as_posix(): sha256(f) for f in sorted(part.rglob("*"))
                            if f.is_file() and f.relative_to(part).as_posix() not in volatile}
        manifest.versions = {"python": platform.python_version(), **{p: v for p in VERSIONED if (v := version(p))}}
        manifest.seconds = round(time.monotonic() - _started, 1)
        manifest.peak_mb = peak_mb()
        write_json(part / "manifest.json", asdict(manifest))
        shutil.rmtree(old, ignore_errors=True)
        if final.exists(): final.rename(old)
        part.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as e:
        shutil.rmtree(part, ignore_errors=True)
        if disk_full(str(e)) or getattr(e, "errno", 0) in (*FULL_DISK, *CLOSED):
            raise CookbookError(getattr(e, "strerror", None) or "No space left on device", getattr(e, "filename", None) or final, FULL) from e
        raise
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _end_with_parent() -> None:
    "A worker whose parent was killed would wait for work for ever."
    parent = multiprocessing.parent_process()
    if parent is None: return
    def follow() -> None:
        parent.join()
        os._exit(1)
    threading.Thread(target=follow, daemon=True).start()


def pool(processes: int) -> ProcessPoolExecutor:
    "Processes that end with this one, however it ends. On Linux they fork from a server that imports once what each would import for seconds; elsewhere a fork may not survive torch."
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    context.set_forkserver_preload([m for m in sys.modules if m.startswith("groot_cookbook.")])
    return ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_parent)


def cores() -> int:
    "Cores that this process may use."
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gb() -> float:
    "Of this machine, or what its container may use."
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return total if text == "max" else min(total, int(text) / 1e9)


# --- checkpoints ------------------------------------------------------------------------------------------------

def data_dir() -> Path:
    "The project's `data/` folder, or the one named by GROOT_COOKBOOK_DATA."
    return Path(os.environ.get("GROOT_COOKBOOK_DATA", Path(__file__).parent.parent / "data"))


def checkpoint(name: str | Path) -> str:
    "Where a checkpoint is: a folder, a name in `data/checkpoints/`, or a hub id such as `nvidia/Cosmos-Reason1-7B`."
    own = data_dir() / "checkpoints"
    for path in (Path(name), own / str(name)):
        if os.path.isdir(path): return str(path)             # unlike Path.is_dir, it takes a text that is no name at all
    if str(name).count("/") == 1 and not str(name).startswith((".", "/", "~")): return str(name)
    have = ", ".join(sorted(p.name for p in own.glob("*") if p.is_dir()))
    raise CookbookError(f"no checkpoint called {str(name)!r}", own, f"Give a folder, a hub id (owner/name), or {f'one of: {have}' if have else 'set GROOT_COOKBOOK_DATA to the data folder of a checkout, where the tiny ones are'}")


def revised(name: str | Path) -> tuple[str, str | None]:
    "A hub id and its revision; the name of a folder is left whole."
    owner, _, revision = str(name).partition("@")
    return (str(name), None) if Path(name).is_dir() else (owner, revision or None)


def local(name: str | Path) -> Path:
    "The folder of a checkpoint; one on the hub (`owner/name` or `owner/name@revision`) is taken from the cache or fetched: safetensors and text, nothing that runs."
    name, revision = revised(name)
    if (folder := Path(checkpoint(name))).is_dir(): return folder
    from huggingface_hub import snapshot_download
    try: return Path(snapshot_download(name, revision=revision, allow_patterns=["*.safetensors", "*.json", "*.txt", "*.jinja"]))
    except (OSError, ValueError) as e:       # every error of the hub is one of the two
        raise CookbookError(f"cannot be fetched from the hub ({str(e).splitlines()[0] or type(e).__name__})", name,
                            f"Accept its licence at huggingface.co/{name} and run `hf auth login`, or give a folder it was copied to") from e


def card(folder: str | Path) -> dict:
    "The card of a checkpoint trained by this project (data, seed, steps, command, figures); empty for anybody else's."
    path = Path(folder) / "card.json"
    try:
        if isinstance(facts := json.loads(path.read_text()) if path.is_file() else {}, dict): return facts
        raise ValueError(f"it holds a {type(facts).__name__}")
    except ValueError as e: raise CookbookError(f"not a card ({e})", path, "Take the checkpoint anew from where it came from") from e


def no_bars() -> None:
    "Stop the loading bars of the model libraries that are in use: a notebook keeps what it shows."
    for library in {"diffusers", "transformers"} & set(sys.modules): importlib.import_module(f"{library}.utils.logging").disable_progress_bar()


def best_device() -> str:
    "A GPU where there is one."
    import torch
    return "cuda" if torch.cuda.is_available() else "cpu"


def plain_words(text: str, tokenizer) -> str:
    "A sentence without the tokens that mean something to a model itself, such as the end of a turn or the place of a picture: whoever wrote the sentence shall not speak for it."
    marks = [mark for mark in tokenizer.get_added_vocab() if mark.startswith("<")]
    while found := [mark for mark in marks if mark in text]:                  # again, for what is left may make another
        for mark in found: text = text.replace(mark, "")
    return text


@cache
def torchvision_ready():
    "Let torchvision import beside a CPU-only torch: its compiled operators are absent there, its Python is all we need."
    import torch
    if torch.version.cuda: return None
    library = torch.library.Library("torchvision", "DEF")
    for op in ("nms", "qnms"):
        try: library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError: pass         # a matched pair has defined it already
    return library                        # kept by the cache: what it defines is gone when it goes


@cache
def has_bf16(device: str = "cpu") -> bool:
    "Whether the hardware multiplies bfloat16 itself, and PyTorch lets it. Where not, as in many laptops, it takes twice as long as float32 or longer."
    import torch
    if device.startswith("cuda"): return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu" or sys.platform == "darwin" or not torch.backends.mkldnn.is_available(): return False       # Apple's processors have it, PyTorch's wheels for them do not use it
    return any(has for what, has in torch.cpu.get_capabilities().items() if what.endswith("bf16"))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    "What torch draws in here comes from `seed`, and nobody else's draws are touched."
    import torch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def arithmetic(precision: str = "auto", device: str = "cpu") -> str:
    "What to calculate in, `bf16` or `fp32`; `auto` is bf16 where the hardware has it."
    if precision not in ("auto", "bf16", "fp32"): raise CookbookError(f"no precision called {precision!r}", "precision", "Choose auto, bf16 or fp32")
    return ("bf16" if has_bf16(device) else "fp32") if precision == "auto" else precision


def autocast(precision: str = "auto", device: str = "cpu"):
    "PyTorch's autocast to bfloat16, or nothing, as `arithmetic` has it."
    import torch
    return torch.autocast(device, torch.bfloat16) if arithmetic(precision, device) == "bf16" else nullcontext()


# --- figures ----------------------------------------------------------------------------------------------------

INK, ACCENT, MUTED = "#22313f", "#d1495b", "#b8c4cc"
CYCLE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]   # Okabe and Ito: safe for colour-blind readers


def style() -> None:
    "One look for every figure of the book."
    import matplotlib.pyplot as plt
    plt.rcParams.update({"figure.dpi": 80, "savefig.dpi": 80, "figure.figsize": (6.4, 2.8), "figure.constrained_layout.use": True,
                         "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK, "axes.labelcolor": INK,
                         "xtick.color": INK, "ytick.color": INK, "text.color": INK, "font.size": 9, "axes.titlesize": 10,
                         "axes.prop_cycle": plt.cycler(color=CYCLE), "legend.frameon": False, "image.interpolation": "nearest"})


def drawn(fig, tight: bool = True) -> tuple[bytes, str]:  # the picture and its kind
    "A figure as a picture; photographs as JPEG, so that a notebook full of film strips stays small."
    import io
    import matplotlib.pyplot as plt
    from PIL import Image as Picture
    made = io.BytesIO()
    fig.savefig(made, bbox_inches="tight" if tight else None)
    plt.close(fig)
    picture = Picture.open(made).convert("RGB")
    if picture.getcolors(4096) is not None: return made.getvalue(), "image/png"
    made = io.BytesIO()
    picture.save(made, "jpeg", quality=85, subsampling=0, optimize=True)
    return made.getvalue(), "image/jpeg"


def show(fig, alt: str) -> None:
    "Display a figure with the text that stands for it where it cannot be seen."
    from IPython.display import Image, display
    picture, kind = drawn(fig)
    display(Image(picture), metadata={kind: {"alt": alt}})


def somebody_looks() -> bool:
    "Whether the cell that runs was asked for by a front end with hands."
    # JupyterLab sends the cell's id with every request, nbclient (and so papermill and nbconvert) and nbdev-test send none. An environment variable would be
    # inherited by a papermill that is started from within JupyterLab, and a comm opens whether or not anybody is at its other end.
    from IPython import get_ipython
    request: dict = getattr(get_ipython(), "get_parent", dict)()
    return "cellId" in request.get("metadata", {})


def touch(draw: Callable, **dials) -> None:  # argument of `draw` -> (first, last), (first, last, step) or a list; the slider begins at its default, which must be one of the steps
    """Sliders, and under them the figure that `draw` makes of their values; its docstring stands for the figure where that cannot be seen.

    Where nobody looks `draw` is called once and nothing is shown: a cell that has stopped working fails there too, and what is stored holds no widgets.
    """
    if not somebody_looks():
        drawn(draw())
        return
    from base64 import b64encode
    from html import escape
    from IPython.display import display
    from ipywidgets import HTML, SelectionSlider, VBox, interactive
    figure, begin = HTML(), {name: p.default for name, p in inspect.signature(draw).parameters.items()}

    @functools.wraps(draw)                   # ipywidgets reads off the signature where each slider begins
    def redraw(**values):
        picture, kind = drawn(draw(**values), tight=False)
        figure.value = f'<img src="data:{kind};base64,{b64encode(picture).decode()}" alt="{escape(draw.__doc__ or str())}">'

    sliders = interactive(redraw, **{name: SelectionSlider(options=dial, value=begin[name]) if isinstance(dial, list) else dial for name, dial in dials.items()})
    for slider in sliders.kwargs_widgets: slider.style.description_width, slider.layout.width = "6em", "30em"
    display(VBox([sliders, figure]))


def strip(lit: int) -> None:
    "The pipeline, with stage `lit` in colour: the same small figure on top of every chapter. A chapter of a further shelf stands beside the ten."
    import matplotlib.pyplot as plt
    style()
    names = dict(enumerate(["workspace", "episodes", "dreaming", "idm", "filtering", "policy", "finetuning", "evaluation", "export", "benchmark"]))
    if lit not in names: names[lit] = next((Path(__file__).parent.parent / "nbs").glob(f"{lit}_*.ipynb")).stem[3:].replace("_", " ")
    fig, ax = plt.subplots(figsize=(.96 * len(names), .55))
    for i, (number, name) in enumerate(names.items()):
        on = number == lit
        ax.text(i, 0, f"{number:02d}\n{name}", ha="center", va="center", fontsize=7.5, color="white" if on else INK,
                bbox=dict(boxstyle="round,pad=.35", fc=ACCENT if on else "#eef2f4", ec=ACCENT if on else MUTED))
        if i and number == i: ax.annotate("", (i - .42, 0), (i - .58, 0), arrowprops=dict(arrowstyle="->", color=MUTED))
    ax.set(xlim=(-.6, len(names) - .4), ylim=(-.5, .5)); ax.axis("off")
    show(fig, f"The ten stages of the pipeline in order; {names[lit]} is highlighted")


def film_strip(rows: dict, n: int = 8):  # label -> frames (T, H, W, 3) uint8
    "A figure with one row of `n` evenly spaced frames per clip."
    import matplotlib.pyplot as plt
    import numpy as np
    fig, axes = plt.subplots(len(rows), n, figsize=(1.15 * n, 1.25 * len(rows)), squeeze=False)
    for line, (label, frames) in zip(axes, rows.items()):
        for ax, t in zip(line, np.linspace(0, len(frames) - 1, n).round().astype(int)):
            ax.imshow(frames[t]); ax.set(xticks=[], yticks=[])
            for s in ax.spines.values(): s.set_visible(False)
            if line is axes[0]: ax.set_title(f"t = {t}", fontsize=7)
        line[0].set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center")
    return fig
