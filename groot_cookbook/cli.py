"""The command `groot-cookbook`: run the chapters, look at them, look at data. Heavy imports wait until a command needs them."""
from __future__ import annotations

import argparse, errno, json, os, re, shlex, shutil, signal, sys
from pathlib import Path

from . import __version__, chapters, core, runner
from .core import CookbookError

EPILOG = """examples:
  groot-cookbook run --profile laptop                 the whole data engine, 11 to 18 minutes on two cores
  groot-cookbook run --profile laptop --dataset PATH  the same on your own LeRobot dataset
  groot-cookbook run --from 04 -p 04_filtering.threshold=0.8   from a chapter on, with one parameter changed
  groot-cookbook params 03                            what chapter 03 can be told

exit codes: 0 done, 1 something to mend (said in one sentence), 2 wrong usage, 130 stopped with Ctrl-C"""
BESIDE = {"lerobot/eagle2hg-processor-groot-n1p5": "", "nvidia/Cosmos-1.0-Guardrail": "", "Qwen/Qwen3Guard-Gen-0.6B": ""}      # N1.5's tokenizer, and what cosmos-guardrail downloads, without which NVIDIA's dreamers do not load
BOOK = ("", "workspace", "models", "notebooks", "export", "sign")      # the base and the extras that the chapters need


def seconds(text: str) -> int:
    "A whole number of them, in which something can be done."
    if not text.isdecimal() or int(text) < 1: raise argparse.ArgumentTypeError(f"{text!r} is no whole number of seconds from 1 on")
    return int(text)


def parser() -> argparse.ArgumentParser:
    "The words that the command understands."
    top = argparse.ArgumentParser("groot-cookbook", allow_abbrev=False, description="Learn, run and ship the GR00T-Dreams data engine.", epilog=EPILOG,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--version", action="version", version=__version__)
    sub = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, help, *arguments, as_json=True):
        p = sub.add_parser(name, help=help, description=help, allow_abbrev=False)            # `--chapter 03` would be `--chapter-limit 3`
        for flags, kw in arguments: p.add_argument(*flags.split(), **kw)
        if as_json: p.add_argument("--json", action="store_true", help="machine-readable output")
        p.set_defaults(do=globals()[f"do_{name}"])

    command("run", "execute the chapters in order and write report.html",
            ("--profile", dict(help=f"one of: {', '.join(chapters.profiles())} (default: smoke)")), ("--out", dict(metavar="FOLDER", help="run folder (default: runs/PROFILE, or runs/PROFILE-NAME of a dataset)")),
            ("--from", dict(dest="start", metavar="CHAPTER", help="begin with this chapter")), ("--only", dict(nargs="+", default=[], metavar="CHAPTER", help="these chapters and no others")),
            ("--dataset", dict(metavar="PATH", help="a LeRobot dataset in place of the workspace's teleoperation")),
            ("-p", dict(dest="sets", action="append", default=[], metavar="CHAPTER.name=value", help="set a parameter; may be repeated")),
            ("--force", dict(action="store_true", help="run chapters even when nothing has changed")),
            ("--cell-limit", dict(type=seconds, metavar="SECONDS", help="longest time for one cell")), ("--chapter-limit", dict(type=seconds, metavar="SECONDS", help="longest time for one chapter")))
    command("list", "the chapters by name and title; with --json, what they promise and make")
    command("params", "what a chapter can be told, and what each profile tells it", ("chapter", {}))
    command("report", "write report.html for a run folder again", ("out", dict(nargs="?", default=None, metavar="FOLDER", help="default: the run touched last")))
    command("doctor", "what this machine can run: CPU, CUDA, memory, disk, packages, gated access")
    command("validate", "look through a LeRobot dataset and say what is wrong with it", ("path", dict(metavar="PATH")))
    command("convert", "rewrite a LeRobot dataset in another version of the format", ("path", dict(metavar="PATH")),
            ("--to", dict(required=True, choices=["v2.1", "v3.0"])), ("--out", dict(required=True, metavar="FOLDER")),
            ("--camera", dict(metavar="NAME", help="the one to learn from, which is named first (default: the first that has films)")), as_json=False)
    return top


def main(argv: list[str] | None = None) -> int:
    "Parse, do, and turn every expected fault into one sentence and an exit code."
    args = parser().parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try: return args.do(args) or 0
    except CookbookError as e: print(e, file=sys.stderr)
    except ModuleNotFoundError as e: print(core.missing(e), file=sys.stderr)
    except KeyboardInterrupt:
        print("\nStopped. What was finished is kept; the same command goes on from there.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)     # `| head` has seen enough
        return 1
    except OSError as e:
        if e.errno not in (errno.EEXIST, *core.CLOSED, *core.FULL_DISK): raise
        print(f"{e.filename or 'writing'}: {e.strerror}. Free some space, or choose a folder that can be written with --out; finished stages are untouched", file=sys.stderr)
    return 1


def do_run(args) -> int:
    "Run the chapters and write the report, of a failed run too."
    from . import report
    command = shlex.join(["groot-cookbook", *args.argv])
    run = runner.prepare(args.profile, args.out, args.start, args.only, args.dataset, args.sets, args.cell_limit, args.chapter_limit,
                         force=args.force, quiet=args.json, about={"command": command})
    try: run.go()
    except CookbookError as e:
        failed = run.steps[-1].stage if run.steps else None
        if failed is None: raise
        kept = runner.notebook(run.out, failed)
        print(f"{failed}: {e}" + (f"\nThe executed notebook is {_short(kept)}" if kept.exists() else ""), file=sys.stderr)
        if args.json: print(json.dumps({"out": str(run.out), "failed": failed, "why": str(e), "steps": [vars(s) for s in run.steps]}))
        try: report.build(run.out, run.root)
        except (CookbookError, OSError): pass              # the failure itself has been told
        return 1
    page = report.build(run.out, run.root)
    if args.json: print(json.dumps({"out": str(run.out), "report": str(page), "steps": [vars(s) for s in run.steps]}))
    else: print(f"{'all':<20}{sum(s.seconds for s in run.steps):7.1f} s\nThe report is {_short(page)}")
    return 0


def do_list(args) -> int:
    "One line a chapter."
    rows = [dict(name=c.name, title=c.title, promise=c.promise.replace("*", ""), makes=c.makes) for c in chapters.chapters()]
    if args.json: print(json.dumps(rows))
    else:
        for r in rows: print(f"{r['name']:<20}{r['title']}")
    return 0


def do_params(args) -> int:
    "What a chapter can be told, and what each profile tells it."
    chapter = chapters.pick(chapters.chapters(), args.chapter)
    blocks = {p: chapters.read_profile(p).get(chapter.name, {}) for p in chapters.profiles()}
    rows: list[dict] = [dict(name=p.name, kind=p.kind, default=p.default, help=p.help, profiles={k: b[p.name] for k, b in blocks.items() if p.name in b}) for p in chapter.parameters().values()]
    if args.json: print(json.dumps(rows))
    else:
        for r in rows:
            print(f"{chapter.name}.{r['name']} = {r['default']!r}  ({r['kind']})  {r['help']}")
            if r["profiles"]: print("    " + ", ".join(f"{k}: {v!r}" for k, v in r["profiles"].items()))
    return 0


def do_report(args) -> int:
    "Write the report of a run anew."
    from . import report
    runs = sorted((chapters.ROOT / "runs").glob("*/run.json"), key=lambda p: p.stat().st_mtime)
    if not args.out and not runs: raise CookbookError("no run yet", chapters.ROOT / "runs", "groot-cookbook run")
    page = report.build(Path(args.out) if args.out else runs[-1].parent)
    print(json.dumps({"report": str(page)}) if args.json else f"The report is {_short(page)}")
    return 0


def do_validate(args) -> int:
    "Findings, one a line; 1 if any is an error."
    from .episodes import validate
    findings = validate(Path(args.path))
    errors = sum(f.severity == "error" for f in findings)
    if args.json: print(json.dumps([dict(file=str(f.file), what=f.what, do=f.do, severity=f.severity) for f in findings]))
    else:
        for f in findings: print(f)
        print(f"{errors} errors, {len(findings) - errors} warnings")
    return 1 if errors else 0


def do_convert(args) -> int:
    "Rewrite a dataset in another version of the format, all cameras that film colours with it."
    from .episodes import Dataset, convert
    runner.check_dataset(args.path)
    if Path(args.out).expanduser().exists(): raise CookbookError("the folder exists already", args.out, "Choose another folder with --out")
    source, written = Dataset(args.path), Dataset(convert(args.path, args.out, args.to, args.camera))
    had, has = source.layout.features, written.layout.features
    if lost := [c for c in had if c not in has]: print(f"not carried over: {', '.join(lost)}", file=sys.stderr)
    if made := [c for c in had if c in has and c.startswith("next.")]: print(f"written anew, not copied: {', '.join(made)}", file=sys.stderr)
    print(f"{len(written)} episodes written as LeRobot {args.to} to {_short(written.path)}")
    return 0


def do_doctor(args) -> int:
    "What `examine` found; 1 if not even `smoke` can run."
    facts = examine()
    if args.json: print(json.dumps(facts))
    else:
        for k, v in facts.items(): print(f"{k:<12}" + ("\n" + " " * 12).join(v if isinstance(v, list) else [str(v)]))
    return 0 if facts["verdict"][0].startswith("smoke: yes") else 1


def examine() -> dict:
    "What this machine has, and which profiles it can run."
    cores = core.cores()
    memory, disk = core.memory_gb(), shutil.disk_usage(chapters.ROOT).free / 1e9
    off = _packages()
    try:
        import torch
        cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    except ImportError: cards = []
    gpus, room = [f"{c.name}, {c.total_memory / 1e9:.0f} GB" for c in cards], memory > 95 and disk > 200 and any(c.total_memory > 39e9 for c in cards)
    book = (chapters.ROOT / "nbs").is_dir()
    able = book and not any("missing" in p for p in off) and memory > 5.9 and disk > 2
    access = _access() if book else ["not looked at: the chapters are not here"]
    return {"python": sys.version.split()[0], "cpu": f"{cores} cores", "memory": f"{memory:.1f} GB", "disk": f"{disk:.0f} GB free", "cuda": gpus or "none",
            "packages": off or "as pinned", "access": access,
            "verdict": [f"smoke: {'yes' if able else 'no'} (needs {'' if book else 'a checkout with its chapters, '}the pinned packages, 6 GB of memory, 2 GB of disk)", f"laptop: {'yes' if able else 'no'} (the same, and patience below two cores)",
                        f"gpu: {'yes' if able and gpus else 'no'} (needs a CUDA device)",
                        f"real: {'yes' if able and room and core.version('cosmos-guardrail') and not any(': no' in a for a in access[1:]) else 'no'} (a CUDA device of 40 GB, 96 GB of memory, 200 GB of disk, by count; the [real] extra, and the checkpoints above)"]}


def _packages() -> list[str]:
    "Requirements of the chapters that are missing, or differ from constraints.txt."
    listed = chapters.ROOT / "constraints.txt"
    pins = {core.plain(n): v for n, _, v in (line.partition("==") for line in (listed.read_text().splitlines() if listed.is_file() else []))}
    known = core.requirements()
    found = [] if known else ["missing: groot_cookbook itself, which is on the path but not installed (pip install -c constraints.txt -e '.[all]')"]
    for extra, names in known.items():
        if extra not in BOOK: continue
        have = {name: core.version(name) for name in names}
        if absent := [name for name, v in have.items() if not v]: found.append(f"missing: {', '.join(absent)} (pip install -c constraints.txt -e '.{f'[{extra}]' if extra else ''}')")
        found += [f"{name} {v}, pinned {pin}" for name, v in have.items() if v and (pin := pins.get(core.plain(name))) and v.split("+")[0] != pin]
    return found


def _access() -> list[str]:
    "Which of the checkpoints that profile `real` wants are on this machine, or how to get them; asks nothing of the network."
    try: from huggingface_hub import get_token, try_to_load_from_cache
    except ImportError: return ["huggingface-hub: no"]
    lines = [f"hub token: {'yes' if get_token() else 'no (huggingface.co/settings/tokens, then: hf auth login)'}"]
    named = [v for block in chapters.read_profile("real").values() for v in block.values() if isinstance(v, str) and re.fullmatch(r"[\w-]+/[\w.-]+(@.+)?", v)]
    for repo, revision in {**dict(n.partition("@")[::2] for n in named), **BESIDE}.items():
        here = any(isinstance(try_to_load_from_cache(repo, f, revision=revision or None), str) for f in ("config.json", "model_index.json", "tokenizer_config.json", "face_blur_filter/Resnet50_Final.pth"))
        lines.append(f"{repo}: " + ("yes" if here else f"no (hf download {repo}{f' --revision {revision}' if revision else ''}; where it is gated, accept its licence at huggingface.co/{repo} first)"))
    return lines


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


if __name__ == "__main__": sys.exit(main())
