"""Measure speed and memory on this machine: `make bench`, or python benchmarks/bench.py [--only NAME ...] [--out FOLDER] [--threads N]

Each benchmark writes FOLDER/NAME.json with raw samples, the command, commit, hardware, date and the target it is held to. A target missed
is reported, not an error: a machine may be busy. What cannot run (a checkpoint that is not there) says so and makes the exit status 1.
"""
from __future__ import annotations

import argparse, dataclasses, datetime, itertools, os, platform, re, resource, shlex, shutil, subprocess, sys, time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch

from groot_cookbook import core
from groot_cookbook.benchmark import latency, measure

ROOT = Path(__file__).resolve().parent.parent


# --- what is measured: each gives rows, and the target in words with whether it was met -------------------------

def camera_frame() -> dict:
    "One frame of the workspace's ray-cast camera, with shadow, while the expert works: every frame another pose."
    from groot_cookbook.camera import Camera
    from groot_cookbook.workspace import Tabletop, expert as plan, sample_scene, seeds, simulate
    scene, rows = sample_scene(seeds("evaluation", 1)[0]), []
    poses = simulate(scene, plan(scene)).qpos
    for size in (64, 96, 128):
        world, turn = Tabletop(Camera(size=size)).arrange(scene), itertools.cycle(poses)
        rows.append(measure(lambda: world.pose(next(turn)).look(), "ray-cast", f"{size}x{size}", n=100).summary())
    return verdict(rows, "a 96x96 frame in at most 3 ms", rows[1]["p50"] <= 3)


def episode() -> dict:
    "A demonstration planned, simulated and drawn."
    from groot_cookbook.workspace import demonstrate, seeds
    which = iter(seeds("evaluation", 13))
    rows = [measure(lambda: demonstrate(next(which)), "MuJoCo", "57 frames", n=10).summary()]
    return verdict(rows, "an episode in at most 250 ms", rows[0]["p50"] <= 250)


def expert() -> dict:
    "The scripted expert in 200 randomised workspaces, nominal to fully shifted, steady to unsteady hand."
    import numpy as np

    from groot_cookbook.workspace import expert as plan, sample_scene, seeds, simulate
    rng, placed, times = np.random.default_rng(0), 0, []
    for s in seeds("evaluation", 200, 50_000):
        began, scene = time.perf_counter(), sample_scene(s, float(rng.uniform()))
        placed += simulate(scene, plan(scene, float(rng.choice([0., .5])))).success
        times.append((time.perf_counter() - began) * 1e3)
    row = {"backend": "MuJoCo", "scope": "200 episodes", "p50": float(np.median(times)), "p99": float(np.quantile(times, .99)), "placed": int(placed)}
    return verdict([row], "at least 98 % placed", placed >= 196)


def dream() -> dict:
    "One dream of 57 frames from a seed image, with the tiny Cosmos checkpoints, as chapter 02 dreams."
    from groot_cookbook import dreaming
    from groot_cookbook.workspace import Workspace, seeds
    env = Workspace()
    seen, info = env.reset(seed=seeds("dream", 1)[0])
    pipe = dreaming.load_dreamer("tiny-cosmos")
    rows = [measure(lambda: dreaming.dream(pipe, seen["image"], info["instruction"], 0), "torch eager", "57 frames", n=3, warmup=1).summary()]
    return verdict(rows, "a dream in at most 4 s", rows[0]["p50"] <= 4000)


def drawn_anew(statistic: Callable, groups, n: int = 1000, seed: int = 0) -> dict:      # statistic of some rows, which group each row is of
    "What a statistic is, and the 95 % interval that it has when whole groups are drawn anew with replacement: what comes from one workspace is no independent evidence."
    import numpy as np
    rng, members = np.random.default_rng(seed), [np.flatnonzero(groups == g) for g in np.unique(groups)]
    found = [statistic(np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])) for _ in range(n)]
    low, high = np.nanquantile(found, [.025, .975])
    return {"is": round(float(statistic(np.arange(len(groups)))), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def critic_exam(odds, clips: dict, calibration: dict) -> dict:
    "What stands behind one number: of each kind how well the score tells it from true films and how much of it is let through, how often Yes was true when it was said with so much certainty, and what every threshold keeps. Intervals over workspaces."
    import numpy as np

    from groot_cookbook.critic_data import KNOWN, UNSEEN
    from groot_cookbook.filtering import THRESHOLD, auc, combine, probability, reliability, tradeoff
    kinds, truth = clips["kind"], clips["answers"][:, :5]
    raw = probability(odds[:, :5])
    said = np.stack([probability(odds[:, i], *calibration[q]) for i, q in enumerate(KNOWN)], 1)
    scores, good, workspace = np.array([combine(dict(zip(KNOWN, p))) for p in said]), (truth == 1).all(1), np.cumsum(kinds == "true")      # the true film is the first of its workspace
    bad = ~good & (kinds != "true")

    def told_from_true(some) -> dict:
        rows = np.flatnonzero(good | some)
        return {"clips": int(some.sum()), **{f"auc{'' if k == 'is' else '_' + k}": v for k, v in drawn_anew(lambda i: auc(scores[rows[i]], good[rows[i]]), workspace[rows]).items()},
                "let_through": int((scores[some] >= THRESHOLD).sum())}

    curves = {}
    for name, p in (("raw", raw), ("calibrated", said)):
        bins = reliability(p[truth >= 0], truth[truth >= 0] == 1, 10)
        curves[name] = {k: [round(float(x), 4) for x in v] for k, v in zip(("said", "true", "answers"), bins)}
    lines = np.linspace(0, 1, 41)
    return {"clips": len(kinds), "good": int(good.sum()), "workspaces": int(workspace.max()),
            "unseen": told_from_true(bad & np.isin(kinds, UNSEEN)), "seen": told_from_true(bad & ~np.isin(kinds, UNSEEN)),
            "kinds": {str(k): told_from_true(bad & (kinds == k)) for k in sorted(set(kinds[bad]))}, "reliability": curves,
            "tradeoff": {"threshold": lines.round(3).tolist(), **{k: v.round(4).tolist() for k, v in tradeoff(scores, good, lines).items()}}}


def critic_score() -> dict:
    "One score from five answers: the smallest, or a geometric mean of physics and instruction. Chosen on forgeries of 30 workspaces, of kinds that training shows; then, on 40 others, kinds that it never shows; the smallest's examination on these in full. Only with --only."
    import tempfile

    from groot_cookbook import filtering
    from groot_cookbook.critic_data import SEEN, UNSEEN, Stage, clips_of, make_shards, read_shards
    from groot_cookbook.dreaming import weights_sha
    from groot_cookbook.tiny_reason import examine, marks
    critic, stage, rows = filtering.load_critic("tiny-reason"), Stage(), []
    ways = {"smallest": filtering.combine, "geometric mean": lambda p: (filtering.physics(p) * p["instruction"]) ** .5}
    for scope, told, kinds, first, n in (("kinds shown in training", "seen_auc", SEEN, 620_000, 30), ("kinds never shown", "unseen_auc", SEEN + UNSEEN, 610_000, 40)):
        with tempfile.TemporaryDirectory() as folder:
            make_shards(folder, lambda s: clips_of(s, stage, kinds=kinds, forgeries=99, every=True), first, n, 10)
            clips = read_shards(folder)
        began = time.perf_counter()
        odds = examine(critic.model, critic.processor, clips)
        ms = (time.perf_counter() - began) * 1e3 / len(odds)
        for name, way in ways.items():
            found = marks(odds, clips["answers"], clips["kind"], critic.calibration, score=way)
            rows.append({"backend": name, "scope": scope, "clips": found["clips"], "good": found["good"], "auc": found[told], "p50": ms, "p99": ms})
    met = rows[2]["auc"] >= .9
    return verdict(rows, "the smallest answer tells kinds never shown from true films with an AUC of at least 0.9", met) | {"exam": critic_exam(odds, clips, critic.calibration), "weights": {"tiny-reason": weights_sha(core.checkpoint("tiny-reason"))}}


def critic_witnesses(dreams: int = 160) -> dict:
    "What physics, instruction and consistency each add to the critic's score: dreams of moved tables, those of headline.json, judged, and what the simulator says of them; a good one follows its sentence, stays whole and replays. Only with --only."
    import numpy as np

    from groot_cookbook import dreaming, filtering
    from groot_cookbook.idm import InverseDynamics, label
    from groot_cookbook.measures import worth
    from groot_cookbook.workspace import HZ, Tabletop, sample_scene, seeds
    names = ("tiny-cosmos", "tiny-idm", "tiny-reason")
    dreamer, critic = dreaming.load_dreamer(names[0]), filtering.load_critic(names[2])
    idm, verdicts, told = InverseDynamics.from_pretrained(core.checkpoint(names[1])), [], []
    for i, s in enumerate(sample_scene(s, 1.) for s in seeds("dream", dreams)):
        made = dreaming.dream(dreamer, Tabletop().arrange(s).look().rgb, s.instruction, i)
        labels = label(idm, made.video, HZ)
        verdicts.append(v := filtering.judge(critic, made, labels, index=i))
        w = worth(made.video, s, labels.actions)
        told.append({"seed": s.seed, **{q: round(p, 4) for q, p in v.probabilities.items()}, "consistency": round(v.consistency, 4), "kept": v.kept,
                     "followed": w.followed, "whole": w.whole, "replayed": w.replayed})
    true = {"good": np.array([t["followed"] and t["whole"] and t["replayed"] for t in told]), "replayed": np.array([t["replayed"] for t in told])}
    rows = [{"backend": way, "scope": what, "true": int(of.sum()), "dreams": dreams, **row} for what, of in true.items() for way, row in witnesses(verdicts, of).items()]
    met = all(r["adds"]["low"] > 0 for r in rows if r["scope"] == "good" and "adds" in r)
    return verdict(rows, "each of the three adds to the AUC of all, by more than the luck of the draw", met) | {"dreams": told, "weights": {n: dreaming.weights_sha(core.checkpoint(n)) for n in names}}


def witnesses(verdicts: list, good) -> dict[str, dict]:
    "The ablation of chapter 04 with intervals over dreams, and by how much each witness, left out, lowers the AUC of all three."
    import numpy as np

    from groot_cookbook.filtering import THRESHOLD, WAYS, ablation, auc, heard
    each, scores, rows = np.arange(len(verdicts)), {way: np.array([heard(v, who) for v in verdicts]) for way, who in WAYS.items()}, ablation(verdicts, good)
    for way, row in rows.items():
        mine, everyone = scores[way], scores["all three"]
        spread = drawn_anew(lambda i: auc(mine[i], good[i]), each)
        row |= {k: round(v, 4) for k, v in row.items()} | {"auc_low": spread["low"], "auc_high": spread["high"], "kept": int((mine >= THRESHOLD).sum()), "good_of_those_kept": int((good & (mine >= THRESHOLD)).sum())}
        if way.startswith("without"): row["adds"] = drawn_anew(lambda i: auc(everyone[i], good[i]) - auc(mine[i], good[i]), each)
    return rows


def dream_worth() -> dict:
    "Forty dreams of each kind of wish: followed, permanent, replayed (notebook 02a), and what the critic would have kept of them. Only with --only."
    import numpy as np

    from groot_cookbook import dreaming, filtering
    from groot_cookbook.idm import InverseDynamics, label
    from groot_cookbook.measures import examination, mean_worth, worth
    from groot_cookbook.workspace import HZ, Tabletop, expert as plan, render, simulate
    names = ("tiny-cosmos", "tiny-idm", "tiny-reason")
    dreamer, critic = dreaming.load_dreamer(names[0]), filtering.load_critic(names[2])
    idm, rows = InverseDynamics.from_pretrained(core.checkpoint(names[1])), []
    for kind, scenes in examination(40).items():
        worths, verdicts, times = [], [], []
        for s in scenes:
            seed_image, began = Tabletop().arrange(s).look().rgb, time.perf_counter()
            made = dreaming.dream(dreamer, seed_image, s.instruction, s.seed)
            times.append((time.perf_counter() - began) * 1e3)
            labels = label(idm, made.video, HZ)
            worths.append(worth(made.video, s, labels.actions, render(simulate(s, plan(s)))))
            verdicts.append(filtering.judge(critic, made, labels))
        kept = [w for w, v in zip(worths, verdicts) if v.kept]
        rows.append({"backend": names[0], "scope": kind, "p50": float(np.median(times)), "p99": float(np.quantile(times, .99)), "dreams": len(scenes), "all": mean_worth(worths),
                     "kept": len(kept), "of_those_kept": mean_worth(kept), "of_those_dropped": mean_worth([w for w, v in zip(worths, verdicts) if not v.kept])})
    far = next(r for r in rows if r["scope"] == "environment")
    met = far["kept"] >= 10 and far["of_those_kept"]["replayed"] >= .7
    return verdict(rows, "of moved tables at least 10 of 40 dreams kept, and 70 % of those succeed when replayed", met) | {
        "weights": {n: dreaming.weights_sha(core.checkpoint(n)) for n in names}}


def dream_cost() -> dict:
    "What quality costs: the same two dozen wishes on moved tables, from the same noise, at 2 to 10 sampling steps, unguided and guided; processor seconds, which a busy machine leaves as they are, beside what the dreams are worth (notebook 02a). Only with --only."
    import numpy as np

    from groot_cookbook import dreaming
    from groot_cookbook.idm import InverseDynamics, label
    from groot_cookbook.measures import examination, mean_worth, worth
    from groot_cookbook.workspace import HZ, Tabletop, expert as plan, render, simulate
    names = ("tiny-cosmos", "tiny-idm")
    dreamer, idm = dreaming.load_dreamer(names[0]), InverseDynamics.from_pretrained(core.checkpoint(names[1]))
    settings = list(itertools.product((2, 4, 6, 10), (0., 3.)))
    worths, times, waits = ({s: [] for s in settings} for _ in range(3))
    for scene in examination(24)["environment"]:
        seed_image, true = Tabletop().arrange(scene).look().rgb, render(simulate(scene, plan(scene)))
        for steps, guidance in settings:                    # side by side: a busy moment of the machine meets all of them
            began = time.process_time(), time.perf_counter()
            made = dreaming.dream(dreamer, seed_image, scene.instruction, scene.seed, steps, guidance)
            for kept, clock, then in zip((times, waits), (time.process_time, time.perf_counter), began): kept[steps, guidance].append((clock() - then) * 1e3)
            worths[steps, guidance].append(worth(made.video, scene, label(idm, made.video, HZ).actions, true))
    rows = [{"backend": names[0], "scope": f"{steps} steps, guidance {guidance:g}", "steps": steps, "guidance": guidance, "dreams": len(worths[steps, guidance]), "p50": float(np.median(times[steps, guidance])),
             "p99": float(np.quantile(times[steps, guidance], .99)), "waited_p50": float(np.median(waits[steps, guidance])), "whole": round(float(np.mean([w.whole for w in worths[steps, guidance]])), 3), **mean_worth(worths[steps, guidance])} for steps, guidance in settings]
    book = next(r for r in rows if (r["steps"], r["guidance"]) == (6, 0.))
    return verdict(rows, "a dream as chapter 02 makes it, 6 steps unguided, in at most 4 s of one core", book["p50"] <= 4000) | {"weights": {n: dreaming.weights_sha(core.checkpoint(n)) for n in names}}


def further_fitting() -> dict:
    "Actions read off eighty dreams of moved tables by the tiny inverse dynamics model as it is, and fitted further to two dozen demonstrations of the nominal table: how often they place the block. Only with --only."
    import numpy as np

    from groot_cookbook import dreaming
    from groot_cookbook.idm import InverseDynamics, fit_idm, label, measure
    from groot_cookbook.measures import examination
    from groot_cookbook.workspace import HZ, Tabletop, demonstrate, seeds, simulate
    dreamer, shipped = dreaming.load_dreamer("tiny-cosmos"), InverseDynamics.from_pretrained(core.checkpoint("tiny-idm"))
    scenes, shown = examination(80)["environment"], [demonstrate(s) for s in seeds("teleop", 24)]
    films, unseen = [dreaming.dream(dreamer, Tabletop().arrange(s).look().rgb, s.instruction, s.seed).video for s in scenes], [demonstrate(s) for s in seeds("heldout", 8)]
    rows, placed = [], {}
    for steps in (0, 50, 200, 800):
        idm = fit_idm(shown, steps=steps, lr=2e-4, start=shipped)
        placed[steps] = np.array([simulate(s, label(idm, f, HZ).actions).success for s, f in zip(scenes, films)])
        rows.append({"backend": "tiny-idm", "scope": f"{steps} steps further", "steps": steps, "dreams": len(films), "replayed": int(placed[steps].sum()),
                     "lost": int((placed[0] & ~placed[steps]).sum()), "won": int((placed[steps] & ~placed[0]).sum()), "worst_r2_of_its_own_table": round(measure(idm, unseen).worst_r2, 4)})
    return verdict(rows, "as it is, at least as many replay as after any further fitting", placed[0].sum() >= max(p.sum() for p in placed.values()))


def idm_lighting(clips: int = 60) -> dict:
    "The workspaces of the inverse dynamics model's examination, each four times: nominal, with nothing but the light moved (lamp, ambient, tint), with nothing but table and bins, and with all of it, as far as they go. Only with --only."
    from groot_cookbook.dreaming import weights_sha
    from groot_cookbook.idm import InverseDynamics, label, measure
    from groot_cookbook.workspace import HZ, episode, expert as plan, sample_scene, seeds, simulate
    idm, rows = InverseDynamics.from_pretrained(core.checkpoint("tiny-idm")), []
    near, far = ([sample_scene(s, shift) for s in seeds("heldout", clips, 500_000)] for shift in (0., 1.))
    lit = lambda scenes, lamps: [dataclasses.replace(s, light=l.light, ambient=l.ambient, tint=l.tint) for s, l in zip(scenes, lamps)]
    for name, scenes in (("nominal", near), ("light moved", lit(near, far)), ("table and bins moved", lit(far, near)), ("all moved", far)):
        films = [episode(simulate(s, plan(s, .3))) for s in scenes]
        reading, again = measure(idm, films), [simulate(s, label(idm, e.frames, HZ).actions).success for s, e in zip(scenes, films)]
        rows.append({"backend": "tiny-idm", "scope": name, "clips": clips, "placed_by_the_expert": sum(e.provenance["success"] for e in films),
                     "replayed": sum(again), "worst_r2": round(reading.worst_r2, 5), "confidence": round(float(reading.confidence.mean()), 4), **reading.as_dict()})
    return verdict(rows, "with nothing but the light moved the worst joint is read with an R2 of at least 0.95", rows[1]["worst_r2"] >= .95) | {"weights": {"tiny-idm": weights_sha(core.checkpoint("tiny-idm"))}}


def idm_gr1(steps: int = 800) -> dict:
    "An inverse dynamics model of somebody else's robot: fitted from nothing to four episodes of the GR-1 sample at its camera's 20 Hz, one step and 16 frames apart, and measured on the fifth, part by part, beside two guesses that look at nothing: the mean of what was shown, and holding still where the episode began. One step also with each other episode held out. GROOT_COOKBOOK_GR1 names the sample. Only with --only."
    import numpy as np

    from groot_cookbook.episodes import Dataset
    from groot_cookbook.idm import by_key, compare, configure, fit_idm, measure, shrunk
    path = Path(os.environ.get("GROOT_COOKBOOK_GR1") or "not told")
    if not path.is_dir(): raise core.CookbookError("the GR-1 sample is not here", path, "Name a copy of demo_data/robot_sim.PickNPlace of NVIDIA/GR00T-Dreams in GROOT_COOKBOOK_GR1")
    dataset, rows = Dataset(path), []
    clips = [shrunk(dataset[i], 64) for i in range(len(dataset))]
    forms: dict[str, dict] = {"one step, regression": {}, "16 frames apart, regression": {"gap": 16}, "16 frames apart, flow matching": {"gap": 16, "head": "flow"}}
    for held in reversed(range(len(clips))):
        shown, unseen = [e for i, e in enumerate(clips) if i != held], clips[held]
        config, done = configure(shown, dataset.modality), unseen.actions[:-1]

        def add(name: str, keys: dict, dimensions: list, **more) -> None:
            told = [{k: round(v, 5) if isinstance(v, float) else v for k, v in dataclasses.asdict(d).items() if v is not None} for d in dimensions if d.kind != "still"] if held == len(clips) - 1 else []
            rows.append({"backend": name, "scope": f"episode {held} held out", "steps_read": len(done), "keys": {k: v for k, v in keys.items() if any(d.kind != "still" for d in dimensions[slice(*config.keys[k])])}, **({"dimensions": told} if told else {}), **more})

        for name, settings in forms.items():
            if settings and held < len(clips) - 1: continue
            reading = measure(fit_idm(shown, dataclasses.replace(config, **settings), steps=steps), [unseen])
            add(name, reading.keys, reading.dimensions, foresight=round(reading.foresight, 4), lag=reading.lag, confidence=round(float(reading.confidence.mean()), 4))
        for name, guess in (("the mean of what was shown", np.concatenate([e.actions[:-1] for e in shown]).mean(0)), ("holding still", unseen.actions[0])):
            dimensions = compare(config, np.broadcast_to(guess, done.shape), done)
            add(name, by_key(config, dimensions), dimensions)
    read, *guessed = ({k: v["mae"] for k, v in r["keys"].items()} for r in (rows[0], *rows[len(forms):len(forms) + 2]))
    met = all(read[k] < min(g[k] for g in guessed) for k in read)
    return verdict(rows, "one step apart, every part that moves is read with a smaller error than by either guess", met) | {
        "dataset": "demo_data/robot_sim.PickNPlace of NVIDIA/GR00T-Dreams, commit ec3881d", "episodes": [e.length for e in clips], "fps": clips[0].fps, "steps": steps}


def idm_frames() -> dict:
    "Labelling a film with the tiny inverse dynamics model."
    from groot_cookbook.idm import InverseDynamics, label
    from groot_cookbook.workspace import HZ, demonstrate, seeds
    idm = InverseDynamics.from_pretrained(core.checkpoint("tiny-idm")).eval()
    frames = demonstrate(seeds("evaluation", 1)[0]).frames
    rows = [measure(lambda: label(idm, frames, float(HZ)), "torch eager", f"{len(frames)} frames", n=10).summary()]
    rows[0]["frames_per_s"] = len(frames) / rows[0]["p50"] * 1e3
    return verdict(rows, "at least 200 frames a second", rows[0]["frames_per_s"] >= 200)


def policy_latency() -> dict:
    "The tiny policy, torch eager against nothing computed twice (notebook 09a), compiled too, and against ONNX Runtime, batch 1; beside them how fast this machine copies and multiplies. Its weights are random: they do not change how long it takes."
    import tempfile

    from gpu_policy import wall

    from groot_cookbook.backbone import tiny_backbone
    from groot_cookbook.episodes import Dataset, write_dataset
    from groot_cookbook.export import answers, export_policy, observations, open_session
    from groot_cookbook.inference import Chunk, Cost
    from groot_cookbook.policy import Embodiment, build_policy
    from groot_cookbook.workspace import Workspace, demonstrate, seeds
    with tempfile.TemporaryDirectory() as folder:
        dataset = Dataset(write_dataset([demonstrate(s) for s in seeds("teleop", 2)], Path(folder) / "teleop"))
        robot = Embodiment.of(dataset)
        policy = build_policy(tiny_backbone(), robot)
        x = observations(policy, dataset, robot.tag, 1)[0]
        graph = export_policy(policy, x, robot.slot)["policy"]
    session, env = open_session(graph, torch.get_num_threads()), Workspace()
    takes, order = [i.name for i in session.get_inputs()], ("pixel_values", "input_ids", "attention_mask", "state", "noise")
    once, compiled = (Chunk(policy, robot.slot) for _ in range(2))
    with torch.no_grad(), Cost(once) as asked: once(*(torch.from_numpy(x[k]) for k in order))
    floors = wall(asked, torch.device("cpu"), torch.float32, 1024)     # at the rate of main memory; a cache that holds the tiny policy is faster
    for stage in compiled.stages: stage.compile(dynamic=False)
    engines = {"torch eager": lambda x: answers(policy, x, robot.slot)["actions"],
               "nothing twice": lambda x: once(*(torch.from_numpy(x[k]) for k in order)).numpy(),
               "nothing twice, compiled": lambda x: compiled(*(torch.from_numpy(x[k]) for k in order)).numpy(),
               "ONNX Runtime": lambda x: session.run(None, {k: x[k] for k in takes})[0]}
    _, info = env.reset(seed=seeds("evaluation", 1)[0])
    found = latency(policy, engines, lambda: tuple(env.observe().values()), info["instruction"], robot.tag, x["input_ids"].shape[1], n=50)
    rows = [t.summary() for t in found]
    pipeline = {r["backend"]: r["p50"] for r in rows if r["scope"] == "pipeline"}
    return verdict(rows, "ONNX Runtime at least 1.5x torch eager, pipeline", pipeline["torch eager"] >= 1.5 * pipeline["ONNX Runtime"]) | {"floors": floors}


@contextmanager
def beginners(n: int):
    "The first `n` demonstrations, on disk; the tag of their robot; its policy, untrained."
    import tempfile

    from groot_cookbook.backbone import Backbone
    from groot_cookbook.episodes import Dataset, write_dataset
    from groot_cookbook.policy import Embodiment, build_policy
    from groot_cookbook.workspace import demonstrate, seeds
    with tempfile.TemporaryDirectory() as folder:
        shown = Dataset(write_dataset([demonstrate(s) for s in seeds("teleop", n)], Path(folder) / "teleop"))
        robot = Embodiment.of(shown)
        yield shown, robot.tag, build_policy(Backbone.from_pretrained(core.checkpoint("tiny-backbone")), robot)


def timed_steps(policy, data, recipe) -> tuple:
    "Milliseconds of each step of a training but the last, and its curve."
    import numpy as np

    from groot_cookbook.finetuning import finetune
    finetune(policy, data, None, dataclasses.replace(recipe, steps=3))                           # warm
    asked, rows_of = [], data.rows
    data.rows = lambda index: asked.append(time.perf_counter()) or rows_of(index)                # from one batch to the next is a step
    try: curve = finetune(policy, data, None, recipe).curve
    finally: data.rows = rows_of
    return np.diff(asked) * 1e3, curve


def training_step() -> dict:
    "A step of 64 rows of the tiny policy as chapter 06 trains it, in both arithmetics, with PyTorch's Muon, which makes its matrices orthogonal in bfloat16, and with ours, which does it in what the processor multiplies."
    import numpy as np

    from groot_cookbook import optimizer
    from groot_cookbook.finetuning import Recipe, cache_features
    with beginners(6) as (shown, tag, policy): data = cache_features(policy, shown, tag)
    ours, found = optimizer.Muon, {}
    try:
        for _ in range(3):                                             # in turn, so that what else the machine does falls on all
            for precision in ("bf16", "fp32"):
                for name, kind in (("PyTorch's Muon", torch.optim.Muon), ("ours", ours)):
                    optimizer.Muon = kind
                    found.setdefault((precision, name), []).append(timed_steps(policy, data, Recipe(steps=12, precision=precision))[0])
    finally: optimizer.Muon = ours
    ms = {k: np.concatenate(v) for k, v in found.items()}
    rows = [{"backend": name, "scope": precision, "p50": float(np.median(v)), "p99": float(np.quantile(v, .99)), "samples_ms": v.round(2).tolist()} for (precision, name), v in ms.items()]
    auto = ms[core.arithmetic(), "ours"]
    return verdict(rows, "what `auto` chooses takes at most 1.05 times as long as the fastest", float(np.median(auto)) <= 1.05 * min(r["p50"] for r in rows)) | {
        "auto": core.arithmetic()}


def finetune_speed() -> dict:
    "Fine-tuning on cached features of the frozen backbone, against the plain loops that look at every picture, now and a chunk later, in every step: read from the films, as loaders do, or held in memory. Fifty steps of 32 rows."
    import numpy as np

    from groot_cookbook.finetuning import Cache, Recipe, cache_features, kept_frames

    @dataclasses.dataclass
    class Plain(Cache):
        "The same rows, looked at anew each time."
        picture: Callable = None             # row -> (H, W, 3)
        instructions: np.ndarray = None      # (N,)

        def look(self, i: torch.Tensor) -> torch.Tensor:
            x = policy.processor(np.stack([self.picture(int(k)) for k in i]), list(self.instructions[i]), None, tag)
            with torch.no_grad(): seen = policy.encode(x["pixel_values"], x["input_ids"], x["attention_mask"]).half().float()
            return torch.nn.functional.pad(seen, (0, 0, 0, self.features.shape[1] - seen.shape[1]))

        def rows(self, index: list[int], device="cpu") -> dict[str, torch.Tensor]:
            i = torch.as_tensor(index)
            later = self.future[i]
            return super().rows(index, device) | {"features": self.look(i), "seen": self.look(later)[self.images[later]].unflatten(0, (len(i), self.n_image_tokens))}

    with beginners(24) as (shown, tag, policy):
        began = time.perf_counter()
        cached = cache_features(policy, shown, tag)
        caching = time.perf_counter() - began
        episodes = [shown[e] for e in range(len(shown))]
        places = [(e, t) for e, episode in enumerate(episodes) for t in kept_frames(episode.length, 2)]
        ways = {"from films": lambda k: shown.frames(places[k][0], [places[k][1]])[0], "from memory": lambda k: episodes[places[k][0]].frames[places[k][1]]}
        plain = {name: Plain(**{f.name: getattr(cached, f.name) for f in dataclasses.fields(Cache)}, picture=way, instructions=np.array([episodes[e].instruction for e, _ in places]))
                 for name, way in ways.items()}
        recipe, curves, rows = Recipe(steps=50, batch=32), [], []
        for name, data in {**plain, "cached": cached}.items():
            ms, curve = timed_steps(policy, data, recipe)
            curves.append([c["total"] for c in curve])
            rows.append({"backend": name, "scope": "step of 32", "p50": float(np.median(ms)), "p99": float(np.quantile(ms, .99)), "samples_per_s": float(32e3 / ms.mean()), "samples_ms": ms.round(2).tolist()})
    apart, ratio = float(np.ptp(curves, axis=0).max()), rows[-1]["samples_per_s"] / rows[0]["samples_per_s"]
    return verdict(rows, "at least 5 times the samples per second, the same losses to 1e-4", ratio >= 5 and apart <= 1e-4) | {
        "ratio": round(ratio, 2), "largest_difference_of_losses": apart, "seconds_of_caching": round(caching, 1), "frames": len(cached)}


def evaluation_processes() -> dict:
    "Sixty-four closed-loop episodes in one process and in two, which have to be started, and again in two, as the next condition of an evaluation finds them; the policy's head is untrained, so every episode lasts its full length."
    import tempfile
    from functools import partial

    from groot_cookbook.evaluation import PolicyActor, evaluate
    from groot_cookbook.workspace import sample_scene, seeds
    if core.cores() < 2: raise core.CookbookError("one core", "evaluation_processes", "Run it where there are two")
    rows, found = [], []
    with beginners(2) as (_, _, policy), tempfile.TemporaryDirectory() as folder:
        policy.save_pretrained(Path(folder) / "policy")
        scenes = [sample_scene(s, 1.) for s in seeds("evaluation", 64)]
        for name, n in {"1 process": 1, "2 processes, starting": 2, "2 processes": 2}.items():
            began = time.perf_counter()
            trials = evaluate(partial(PolicyActor, Path(folder) / "policy", temperature=1.), scenes, processes=n)
            ms = (time.perf_counter() - began) * 1e3
            found.append([(t.seed, t.outcome, t.steps) for t in trials])
            rows.append({"backend": name, "scope": "64 episodes", "p50": ms, "p99": ms})
    (starting, ratio), same = (rows[0]["p50"] / r["p50"] for r in rows[1:]), all(f == found[0] for f in found)
    return verdict(rows, "at least 1.8 times as fast on two cores, with the same outcomes", ratio >= 1.8 and same) | {"ratio": round(ratio, 2), "ratio_starting": round(starting, 2), "same": same}


def reading() -> dict:
    "One frame with its numbers at a time, by our reader and by lerobot 0.4.4's on the same core; films as this project writes them (h264) and as lerobot does (AV1). By processor time, which other work distorts little, and by the clock. LEROBOT_PYTHON names the peer's Python (tests/peers/README.md)."
    import json
    import tempfile

    import av
    import numpy as np

    from groot_cookbook.camera import Camera
    from groot_cookbook.episodes import TABLETOP, Episode, write_dataset
    from groot_cookbook.video import read_frames
    from groot_cookbook.workspace import HZ, Tabletop, expert as plan, sample_scene, seeds, simulate
    peer = os.environ.get("LEROBOT_PYTHON", "")
    if not Path(peer).is_file(): raise core.CookbookError("no Python with lerobot", peer or "LEROBOT_PYTHON", "Make its environment as tests/peers/README.md says, and name its python")

    def filmed(seed: int) -> Episode:
        world, trace = Tabletop(Camera(size=256)), simulate(scene := sample_scene(seed), plan(scene))
        world.arrange(scene)
        return Episode(np.stack([world.pose(q).look().rgb for q in trace.qpos]), trace.state, trace.actions, scene.instruction, float(HZ))

    def recoded(path: Path) -> None:
        "A film in lerobot's own coding."
        frames = read_frames(path, range(sum(e.length for e in episodes)))
        with av.open(str(path), "w") as film:
            stream = film.add_stream("libsvtav1", rate=HZ, options={"g": "2", "crf": "30", "preset": "12"})
            stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
            for image in frames: film.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            film.mux(stream.encode())

    def read(python: str, reader: str, path: Path) -> dict:
        pinned = ["taskset", "-c", str(min(os.sched_getaffinity(0)))] if shutil.which("taskset") else []
        said = finished([*pinned, python, str(ROOT / "benchmarks" / "read.py"), reader, str(path), "400"], reader, ROOT, {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "SVT_LOG": "0"})
        return json.loads(said.splitlines()[-1])

    rows, readers = [], {"ours": sys.executable, "lerobot": peer}
    with tempfile.TemporaryDirectory() as folder:
        episodes = [filmed(s) for s in seeds("teleop", 4)]
        for coding in ("h264", "AV1"):
            path = write_dataset(episodes, Path(folder) / coding, "v3.0", modality=TABLETOP)
            if coding == "AV1": recoded(next(path.rglob("*.mp4")))
            found = {name: read(python, name, path) for name, python in readers.items()}
            apart = max(abs(a - b) for a, b in zip(*(f["sums"] for f in found.values()))) / (256 * 256 * 3)
            for order, (name, f) in itertools.product(("in order", "at random"), found.items()):
                ms = [1e3 * e["cpu_seconds"] / e["frames"] for e in f[order]]
                rows.append({"backend": name, "scope": f"{coding} {order}", "p50": float(np.median(ms)), "p99": max(ms), "samples_ms": [round(v, 4) for v in ms],
                             "frames_per_cpu_s": round(1e3 / float(np.median(ms)), 1), "frames_per_s": round(float(np.median([e["frames"] / e["seconds"] for e in f[order]])), 1),
                             "mean_levels_apart": round(apart, 4)})
    speed = {(r["backend"], r["scope"]): r["frames_per_cpu_s"] for r in rows}
    ratios = {scope: round(v / speed["lerobot", scope], 2) for (name, scope), v in speed.items() if name == "ours"}
    return verdict(rows, "at least twice lerobot's frames per second, in order and at random, in both codings", min(ratios.values()) >= 2) | {"ratios": ratios}


def memory_mb(process: subprocess.Popen) -> int:
    "What a process and all below it hold together, pages that they share counted once (proportional set size)."
    import psutil
    held = 0
    try:
        for p in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]: held += p.memory_full_info().pss
    except psutil.NoSuchProcess: pass                        # ended while we looked
    return held >> 20


def whole_run(profile: str) -> dict:
    "A row of all ten chapters in a fresh folder: seconds of each, the digest of what each made, and the most memory that all processes held together, looked at every half second."
    import json
    import tempfile
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complaint:
        command, peak = [sys.executable, "-m", "groot_cookbook.cli", "run", "--profile", profile, "--out", folder, "--json"], 0
        run = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=complaint, text=True)
        while run.poll() is None:
            peak = max(peak, memory_mb(run))
            time.sleep(.5)
        for f in (said, complaint): f.seek(0)
        if run.returncode: raise core.CookbookError(complaint.read().strip().splitlines()[-1], profile)
        steps = json.loads(said.read().splitlines()[-1])["steps"]
        evaluation = json.loads((Path(folder) / "07_evaluation" / "report.json").read_text())["scores"]
        digests = {s["stage"]: core.Manifest.read(folder, s["stage"]).digest for s in steps}
    seconds = sum(s["seconds"] for s in steps)
    return {"backend": "papermill", "scope": profile, "p50": seconds * 1e3, "p99": seconds * 1e3, "peak_mb": peak, "chapters": {s["stage"]: s["seconds"] for s in steps}, "digests": digests, "evaluation": evaluation}


def within(row: dict, minutes: float) -> bool: return row["p50"] <= 60e3 * minutes and row["peak_mb"] <= 6000


def smoke() -> dict:
    "The ten chapters in the smoke profile."
    row = whole_run("smoke")
    return verdict([row], "at most 4 minutes and 6 GB", within(row, 4))


def laptop() -> dict:
    "The ten chapters in the laptop profile, what `make cookbook` runs, and once more in another folder: all that they make, but for a signature and measured times, has to come out the same to the bit."
    rows = [whole_run("laptop") for _ in range(2)]
    same = rows[0]["digests"] == rows[1]["digests"]
    return verdict(rows, "at most 15 minutes and 6 GB, twice with the same digests", same and all(within(r, 15) for r in rows)) | {"same_digests": same}


def jupyterlab() -> dict:
    "The ten chapters in JupyterLab, all cells run and a slider moved by a browser without a window: ms from the key to another figure, and seconds of each chapter. After make smoke; only with --only."
    import lab
    import numpy as np
    run, rows = ROOT / "runs" / "smoke", []
    if missing := lab.absent(run): raise core.CookbookError(missing, "jupyterlab")
    with lab.server(run) as address, lab.pages() as new_page:
        for stage in core.STAGES:
            with new_page() as page: seen = lab.play(page, address, stage)
            if not seen["figure_changed"]: raise core.CookbookError("the figure did not follow its slider", stage, "Move it by hand: make lab")
            p50, p99 = (float(np.percentile(seen["reactions_ms"], q)) for q in (50, 99))
            rows.append({"backend": "JupyterLab", "scope": stage, "p50": p50, "p99": p99, **seen})
    met = max(r["p99"] for r in rows) <= 300 and sum(r["seconds"] for r in rows) <= 300
    return verdict(rows, "a figure follows its slider within 300 ms, and all chapters run within five minutes", met) | {
        "front_end": {p: core.version(p) for p in ("jupyterlab", "ipywidgets", "playwright")}}


def offline() -> dict:
    "The pack for a room without network (make offline): made, installed from nothing but itself, and chapter 00 run in it; whatever asks for a web page meanwhile gets none. Only with --only."
    import tempfile
    alone = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")} | {k: "http://127.0.0.1:9" for k in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    rows: list[dict] = []

    def timed(scope: str, command: list[str], cwd: Path, env: dict[str, str]) -> None:
        began = time.perf_counter()
        finished(command, scope, cwd, env)
        ms = (time.perf_counter() - began) * 1e3
        rows.append({"backend": command[0].rsplit("/", 1)[-1], "scope": scope, "p50": ms, "p99": ms})

    with tempfile.TemporaryDirectory() as folder:
        pack = Path(folder) / "pack"
        timed("made", [sys.executable, str(ROOT / "workshop" / "offline.py"), str(pack)], ROOT, dict(os.environ))
        timed("installed", ["sh", "install.sh"], pack, alone | {"PYTHON": getattr(sys, "_base_executable", sys.executable)})
        timed("chapter 00", [str(pack / "groot_cookbook" / ".venv" / "bin" / "groot-cookbook"), "run", "--profile", "smoke", "--only", "00"], pack / "groot_cookbook", alone)
        made = list(pack.glob("wheels/*.whl"))
        megabytes = sum(p.stat().st_size for p in made) >> 20
    return verdict(rows, "installs and runs with nothing but itself", True) | {"wheels": len(made), "megabytes_of_wheels": megabytes}      # otherwise there is no file: an error says where it failed


BENCHMARKS: dict[str, Callable[[], dict]] = {f.__name__: f for f in (camera_frame, episode, expert, dream, idm_frames, policy_latency, training_step, finetune_speed, evaluation_processes, smoke, laptop, critic_score, critic_witnesses, dream_worth, dream_cost, further_fitting, idm_lighting, idm_gr1, reading, jupyterlab, offline)}
SLOW = {"smoke", "laptop", "critic_score", "critic_witnesses", "dream_worth", "dream_cost", "further_fitting", "idm_lighting", "idm_gr1", "reading", "jupyterlab", "offline"}       # by name only: what the book and its plans quote; a quarter of an hour; a peer; a browser and a finished smoke run; a registry


# --- what surrounds a measurement --------------------------------------------------------------------------------

def verdict(rows: list[dict], target: str, met: bool) -> dict: return {"rows": rows, "target": target, "met": bool(met)}


def finished(command: list[str], what: str, cwd: Path, env: dict[str, str]) -> str:
    "What a command prints, once it has ended well; its last word as the error otherwise."
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode: raise core.CookbookError((done.stderr.strip().splitlines() or ["ended without a word"])[-1], what)
    return done.stdout


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()


def hardware(threads: int) -> str:
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} x {processor()}, {threads} thread{'s' * (threads > 1)}{gpu}"


def commit() -> str:
    "The commit that is checked out, marked where files differ from it."
    git = lambda *args: subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True)
    try: head = git("rev-parse", "HEAD")
    except OSError: return "unknown"
    if head.returncode: return "not committed yet"
    return head.stdout.strip() + ("-dirty" if git("status", "--porcelain").stdout.strip() else "")


def status_gb(field: str, process: int | str = "self") -> float:
    "A process's memory, as Linux names it: RssAnon, VmHWM; 0 of one that has just ended."
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 / 1e9 if found else 0.


def provenance(name: str, what: str, command: str, threads: int) -> dict:
    "What every file of results says about itself; asked for before the work, for the load that it met."
    return {"name": name, "what": what, "command": command, "commit": commit(), "hardware": hardware(threads), "date": datetime.date.today().isoformat(),
            "load_average_before": round(os.getloadavg()[0], 1), "versions": {p: core.version(p) for p in core.VERSIONED if core.version(p)}}


def typed(script: str, argv: list[str] | None) -> str:
    "The command that was typed, less where its results went and what only this machine knows."
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for hidden in ("--out", "--commit", "--peer"): parser.add_argument(hidden)
    known, words = parser.parse_known_args(argv)
    return shlex.join(["python", f"benchmarks/{script}", *words, *["--peer", "FOLDER"] * bool(known.peer)])


def gpu_arguments(what: str, argv: list[str] | None, add: Callable[[argparse.ArgumentParser], None]) -> argparse.Namespace | None:
    "What a benchmark for a GPU is told, its own arguments `add`ed; none where no GPU is, which is said."
    parser = argparse.ArgumentParser(description=what, allow_abbrev=False)
    parser.add_argument("--size", choices=["full", "tiny"], default="full")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--commit", default="", help="where the checkout is not at hand")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "results")
    add(parser)
    args = parser.parse_args(argv)
    if not args.device.startswith("cuda") or torch.cuda.is_available(): return args
    print("This machine has no CUDA GPU, so nothing was measured.")
    return None


def run(name: str, out: Path, threads: int) -> bool:
    "One benchmark, written to its file; whether it could run."
    about, started = provenance(name, BENCHMARKS[name].__doc__, f"python benchmarks/bench.py --only {name} --threads {threads}", threads), time.perf_counter()
    try: found = BENCHMARKS[name]()
    except (core.CookbookError, ImportError) as e:
        print(f"{name:16} left out: {e}")
        return False
    about |= {"seconds": round(time.perf_counter() - started, 1), "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
    core.write_json(out / f"{name}.json", about | found)
    for row in found["rows"]: print(f"{name:16} {row['backend']:13} {row['scope']:11}" + (f" p50 {row['p50']:9.2f} ms   p99 {row['p99']:9.2f} ms" if "p50" in row else ""))      # what is not timed has none
    print(f"{name:16} {'met' if found['met'] else 'MISSED'}: {found['target']}" + (f"   (load before it began: {about['load_average_before']})" if about["load_average_before"] > .5 else ""))
    return True


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), help="default: those of minutes")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "results")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch and ONNX Runtime; default: all cores")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    names = args.only or [n for n in BENCHMARKS if n not in SLOW]
    if len(names) == 1: ran = [run(names[0], args.out, args.threads)]
    else: ran = [not subprocess.run([sys.executable, __file__, "--only", n, "--out", args.out, "--threads", str(args.threads)]).returncode for n in names]      # each in a process of its own, as its file says: memory is its own
    return 0 if all(ran) or not args.only else 1                       # what was asked for by name has to run


if __name__ == "__main__": sys.exit(main())
