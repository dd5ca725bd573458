"""The headline experiment: what do dreams add? One policy per condition and training seed, all judged in the same workspaces.

    groot-cookbook run --profile laptop --out runs/headline        # what the conditions are made of: demonstrations, dreams, labels, verdicts
    python benchmarks/headline.py --run runs/headline [--seeds 3] [--episodes 100] [--only CONDITION ...]

Every policy is fine-tuned for the same number of gradient steps from the same backbone. Each result is written to data/results/headline.json as soon
as it is there; what is there already is not done again, so the experiment can be interrupted at any time and go on.
"""
from __future__ import annotations

import argparse, json, tempfile, time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from bench import commit, hardware

from groot_cookbook import core, evaluation
from groot_cookbook.episodes import Dataset, Episode
from groot_cookbook.evaluation import Trial
from groot_cookbook.filtering import Verdict
from groot_cookbook.finetuning import Cache, Recipe, cache_features, finetune, joined
from groot_cookbook.policy import GrootPolicy
from groot_cookbook.workspace import demonstrate, sample_scene, seeds, simulate

OUT = Path(core.data_dir()) / "results" / "headline.json"


class Material:
    "A finished run, as far as chapter 05, and the rows that each condition adds to its demonstrations."
    def __init__(self, run: Path):
        self.episodes, labelling, filtering, first = core.require(run, "01_episodes", "03_idm", "04_filtering", "05_policy")
        if json.loads((self.episodes / "source.json").read_text())["kind"] != "workspace":
            raise core.CookbookError("a run on a dataset: nobody can meet its workspaces", run, "Give a run of the workspace")
        self.policy = GrootPolicy.from_pretrained(first / "policy")
        self.tag = next(t for t in self.policy.processor.embodiments if t != "dreams")
        self.labelled = Dataset(labelling / "labelled")
        self.verdicts = [Verdict.from_json(v) for v in json.loads((filtering / "verdicts.json").read_text())]
        wishes = json.loads((self.episodes / "seeds" / "seeds.json").read_text())
        self.scenes = [sample_scene(w["seed"], w["shift"]) for w in wishes for _ in range(len(self.labelled) // len(wishes))]
        self.digests = [core.Manifest.read(run, stage).digest for stage in ("04_filtering", "05_policy")]

    @cached_property
    def teleop(self) -> Cache: return cache_features(self.policy, Dataset(self.episodes / "teleop"), self.tag, precision="bf16")

    def rows(self, episodes: list[Episode], tag: str) -> Cache | None:
        return cache_features(self.policy, episodes, tag, precision="bf16") if episodes else None

    def dreams(self, wanted: Callable[[int], bool]) -> list[Episode]: return [self.labelled[i] for i in range(len(self.labelled)) if wanted(i)]
    def kept(self, i: int) -> bool: return self.verdicts[i].kept
    def true(self) -> list[Episode]: return [demonstrate(s.seed, s.shift) for s in {s.seed: s for s in self.scenes}.values()]      # each workspace once
    def replays(self, i: int) -> bool: return simulate(self.scenes[i], self.labelled[i].actions[:-1]).success


def no_more(m: Material) -> Cache | None:
    "Demonstrations of the nominal workspace, nothing else."


def augmented(m: Material) -> Cache | None:
    "The demonstrations again, their pictures brighter or darker, tinted, and a few pixels aside."
    def vary(e: Episode, seed: int) -> Episode:
        rng = np.random.default_rng([seed, 3])
        light, aside = rng.uniform(.7, 1.2) * rng.uniform(.85, 1.15, 3), rng.integers(-2, 3, 2)
        return replace(e, frames=np.roll((e.frames * light).clip(0, 255).astype(np.uint8), aside, (1, 2)))
    teleop = Dataset(m.episodes / "teleop")
    return m.rows([vary(teleop[i], i) for i in range(len(teleop))], m.tag)


def unfiltered(m: Material) -> Cache | None:
    "All dreams, labelled by the inverse dynamics model."
    return m.rows(m.dreams(lambda i: True), "dreams")


def filtered(m: Material) -> Cache | None:
    "The dreams that the critic kept."
    return m.rows(m.dreams(m.kept), "dreams")


def with_video(m: Material) -> Cache | None:
    "The dreams that were kept, and the others as video without actions, which only teach what will be seen (FLARE). Both share the 30 % of dream rows."
    silent = [replace(e, actions=e.actions[:, :0]) for e in m.dreams(lambda i: not m.kept(i))]
    return joined([c for c in (filtered(m), m.rows(silent, "dreams")) if c])


def replayed(m: Material) -> Cache | None:
    "The dreams whose actions, as they were read, succeed when the simulator plays them: a critic that is never wrong."
    return m.rows(m.dreams(m.replays), "dreams")


def real_as_dreams(m: Material) -> Cache | None:
    "The expert's steady hand in the very workspaces that were dreamed, given as dreams are, with no state and in a slot of their own: perfect dreams, perfectly labelled."
    return m.rows(m.true(), "dreams")


def real(m: Material) -> Cache | None:
    "The expert's steady hand in the very workspaces that were dreamed, as demonstrations: the ceiling."
    return m.rows(m.true(), m.tag)


CONDITIONS: dict[str, Callable[[Material], Cache | None]] = {
    "teleop only": no_more, "teleop, augmented": augmented, "unfiltered dreams": unfiltered, "filtered dreams": filtered, "filtered dreams and video": with_video,
    "dreams that replay": replayed, "real, as dreams": real_as_dreams, "real demonstrations": real}


def attempt(m: Material, extra: Cache | None, recipe: Recipe, workspaces: dict, processes: int) -> dict[str, list[Trial]]:
    "Fine-tune once and meet every workspace."
    trained = finetune(m.policy, m.teleop, extra, recipe)
    with tempfile.TemporaryDirectory() as folder:
        trained.policy.save_pretrained(folder)
        return {place: evaluation.evaluate(partial(evaluation.PolicyActor, folder), scenes, processes=processes) for place, scenes in workspaces.items()}


def summary(rows: list[dict], draws: int = 4000) -> list[dict]:
    """Every condition in every kind of workspace, over all its seeds: the rate, and what it gains over teleoperation alone with the same seeds.

    Intervals of 95 % draw both anew, training seeds and workspaces: neither another training nor another table should overturn what is said.
    """
    placed = {(r["workspaces"], r["condition"], r["seed"]): np.array([t[-1] == "placed" for t in r["trials"]], float) for r in rows}
    met = {(r["workspaces"], r["condition"], r["seed"]): [t[:-1] for t in r["trials"]] for r in rows}

    def interval(table: np.ndarray) -> dict[str, float]:               # (seeds, workspaces)
        rng, (s, w) = np.random.default_rng(0), table.shape
        again = [table[rng.integers(0, s, s)][:, rng.integers(0, w, w)].mean() for _ in range(draws)]
        return dict(zip(("mean", "low", "high"), (round(float(v), 4) for v in (table.mean(), *np.quantile(again, [.025, .975])))))

    found = []
    for place, name in dict.fromkeys((r["workspaces"], r["condition"]) for r in rows):
        own = sorted(s for p, c, s in placed if (p, c) == (place, name))
        both = [s for s in own if (place, "teleop only", s) in placed]
        if any(met[place, name, s] != met[place, "teleop only", s] for s in both): raise core.CookbookError("conditions met different workspaces", OUT)
        line = {"condition": name, "workspaces": place, "seeds": own, "rate": interval(np.stack([placed[place, name, s] for s in own]))}
        if both and name != "teleop only": line["gain"] = interval(np.stack([placed[place, name, s] - placed[place, "teleop only", s] for s in both]))
        found.append(line)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="runs/laptop", help="a finished run of the workspace")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds of each condition")
    parser.add_argument("--episodes", type=int, default=100, help="workspaces of each kind to meet")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--processes", type=int, default=core.cores())
    parser.add_argument("--only", nargs="+", choices=list(CONDITIONS), default=list(CONDITIONS))
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    m, recipe = Material(core.run_folder(args.run)), Recipe(steps=args.steps, batch=args.batch, precision="bf16")
    workspaces = {"held out": [sample_scene(s, 1.) for s in seeds("evaluation", args.episodes)], "nominal": [sample_scene(s) for s in seeds("evaluation", args.episodes)]}
    setting = {"material": m.digests, "code": core.code_digest("06_flare_finetune"), "recipe": {k: v for k, v in asdict(recipe).items() if k != "seed"},
               "episodes": args.episodes, "dreams": len(m.labelled), "kept": sum(v.kept for v in m.verdicts)}
    known = json.loads(args.out.read_text()) if args.out.is_file() else {**setting, "rows": []}
    if wrong := [k for k, v in setting.items() if known.get(k) != v]:
        raise core.CookbookError(f"another experiment's results stand here (they differ in {', '.join(wrong)})", args.out, "Move the file away, or name another with --out")
    rows = known["rows"]
    for name in args.only:
        todo = [s for s in range(args.seeds) if not any((r["condition"], r["seed"]) == (name, s) for r in rows)]
        extra = CONDITIONS[name](m) if todo else None
        if todo and extra is None and name != "teleop only": print(f"{name}: nothing to add, left out")
        for seed in todo if extra is not None or name == "teleop only" else []:
            began, threads = time.perf_counter(), torch.get_num_threads()
            found = attempt(m, extra, replace(recipe, seed=seed), workspaces, args.processes)
            torch.set_num_threads(threads)                             # an evaluation in this process takes them down to one
            about = {"condition": name, "seed": seed, "rows": 0 if extra is None else len(extra), "minutes": round((time.perf_counter() - began) / 60, 1),
                     "commit": commit(), "hardware": hardware(threads), "date": time.strftime("%Y-%m-%d")}
            rows += [{**about, "workspaces": place, "trials": [(t.seed, t.shift, t.instruction, t.outcome) for t in trials]} for place, trials in found.items()]
            command = f"python benchmarks/headline.py --run {args.run} --seeds {args.seeds} --episodes {args.episodes} --steps {args.steps} --batch {args.batch}"
            core.write_json(args.out, {**setting, "command": command, "conditions": {k: f.__doc__ for k, f in CONDITIONS.items()}, "summary": summary(rows), "rows": rows})
            print(f"{name}, seed {seed}: " + ", ".join(f"{place} {sum(t.success for t in x)} of {len(x)}" for place, x in found.items()), flush=True)


if __name__ == "__main__": main()
