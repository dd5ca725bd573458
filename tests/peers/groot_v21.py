"""Load a v2.1 dataset with GR00T's own loader and say in JSON what it saw. Run from a checkout of NVIDIA/GR00T-Dreams, in its own environment:

    PYTHONPATH=CHECKOUT python tests/peers/groot_v21.py DATASET [robot_config.py]

With the data configuration that chapter 20 writes, the modalities that it names are read, and not all.
It reads every step of the first and the last episode through `LeRobotSingleDataset` (the class behind GR00T's fine-tuning) and compares with the
files: states and actions with the parquet, frames with a plain decode of the mp4 (`frame_offset`: how many frames late each frame came, 0 is right).
"""
import ast
import json
import shutil
import sys
import tempfile
import types
from importlib import metadata
from pathlib import Path

import torch


def torchvision_ready():
    "torchvision's compiled operators do not load beside a CPU-only torch; declaring two of them lets its Python part import."
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


if not torch.version.cuda: library = torchvision_ready()
for package, part in (("pytorch3d", "transforms"), ("albumentations", "")):     # imported by transforms that this script does not use
    try: __import__(".".join(filter(None, (package, part))))
    except ImportError:
        sys.modules[package] = types.ModuleType(package)
        if part: sys.modules[f"{package}.{part}"] = sys.modules[package].__dict__.setdefault(part, types.ModuleType(part))

import av
import numpy as np
import pandas as pd
from gr00t.data.dataset import LeRobotSingleDataset, ModalityConfig


def decode(path):
    with av.open(str(path)) as film: return np.stack([f.to_ndarray(format="rgb24") for f in film.decode(video=0)])


def told(config, table):
    "Keys of each modality: what a data configuration names, else all there are. Read as literals: upstream's own module of configurations imports its model."
    if not config: return {m: [f"{m}.{k}" for k in table[m]] for m in ("state", "action", "video")}, [f"annotation.{k}" for k in table["annotation"]][:1]
    (made,) = [n for n in ast.parse(Path(config).read_text()).body if isinstance(n, ast.ClassDef)]
    found = {n.targets[0].id: ast.literal_eval(n.value) for n in made.body if isinstance(n, ast.Assign) and isinstance(n.value, ast.List)}
    return {m: found[f"{m}_keys"] for m in ("state", "action", "video")}, found["language_keys"]


def main(source, config=None):
    root = Path(tempfile.mkdtemp()) / "dataset"          # the loader writes into the folder it reads
    shutil.copytree(source, root)
    table = json.loads((root / "meta" / "modality.json").read_text())
    horizon = 16
    keys, language = told(config, table)
    configs = {"video": ModalityConfig(delta_indices=[0], modality_keys=keys["video"]), "state": ModalityConfig(delta_indices=[0], modality_keys=keys["state"]),
               "action": ModalityConfig(delta_indices=list(range(horizon)), modality_keys=keys["action"]),
               "language": ModalityConfig(delta_indices=[0], modality_keys=language)}
    stats = (root / "meta" / "stats.json").read_bytes()
    dataset = LeRobotSingleDataset(root, configs, embodiment_tag="new_embodiment", video_backend="decord")
    first, last = int(dataset.trajectory_ids[0]), int(dataset.trajectory_ids[-1])
    wrong, offsets, worst, seen, sentences = 0, {}, 0.0, 0, set()
    for episode in sorted({first, last}):
        info = dataset.lerobot_info_meta
        at = dict(episode_chunk=episode // info["chunks_size"], episode_index=episode)
        rows = pd.read_parquet(root / info["data_path"].format(**at))
        column = {m: np.stack(rows[c].to_numpy()) for m, c in (("state", "observation.state"), ("action", "action"))}
        films = {k: decode(dataset.get_video_path(episode, k.split(".", 1)[1])) for k in keys["video"]}
        for t in range(len(rows)):
            step = dataset.get_step_data(episode, t)
            for k in keys["state"] + keys["action"]:
                m, name = k.split(".", 1)
                want = column[m][np.minimum(t + np.arange(step[k].shape[0]), len(rows) - 1), table[m][name]["start"]:table[m][name]["end"]]
                wrong += int(not np.array_equal(step[k], want))
            for k, film in films.items():
                near = range(max(0, t - 3), min(len(film), t + 4))
                errors = {s - t: float(np.abs(film[s].astype(int) - step[k][0]).mean()) for s in near}
                offset = min(errors, key=lambda s: (errors[s], abs(s)))
                offsets[offset] = offsets.get(offset, 0) + 1
                worst = max(worst, errors[offset])
            sentences.update(step[language[0]])
            seen += 1
    print(json.dumps({"loader": "gr00t.data.dataset.LeRobotSingleDataset", "episodes": len(dataset.trajectory_ids), "steps": len(dataset), "steps_read": seen,
                      "state_or_action_slices_wrong": wrong, "frame_offset": {str(k): v for k, v in sorted(offsets.items())}, "frame_error_levels": round(worst, 3),
                      "statistics_recomputed_by_loader": (root / "meta" / "stats.json").read_bytes() != stats, "instructions": sorted(sentences),
                      "versions": {p: metadata.version(p) for p in ("torch", "numpy", "pandas", "decord", "av")}}))


if __name__ == "__main__": main(*sys.argv[1:3])
