"""Read a LeRobot v3.0 dataset with one of two readers and say in JSON how fast: python benchmarks/read.py {ours,lerobot} DATASET PICKS

`ours` runs in this project's environment, `lerobot` in lerobot's own (tests/peers/README.md); bench.py calls both, one after the other, on the same core. An item is what a policy
trains on: one frame with its state, action and sentence. Both readers have opened the dataset, and hold its numbers, before the clock runs; each delivers pictures in its
own form, ours as (H, W, 3) uint8, lerobot as (3, H, W) float32.
"""
from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np

ROUNDS = 5


def ours(path: str) -> tuple[Callable, int]:
    from groot_cookbook.episodes import Dataset
    d = Dataset(path)
    rows = [d.rows(i) for i in range(len(d))]
    place = [(i, t) for i, (state, _, _) in enumerate(rows) for t in range(len(state))]

    def item(k: int):
        i, t = place[k]
        state, actions, instruction = rows[i]
        return d.frames(i, [t])[0], state[t], actions[t], instruction
    return item, len(place)


def lerobot(path: str) -> tuple[Callable, int]:
    import torch
    if not torch.version.cuda:      # torchvision's compiled operators do not load beside a CPU-only torch; declaring two of them lets its Python part import
        lerobot.library = torch.library.Library("torchvision", "DEF")
        for op in ("nms", "qnms"): lerobot.library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    torch.set_num_threads(1)
    d = LeRobotDataset("local/dataset", root=path)
    camera = d.meta.video_keys[0]

    def item(k: int):
        found = d[k]
        return found[camera], found["observation.state"], found["action"], found["task"]
    return item, len(d)


def pixels(picture) -> np.ndarray:  # either form -> (H, W, 3) uint8
    return picture if isinstance(picture, np.ndarray) else (picture.numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8)


def main(reader: str, path: str, picks: int) -> None:
    item, n = {"ours": ours, "lerobot": lerobot}[reader](path)
    orders = {"in order": np.arange(n), "at random": np.random.default_rng(0).integers(0, n, picks)}
    found = {"sums": [int(pixels(item(int(k))[0]).sum()) for k in orders["at random"][:20]]}       # the same frames? and everything is warm
    for name, order in orders.items():
        found[name] = []
        for _ in range(ROUNDS):
            wall, cpu = time.perf_counter(), time.process_time()
            for k in order: item(int(k))
            found[name].append({"frames": len(order), "seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu})
    print(json.dumps(found))


if __name__ == "__main__": main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
