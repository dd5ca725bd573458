"""Load a v3.0 dataset with lerobot 0.4.4 and say in JSON what it saw. Run in lerobot's own environment (README.md beside this file):

    HF_HUB_OFFLINE=1 python tests/peers/lerobot_v3.py DATASET

It opens `LeRobotDataset`, reads every frame of every camera of the first and the last episode, and compares with the files: numbers with the parquet,
frames with a plain decode of the mp4. Actions are read as chunks of 16 through `delta_timestamps`, as a policy reads them.
"""
import json
import sys
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

import av
import numpy as np
import pandas as pd
from lerobot.datasets.lerobot_dataset import LeRobotDataset


def decode(path):
    with av.open(str(path)) as film: return np.stack([f.to_ndarray(format="rgb24") for f in film.decode(video=0)])


def main(source):
    root = Path(source)
    fps = json.loads((root / "meta" / "info.json").read_text())["fps"]
    dataset = LeRobotDataset("local/dataset", root=root, delta_timestamps={"action": [i / fps for i in range(16)]})
    meta = dataset.meta
    rows = pd.concat([pd.read_parquet(f) for f in sorted(root.glob("data/*/*.parquet"))], ignore_index=True)
    films, wrong, offsets, worst, seen, sentences = {}, 0, {}, 0.0, 0, set()
    for episode in sorted({0, meta.total_episodes - 1}):
        e = meta.episodes[episode]
        paths = {camera: root / meta.get_video_file_path(episode, camera) for camera in meta.video_keys}
        for path in paths.values():
            if path not in films: films[path] = decode(path)
        for t in range(e["length"]):
            item, row = dataset[e["dataset_from_index"] + t], rows.iloc[e["dataset_from_index"] + t]
            wrong += int(not np.array_equal(item["observation.state"].numpy(), row["observation.state"]))
            last = e["dataset_to_index"] - 1
            want = np.stack([rows["action"].iloc[min(e["dataset_from_index"] + t + k, last)] for k in range(16)])
            wrong += int(not np.array_equal(item["action"].numpy(), want))
            for camera, path in paths.items():
                film, begin = films[path], round(e[f"videos/{camera}/from_timestamp"] * fps)
                image = (item[camera].numpy().transpose(1, 2, 0) * 255).round().astype(int)
                near = range(max(0, begin + t - 3), min(len(film), begin + t + 4))
                errors = {s - begin - t: float(np.abs(film[s].astype(int) - image).mean()) for s in near}
                offset = min(errors, key=lambda s: (errors[s], abs(s)))
                offsets[offset] = offsets.get(offset, 0) + 1
                worst = max(worst, errors[offset])
            sentences.add(item["task"])
            seen += 1
    stats = dataset.meta.stats
    print(json.dumps({"loader": "lerobot.datasets.lerobot_dataset.LeRobotDataset", "codebase_version": str(meta._version), "episodes": meta.total_episodes, "frames": len(dataset),
                      "frames_read": seen, "state_or_action_rows_wrong": wrong, "frame_offset": {str(k): v for k, v in sorted(offsets.items())},
                      "frame_error_levels": round(worst, 3), "instructions": sorted(sentences),
                      "statistics_shapes": {k: list(np.shape(stats[k]["mean"])) for k in ("observation.state", "action", *meta.video_keys)},
                      "versions": {p: metadata.version(p) for p in ("lerobot", "torch", "torchcodec", "datasets", "av", "numpy")}}))


if __name__ == "__main__": main(sys.argv[1])
