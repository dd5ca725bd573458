"""Kill runs at random moments and let the same command go on: python benchmarks/kills.py [--kills N] [--seed N] [--profile NAME] [--only CHAPTER ...] [--out FOLDER]

An undisturbed run comes first and says when each chapter is at work. Then runs are killed (SIGKILL) at moments drawn evenly over that time, up to ten to a run,
half of the times the runner alone, whose kernel has to notice, and half of the times every process at once, as a power switch does. Each finished run must have
the manifests of the undisturbed one, and so the same hash of every file. FOLDER/kills.json says when what was killed and what became of it.
"""
from __future__ import annotations

import argparse, subprocess, sys, tempfile, time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from bench import ROOT, provenance

from groot_cookbook import core

PER_RUN = 10                 # kills of one run, at most
PATIENCE = 30.0              # seconds for the processes of a killed runner to end by themselves


@dataclass(frozen=True)
class Moment:
    "Seconds into a chapter, or into the start before any."
    stage: str
    seconds: float


class Run:
    "The command in a folder: started, watched, killed, started again."
    def __init__(self, folder: Path, profile: str, only: list[str], limit: float):
        self.folder, self.limit = folder, limit
        self.command = [sys.executable, "-m", "groot_cookbook.cli", "run", "--profile", profile, "--out", str(folder), "--json", *(["--only", *only] if only else [])]

    def at_work(self) -> str:
        "The chapter being executed; empty between two."
        return next((p.name[1:-len(".part.ipynb")] for p in sorted(self.folder.glob("notebooks/.*.part.ipynb"))), "")

    def go(self, until: Callable[[Moment], bool], stop: Callable[[psutil.Process], None]) -> list[tuple[str, float]] | None:
        "Run until a moment, and stop; chapters and when they began where it came to its end first."
        with tempfile.TemporaryFile("w+") as said:
            process, began = subprocess.Popen(self.command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=said, text=True), time.monotonic()
            seen, since = [("start", 0.0)], began
            while process.poll() is None:
                now = time.monotonic()
                if (stage := self.at_work()) and stage != seen[-1][0]: seen, since = [*seen, (stage, now - began)], now
                if until(Moment(seen[-1][0], now - since)):
                    stop(psutil.Process(process.pid))
                    process.wait()
                    return None
                if now - began > self.limit: process.kill(); raise core.CookbookError(f"not done after {self.limit:.0f} s", self.folder, "Is the machine busy? Try again")
                time.sleep(.02)
            said.seek(0)
            if process.returncode: raise core.CookbookError(f"the run failed: {said.read().strip()[-300:]}", self.folder, "Run the command by hand: groot-cookbook run")
        return [*seen, ("end", time.monotonic() - began)]

    def stages(self) -> list[str]: return sorted(p.name for p in self.folder.glob("[0-9][0-9]_*"))

    def code(self) -> list[str]: return [core.Manifest.read(self.folder, s).code for s in self.stages()]

    def digests(self) -> dict[str, str]: return {s: core.Manifest.read(self.folder, s).digest for s in self.stages()}

    def torn(self) -> list[str]:
        "Chapters whose folder can be seen, but is not what its manifest says."
        def whole(stage: str) -> bool:
            made = core.Manifest.read(self.folder, stage)
            return all((self.folder / stage / n).is_file() for n in made.volatile) and all(core.sha256(self.folder / stage / n) == h for n, h in made.outputs.items())
        return [s for s in self.stages() if not whole(s)]

    def leftovers(self) -> list[str]: return sorted(p.relative_to(self.folder).as_posix() for p in [*self.folder.glob(".*"), *self.folder.glob("notebooks/.*")] if p.name != ".lock")


def killer(everything: bool, found: dict) -> Callable[[psutil.Process], None]:
    "Kill -9; what is left alive, and for how long, goes into `found`."
    def stop(runner: psutil.Process) -> None:
        below = runner.children(recursive=True)
        runner.kill()
        if everything:
            for p in below:
                try: p.kill()
                except psutil.NoSuchProcess: pass
        began = time.monotonic()
        _, alive = psutil.wait_procs(below, PATIENCE)
        found.update(processes=1 + len(below), gone_after_s=round(time.monotonic() - began, 2), survivors=len(alive))
        for p in alive: p.kill()
    return stop


def place(timeline: list[tuple[str, float]], at: float) -> Moment:
    stage, began = [(s, t) for s, t in timeline if t <= at][-1]
    return Moment(stage, at - began)


def reached(wanted: Moment, order: list[str]) -> Callable[[Moment], bool]:
    "Whether a run is there, or has gone past it."
    return lambda now: order.index(now.stage) > order.index(wanted.stage) or (now.stage == wanted.stage and now.seconds >= wanted.seconds)


def experiment(kills: int, seed: int, profile: str, only: list[str]) -> dict:
    rng, rows, runs = np.random.default_rng(seed), [], []
    with tempfile.TemporaryDirectory() as folder:
        print("undisturbed first ...", flush=True)
        first = Run(Path(folder) / "undisturbed", profile, only, 3600)
        timeline = first.go(lambda now: False, killer(True, {}))
        order, total, wanted = [s for s, _ in timeline], timeline[-1][1], first.digests()
        print(f"{total:.0f} s, {len(wanted)} chapters", flush=True)
        while len(rows) < kills:
            run, before = Run(Path(folder) / f"{len(runs):02d}", profile, only, 10 * total + 120), len(rows)
            for at in np.sort(rng.uniform(0, total, min(PER_RUN, kills - len(rows)))):
                found, moment, everything = {}, place(timeline, float(at)), bool(rng.integers(2))
                hit = []
                if run.go(lambda now: reached(moment, order)(now) and not hit.append(now), killer(everything, found)) is not None: break      # this one was faster than the first
                rows.append({"run": len(runs), "stage": hit[0].stage, "seconds": round(hit[0].seconds, 2), "killed": "everything" if everything else "runner", **found, "torn": run.torn()})
                print(f"{len(rows):3d} of {kills}  run {len(runs):2d}  {hit[0].stage:<18}{hit[0].seconds:7.1f} s in  {rows[-1]['killed']:<10}  {found['processes']} processes gone after {found['gone_after_s']:.1f} s"
                      + "".join(f"  TORN: {t}" for t in rows[-1]["torn"]), flush=True)
            run.go(lambda now: False, killer(True, {}))
            if run.code() != first.code(): raise core.CookbookError("the library or a chapter was edited meanwhile", ROOT, "Begin anew, and leave it alone until the end")
            have = run.digests()
            runs.append({"kills": len(rows) - before, "same": have == wanted, "differ": [s for s in wanted if have.get(s) != wanted[s]], "left": run.leftovers()})
            print(f"            run {len(runs) - 1:2d}  ended after {runs[-1]['kills']} kills, {'the same' if runs[-1]['same'] else 'DIFFERENT: ' + ', '.join(runs[-1]['differ'])}", flush=True)
    met = all(r["same"] and not r["left"] for r in runs) and not any(r["torn"] or r["survivors"] for r in rows)
    return {"profile": profile, "seed": seed, "undisturbed": {"seconds": round(total, 1), "began": {s: round(t, 1) for s, t in timeline}, "digests": wanted}, "rows": rows, "runs": runs,
            "target": "every run ends in the same hashes, no half of a chapter is ever seen, no process outlives its runner", "met": met}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--profile", default="smoke")
    parser.add_argument("--only", nargs="+", default=[], metavar="CHAPTER", help="these chapters; all ten otherwise")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "results")
    args = parser.parse_args(argv)
    about = provenance("kills", __doc__.splitlines()[0].partition(":")[0], f"python benchmarks/kills.py --kills {args.kills} --seed {args.seed} --profile {args.profile}"
                       + (f" --only {' '.join(args.only)}" if args.only else ""), core.cores())
    began = time.perf_counter()
    found = experiment(args.kills, args.seed, args.profile, args.only)
    args.out.mkdir(parents=True, exist_ok=True)
    core.write_json(args.out / "kills.json", about | {"seconds": round(time.perf_counter() - began, 1)} | found)
    print(f"{'met' if found['met'] else 'MISSED'}: {found['target']}")
    return 0 if found["met"] else 1


if __name__ == "__main__": sys.exit(main())
