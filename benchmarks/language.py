"""Does a policy still listen when its eyes learn with it? N1, whose vision-language model was trained along, against N1.5, which froze it, in small.

    python benchmarks/language.py [--seeds 3] [--scenes 48] [--steps 600] [--demonstrations 120]

Policies that differ in nothing but how fast the backbone learns (not at all; at a tenth of the head's rates; at all of them) are trained on the same demonstrations of the nominal
table, for the same number of steps. Then each meets unseen tables with two blocks three times: asked as the table was drawn, asked for the other bin, asked for the other block.
A coin decided what was drawn, so the three rates differ by luck alone; whether a policy listens shows in which block it lifts. Each result is written to data/results/language.json as soon as it is there; what is there already is not done again.
"""
from __future__ import annotations

import argparse, sys, tempfile, time
from concurrent.futures import as_completed
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from bench import provenance
from headline import interval, standing

from groot_cookbook import core, evaluation
from groot_cookbook.backbone import Backbone
from groot_cookbook.episodes import Dataset, write_dataset
from groot_cookbook.finetuning import Cache, Recipe, cache_features, finetune
from groot_cookbook.policy import Embodiment, GrootPolicy, build_policy
from groot_cookbook.workspace import Scene, demonstrations, sample_scene, seeds

OUT = Path(core.data_dir()) / "results" / "language.json"
CONDITIONS = {"frozen": 0.0, "a tenth of the rates": 0.1, "all of the rates": 1.0}         # how fast the backbone learns, as a share of the head
ASKED = {"as drawn": lambda scene: scene, "the other bin": evaluation.other_bin, "the other block": evaluation.other_block}


@lru_cache(maxsize=1)
def taught(n: int) -> tuple[GrootPolicy, Cache]:
    "The first policy, and what every condition is trained on: pictures, words and the frozen backbone's features of `n` demonstrations of the nominal table."
    with tempfile.TemporaryDirectory() as folder:
        shown = Dataset(write_dataset(demonstrations(seeds("teleop", n), workers=1), Path(folder) / "teleop"))
        robot = Embodiment.of(shown)
        policy = build_policy(Backbone.from_pretrained("tiny-backbone"), robot)
        return policy, cache_features(policy, shown, robot.tag, precision="auto", pictures=True)


def tables(n: int) -> list[Scene]:
    "The first `n` nominal tables of the evaluation's seeds on which two blocks lie."
    return [scene for scene in map(sample_scene, seeds("evaluation", 4 * n + 20)) if len(scene.blocks) == 2][:n]


def attempt(name: str, recipe: Recipe, demonstrated: int, scenes: int) -> dict:
    "In a process of its own, on one core: train once, and ask three times on every table."
    torch.set_num_threads(1)
    core.no_bars()
    policy, cache = taught(demonstrated)
    began = time.perf_counter()
    trained = finetune(policy, cache, recipe=replace(recipe, tune_backbone=CONDITIONS[name]))
    minutes = (time.perf_counter() - began) / 60
    with tempfile.TemporaryDirectory() as folder:
        trained.policy.save_pretrained(folder)
        found = {asked: evaluation.evaluate(partial(evaluation.PolicyActor, folder), [other(s) for s in tables(scenes)]) for asked, other in ASKED.items()}
    return {"condition": name, "seed": recipe.seed, "minutes": round(minutes, 1), "flow": trained.curve[-1]["flow"],
            "outcomes": {asked: ", ".join(t.outcome for t in trials) for asked, trials in found.items()}}


def summary(rows: list[dict]) -> list[dict]:
    "For each condition how often the block was placed, under each asking and over all, and how many of the blocks that it lifted were the wrong ones (a deaf policy: half); intervals over trainings and tables."
    found = []
    for name in dict.fromkeys(r["condition"] for r in rows):
        own = sorted((r for r in rows if r["condition"] == name), key=lambda r: r["seed"])
        met = lambda asked, *ends: np.stack([np.array([o in ends for o in r["outcomes"][asked].split(", ")], float) for r in own])      # (seeds, tables)
        rates, wrong = {asked: met(asked, "placed") for asked in ASKED}, sum(met(asked, "wrong block") for asked in ASKED)
        lifted = wrong + sum(met(asked, "placed", "dropped", "wrong bin") for asked in ASKED)
        found.append({"condition": name, "seeds": [r["seed"] for r in own], "placed": interval(sum(rates.values()) / len(ASKED)), **{asked: interval(t) for asked, t in rates.items()},
                      "lifted": int(lifted.sum()), "wrong_block": int(wrong.sum()), "trials": int(len(ASKED) * wrong.size), "wrong_block_a_trial": interval(wrong / len(ASKED))})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each condition")
    parser.add_argument("--scenes", type=int, default=48, help="tables to meet, each three times")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--demonstrations", type=int, default=120)
    parser.add_argument("--processes", type=int, default=core.cores())
    parser.add_argument("--only", nargs="+", choices=list(CONDITIONS), default=list(CONDITIONS), metavar="CONDITION", help=f"any of: {', '.join(CONDITIONS)}")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    if args.scenes < 2: parser.error("an interval needs at least two tables")
    recipe = Recipe(steps=args.steps, batch=args.batch, flare=0.0, precision=core.arithmetic())
    setting = {"code": core.code_digest("06_flare_finetune"), "recipe": {k: v for k, v in asdict(recipe).items() if k not in ("seed", "tune_backbone")}, "demonstrations": args.demonstrations, "scenes": args.scenes}
    rows = standing(args.out, setting)
    todo = [(n, s) for s in range(args.seeds) for n in args.only if not any((r["condition"], r["seed"]) == (n, s) for r in rows)]
    command = f"python benchmarks/language.py --seeds {args.seeds} --scenes {args.scenes} --steps {args.steps} --batch {args.batch} --demonstrations {args.demonstrations}"
    about = provenance("language", __doc__.split("\n")[0], command, 1)
    with core.pool(args.processes) as p:
        started = {p.submit(attempt, n, replace(recipe, seed=s), args.demonstrations, args.scenes): (n, s) for n, s in todo}
        for done in as_completed(started):
            rows.append(done.result())
            core.write_json(args.out, about | setting | {"summary": summary(rows), "rows": rows})
            print(*started[done], {asked: f"{o.split(', ').count('placed')} of {args.scenes}" for asked, o in rows[-1]["outcomes"].items()}, flush=True)


if __name__ == "__main__":
    try: main()
    except core.CookbookError as e: sys.exit(str(e))
