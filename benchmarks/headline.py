"""The headline experiment: what do dreams add? One policy per condition and training seed, all judged in the same workspaces.

    groot-cookbook run --profile laptop --out runs/headline -p 00_workspace.new_workspaces=160 --only 00 01 02 03 04 05
                                                        # what the conditions are made of: demonstrations, dreams, labels, verdicts
    python benchmarks/headline.py --run runs/headline --out runs/headline.json [--seeds 3] [--episodes 100] [--only CONDITION ...] [--sweep]

Every policy is fine-tuned for the same number of gradient steps from the same backbone, one per core side by side. Each result is written to
the file as soon as it is there; what is there already is not done again, so the experiment can be interrupted at any time and go on. Results of other code or
other dreams are never added to: those that the book shows lie in data/results/headline.json.
"""
from __future__ import annotations

import argparse, json, shlex, sys, tempfile, time
from collections.abc import Callable
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from bench import commit, hardware

from groot_cookbook import core, evaluation
from groot_cookbook.episodes import Dataset, Episode
from groot_cookbook.filtering import Verdict, auc
from groot_cookbook.finetuning import Cache, Recipe, cache_features, finetune, joined
from groot_cookbook.idm import InverseDynamics, label_dream
from groot_cookbook.measures import Worth
from groot_cookbook.policy import GrootPolicy, robot_of
from groot_cookbook.workspace import demonstrate, sample_scene, seeds

OUT = Path(core.data_dir()) / "results" / "headline.json"
PRICES = {"demonstrations": 100., "dreams": 6.}          # USD an hour of film, as the field gives them (80 to 120, and about 6): a model, nothing here was paid


class Material:
    "A finished run, as far as chapter 05, and the rows that each condition adds to its demonstrations."
    def __init__(self, run: Path):
        self.episodes, labelling, filtering, first = core.require(run, "01_episodes", "03_idm", "04_filtering", "05_policy")
        if json.loads((self.episodes / "source.json").read_text())["kind"] != "workspace":
            raise core.CookbookError("a run on a dataset: nobody can meet its workspaces", run, "Give a run of the workspace")
        self.policy = GrootPolicy.from_pretrained(first / "policy")
        self.tag = robot_of(self.policy.processor)
        self.labelled, self.reader = Dataset(labelling / "labelled"), labelling / "idm"
        self.verdicts = [Verdict.from_json(v) for v in json.loads((filtering / "verdicts.json").read_text())]
        self.worths = [Worth(**w) for w in json.loads((filtering / "worths.json").read_text())]
        self.replayed = [bool(w.replayed) for w in self.worths]            # of each dream: does the simulator place the block by the actions read off it?
        wishes = json.loads((self.episodes / "seeds" / "seeds.json").read_text())
        self.scenes = [sample_scene(w["seed"], w["shift"]) for w in wishes for _ in range(len(self.labelled) // len(wishes))]
        self.made_by, self.demonstrations = json.loads((run / "run.json").read_text())["command"], len(Dataset(self.episodes / "teleop"))
        self.digests = [core.Manifest.read(run, stage).digest for stage in ("04_filtering", "05_policy")]

    def told_apart(self) -> dict[str, dict]:
        "What is true of how many dreams, of how many that the critic kept, and how well its score tells those of which it is true from the others (ROC-AUC)."
        true = {"followed": [bool(w.followed) for w in self.worths], "whole": [w.whole for w in self.worths], "replayed": self.replayed}
        true["all three"] = [all(each) for each in zip(*true.values())]
        return {k: {"dreams": sum(v), "kept": sum(x and y.kept for x, y in zip(v, self.verdicts)), "auc": round(auc(np.array([y.score for y in self.verdicts]), np.array(v)), 4)} for k, v in true.items()}

    @cached_property
    def teleop(self) -> Cache: return cache_features(self.policy, Dataset(self.episodes / "teleop"), self.tag, precision="auto")

    def rows(self, episodes: list[Episode], tag: str) -> Cache | None:
        return cache_features(self.policy, episodes, tag, precision="auto") if episodes else None

    def dreams(self, wanted: Callable[[int], bool]) -> list[Episode]: return [self.labelled[i] for i in range(len(self.labelled)) if wanted(i)]
    def kept(self, i: int) -> bool: return self.verdicts[i].kept
    def true(self) -> list[Episode]: return [demonstrate(s.seed, s.shift) for s in {s.seed: s for s in self.scenes}.values()]      # each workspace once


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
    "The dreams that were kept, and the others as video without actions, which only teach what will be seen (FLARE)."
    silent = [replace(e, actions=e.actions[:, :0]) for e in m.dreams(lambda i: not m.kept(i))]
    return joined([c for c in (filtered(m), m.rows(silent, "dreams")) if c])


def replayed(m: Material) -> Cache | None:
    "The dreams whose actions, as they were read, succeed when the simulator plays them: a critic that is never wrong."
    return m.rows(m.dreams(m.replayed.__getitem__), "dreams")


def real_as_dreams(m: Material) -> Cache | None:
    "The expert's steady hand in the very workspaces that were dreamed, given as dreams are, with no state and in a slot of their own: perfect dreams, perfectly labelled."
    return m.rows(m.true(), "dreams")


def films_read(m: Material) -> Cache | None:
    "True films of those demonstrations, the actions read off them as off dreams: perfect dreams, labelled like any other."
    idm = InverseDynamics.from_pretrained(m.reader)
    return m.rows([label_dream(idm, e, e.state.shape[1])[0] for e in m.true()], "dreams")


def real(m: Material) -> Cache | None:
    "The expert's steady hand in the very workspaces that were dreamed, as demonstrations: the ceiling."
    return m.rows(m.true(), m.tag)


def half(m: Material) -> Cache | None:
    "Every other dream that the critic kept: what does the number of dreams matter?"
    return m.rows(m.dreams(m.kept)[::2], "dreams")


def surest(m: Material) -> Cache | None:
    "Of the dreams that the critic kept, the half that it was surest of: as many as every other one, under a higher threshold."
    kept = sorted((i for i, v in enumerate(m.verdicts) if v.kept), key=lambda i: -m.verdicts[i].score)
    chosen = set(kept[:(len(kept) + 1) // 2])
    return m.rows(m.dreams(chosen.__contains__), "dreams")


@dataclass(frozen=True)
class Condition:
    "What is added to the demonstrations, and what is changed in the recipe."
    rows: Callable[[Material], Cache | None]
    changes: dict = field(default_factory=dict)
    bought: str = "dreams"                                             # what has to be paid for, of PRICES: all dreams, the dropped ones too; "": nothing

    @property
    def words(self) -> str: return self.rows.__doc__ + "".join(f" With {k} = {v}." for k, v in self.changes.items())


CONDITIONS = {"teleop only": Condition(no_more, bought=""), "teleop, augmented": Condition(augmented, bought=""), "unfiltered dreams": Condition(unfiltered), "filtered dreams": Condition(filtered),
              "filtered dreams and video": Condition(with_video), "dreams that replay": Condition(replayed), "real, as dreams": Condition(real_as_dreams, bought="demonstrations"),
              "true films, read": Condition(films_read, bought="demonstrations"), "real demonstrations": Condition(real, bought="demonstrations")}
SWEEP = {"half the dreams": Condition(half), "surest half": Condition(surest), **{f"blend {b:.0%}": Condition(filtered, {"dream_ratio": b}) for b in (.15, .3)},
         **{f"lambda {f}": Condition(filtered, {"flare": f}) for f in (0., .1)}, **{f"FLARE after block {n}": Condition(filtered, {"flare_layer": n}) for n in (2, 4)},
         **{f"FLARE target {t}": Condition(filtered, {"target": t}) for t in ("patches", "action_aware")}}
EVERY = CONDITIONS | SWEEP


@lru_cache(maxsize=1)
def material(run: str) -> Material: return Material(core.run_folder(run))


@lru_cache(maxsize=1)
def added(run: str, name: str) -> Cache | None: return EVERY[name].rows(material(run))


def places(episodes: int) -> dict: # kind of workspace -> scenes, and the temperature of the plans there
    far, near = ([sample_scene(s, shift) for s in seeds("evaluation", episodes)] for shift in (1., 0.))
    return {"held out": (far, 0.), "nominal": (near, 0.), "held out, plans drawn": (far, 1.)}


def attempt(run: str, name: str, recipe: Recipe, episodes: int) -> dict | None:
    "In a process of its own, on one core: fine-tune once and meet every workspace. None where the condition has nothing to add."
    torch.set_num_threads(1)
    core.no_bars()
    m, more, condition = material(run), added(run, name), EVERY[name]
    if more is None and condition.rows is not no_more: return None
    began = time.perf_counter()
    trained = finetune(m.policy, m.teleop, more, replace(recipe, **condition.changes))
    with tempfile.TemporaryDirectory() as folder:
        trained.policy.save_pretrained(folder)
        found = {place: evaluation.evaluate(partial(evaluation.PolicyActor, folder, temperature=temperature), scenes) for place, (scenes, temperature) in places(episodes).items()}
    return {"rows": 0 if more is None else len(more), "minutes": round((time.perf_counter() - began) / 60, 1), "trials": found}


def interval(table: np.ndarray, least: float = 0.) -> dict[str, float]: # (seeds, workspaces), each at least `least` and at most 1
    """The mean and its 95 % interval, for other trainings and other workspaces: the variances of both by analysis of variance, and Student's t with as many degrees of freedom as they
    leave (Satterthwaite), for three trainings are few. Two workspaces more, the worst and the best there can be, keep it from vanishing. Of a single training it knows the workspaces alone."""
    (s, w), mean, by_place = table.shape, table.mean(), table.mean(0)
    places = float(np.append(by_place, [least, 1.]).var(ddof=1)) / w
    parts = [(places, w - 1)]
    if s > 1:
        rest = table - table.mean(1, keepdims=True) - by_place + mean
        parts += [(table.mean(1).var(ddof=1) / s, s - 1), (-(rest ** 2).sum() / ((s - 1) * (w - 1)) / (s * w), (s - 1) * (w - 1))]       # the last is in both others
    variance = max(sum(v for v, _ in parts), *(v for v, _ in parts))
    reach = stats.t.ppf(.975, variance ** 2 / sum(v ** 2 / df for v, df in parts)) * variance ** .5
    return dict(zip(("mean", "low", "high"), (round(float(v), 4) for v in (mean, max(mean - reach, least), min(mean + reach, 1.)))))


def placed(rows: list[dict]) -> dict[tuple[str, str, int], np.ndarray]:
    "Kind of workspace, condition, seed -> 1 for each workspace in which the block was placed."
    return {(r["workspaces"], r["condition"], r["seed"]): np.array([o == "placed" for o in r["outcomes"].split(", ")], float) for r in rows}


def summary(rows: list[dict]) -> list[dict]:
    """Every condition in every kind of workspace, over all its seeds: the rate, and what it gains over teleoperation alone and over other conditions with the same seeds.

    Trainings differ in their batches, noise and flow times, and in the projector; the head they begin from is chapter 05's, one and the same.
    """
    won, found = placed(rows), []
    for place, name in dict.fromkeys((r["workspaces"], r["condition"]) for r in rows):
        own = sorted(s for p, c, s in won if (p, c) == (place, name))
        line = {"condition": name, "workspaces": place, "seeds": own, "rate": interval(np.stack([won[place, name, s] for s in own]))}
        for base in ("teleop only", "unfiltered dreams", "filtered dreams", "real demonstrations"):
            both = [s for s in own if (place, base, s) in won]
            if both and name != base: line.setdefault("over", {})[base] = interval(np.stack([won[place, name, s] - won[place, base, s] for s in both]), -1.)
        if "teleop only" in (over := line.get("over", {})): line["gain"] = over["teleop only"]
        found.append(line)
    return found


def gains(rows: list[dict], others: list[dict]) -> list[dict]:
    "What each condition gains over the same one of another experiment, in the trainings and workspaces that both have."
    ours, theirs, found = placed(rows), placed(others), []
    for place, name in dict.fromkeys((p, c) for p, c, _ in ours):
        both = sorted(s for p, c, s in ours if (p, c) == (place, name) and (p, c, s) in theirs)
        if both: found.append({"condition": name, "workspaces": place, "seeds": both, "gain": interval(np.stack([ours[place, name, s] - theirs[place, name, s] for s in both]), -1.)})
    return found


def price(m: Material, name: str, gain: float) -> dict:
    "What a condition's films cost beyond the demonstrations that all have and beyond the models that make and read dreams, and each point of success that they gain; a model, by PRICES."
    films = {"dreams": len(m.labelled), "demonstrations": len({s.seed for s in m.scenes}), "": 0}[bought := EVERY[name].bought]
    usd = films * m.labelled[0].length / m.labelled.fps / 3600 * PRICES.get(bought, 0.)
    return {"usd": round(usd, 3), "usd_a_point": round(usd / (100 * gain), 4) if gain > 0 else None}


def standing(out: Path, setting: dict) -> list[dict]:
    "The rows that an experiment of this very setting has left; an error where another's stand."
    if not out.is_file(): return []
    known = json.loads(out.read_text())
    if wrong := [k for k, v in setting.items() if known.get(k) != v]:
        raise core.CookbookError(f"another experiment's results stand here (they differ in {', '.join(wrong)})", out, "Move the file away, or name another with --out")
    return known["rows"]


def of_other_dreams(path: Path, setting: dict) -> list[dict]:
    "The rows of an experiment that differs from this one in its dreams alone."
    known = json.loads(path.read_text())
    if wrong := [k for k in ("recipe", "episodes", "workspaces") if known.get(k) != setting[k]]:
        raise core.CookbookError(f"results of another experiment (they differ in {', '.join(wrong)})", path, "Give --steps, --batch, --blend, --precision and --episodes as its command has them")
    return known["rows"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="runs/laptop", help="a finished run of the workspace")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds of each condition")
    parser.add_argument("--episodes", type=int, default=100, help="workspaces of each kind to meet")
    parser.add_argument("--steps", type=int, default=550)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--blend", type=float, default=.5, help="share of the added rows in a batch; half and half, as DreamGen mixes")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default=core.arithmetic(), help="arithmetic of the training; by itself bf16 where the processor multiplies it")
    parser.add_argument("--processes", type=int, default=core.cores())
    parser.add_argument("--only", nargs="+", choices=list(EVERY), default=list(CONDITIONS), metavar="CONDITION", help=f"any of: {', '.join(EVERY)}".replace('%', '%%'))
    parser.add_argument("--sweep", action="store_true", help="dose, blend, and FLARE's weight, layer and target as well")
    parser.add_argument("--beside", type=Path, metavar="FILE", help="results of the same experiment on other dreams: what is gained over them is told too")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    if args.episodes < 2: parser.error("an interval needs at least two workspaces")
    m, recipe = material(args.run), Recipe(steps=args.steps, batch=args.batch, dream_ratio=args.blend, precision=args.precision)
    met = {place: {"shift": scenes[0].shift, "first_seed": scenes[0].seed, "temperature": temperature} for place, (scenes, temperature) in places(args.episodes).items()}
    setting = {"material": m.digests, "code": core.code_digest("06_flare_finetune"), "recipe": {k: v for k, v in asdict(recipe).items() if k != "seed"},
               "episodes": args.episodes, "workspaces": met, "dreams": len(m.labelled), "kept": sum(v.kept for v in m.verdicts)}
    rows, names = standing(args.out, setting), list(dict.fromkeys([*args.only, *(SWEEP if args.sweep else ())]))
    todo = [(n, s) for s in range(args.seeds) for n in names if not any((r["condition"], r["seed"]) == (n, s) for r in rows)]       # an experiment cut short has its conditions side by side
    command = f"python benchmarks/headline.py --run {args.run} --seeds {args.seeds} --episodes {args.episodes} --steps {args.steps} --batch {args.batch} --blend {args.blend} --precision {args.precision}"
    if args.beside: command += f" --beside {shlex.quote(str(args.beside))}"
    others = of_other_dreams(args.beside, setting) if args.beside else []
    replay = {"replayed": sum(m.replayed), "replayed_of_kept": sum(v.kept and r for v, r in zip(m.verdicts, m.replayed))}
    origin = {"material_made_by": m.made_by, "demonstrations": m.demonstrations, "told_apart": m.told_apart(), **replay}

    def keep() -> None:
        shown = list(dict.fromkeys(r["condition"] for r in rows))
        found = [{**s, **(price(m, s["condition"], s["gain"]["mean"] if s["gain"]["low"] > 0 else 0.) if "gain" in s and s["condition"] in CONDITIONS else {})} for s in summary(rows)]
        core.write_json(args.out, {**setting, **origin, "command": f"{command} --only {shlex.join(shown)}", "conditions": {n: EVERY[n].words for n in shown}, "swept": [n for n in shown if n in SWEEP],
                                   "prices": PRICES, "summary": found, **({"beside": args.beside.name, "gains": gains(rows, others)} if args.beside else {}), "rows": rows})

    if rows and not todo: keep()                                       # nothing is left to do; what is told of it may have changed
    with core.pool(args.processes) as pool:
        waiting = {pool.submit(attempt, args.run, n, replace(recipe, seed=s), args.episodes): (n, s) for n, s in todo}
        try:
            for done in as_completed(waiting):
                name, seed = waiting[done]
                if (made := done.result()) is None: print(f"{name}: nothing to add, left out"); continue
                about = {"condition": name, "seed": seed, "rows": made["rows"], "minutes": made["minutes"], "commit": commit(), "hardware": hardware(1), "date": time.strftime("%Y-%m-%d")}
                rows += [{**about, "workspaces": place, "outcomes": ", ".join(t.outcome for t in trials)} for place, trials in made["trials"].items()]
                keep()
                print(f"{name}, seed {seed}: " + ", ".join(f"{place} {sum(t.success for t in x)} of {len(x)}" for place, x in made["trials"].items()) + f" ({made['minutes']} min)", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)                         # what has begun is waited for, what has not is left for another time
            raise


if __name__ == "__main__":
    try: main()
    except core.CookbookError as e: sys.exit(str(e))
