"""Write a small dataset with lerobot 0.4.4 and say in JSON what it holds. In lerobot's own environment (README.md beside this file):

    HF_HUB_OFFLINE=1 python tests/peers/lerobot_write.py tests/fixtures/lerobot_v30

Two episodes, two cameras of different sizes, 30 frames a second, lerobot's own codec (AV1). A square tells each frame's number by its place, and the
numbers are sines of the time; tests/test_peers.py reads the folder with our own reader, and needs no peer.
"""
import json
import sys
from importlib import metadata

import torch

if not torch.version.cuda:      # torchvision's compiled operators do not load beside a CPU-only torch; declaring two of them lets its Python part import
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

JOINTS = ["shoulder_pan.pos", "elbow_flex.pos", "gripper.pos"]
CAMERAS = {"observation.images.front": (64, 96), "observation.images.wrist": (64, 64)}
TASKS = ["pick up the cup", "put the cup down"]


def picture(number: int, height: int, width: int) -> np.ndarray:
    "A bright square of 8 pixels on grey, at place `number` of a grid."
    image, columns = np.full((height, width, 3), 90, np.uint8), width // 8
    row, column = divmod(number, columns)
    image[8 * row:8 * row + 8, 8 * column:8 * column + 8] = (220, 220, 60)
    return image


def numbers(episode: int, t: int) -> np.ndarray: return np.sin(np.arange(3) + .1 * t + episode).astype(np.float32)


def main(out: str) -> None:
    vector = {"dtype": "float32", "shape": (3,), "names": JOINTS}
    films = {key: {"dtype": "video", "shape": (*size, 3), "names": ["height", "width", "channels"]} for key, size in CAMERAS.items()}
    dataset = LeRobotDataset.create("local/dataset", 30, {"observation.state": vector, "action": vector, **films}, root=out, robot_type="so101_follower")
    for episode, length in enumerate((24, 17)):
        for t in range(length):
            seen = {key: picture(t + 20 * episode, *size) for key, size in CAMERAS.items()}
            dataset.add_frame({"observation.state": numbers(episode, t), "action": numbers(episode, t + 1), **seen, "task": TASKS[episode]})
        dataset.save_episode()
    dataset.finalize()
    print(json.dumps({"episodes": dataset.num_episodes, "frames": dataset.num_frames, "versions": {p: metadata.version(p) for p in ("lerobot", "torch", "av", "numpy")}}))


if __name__ == "__main__": main(sys.argv[1])
