"""Does `lerobot-train` take the line that chapter 20 writes? Its own parser reads it, nothing is trained. In lerobot's own environment (README.md beside this file):

    HF_HUB_OFFLINE=1 python tests/peers/lerobot_line.py runs/smoke/20_your_robot/train.md
"""
import json
import re
import shlex
import sys
from pathlib import Path

import torch

if not torch.version.cuda:      # torchvision's compiled operators do not load beside a CPU-only torch; declaring two of them lets its Python part import
    library = torch.library.Library("torchvision", "DEF")
    for op in ("nms", "qnms"): library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import draccus
from lerobot.configs.train import TrainPipelineConfig
from lerobot.policies.groot.configuration_groot import GrootConfig


def main(path: str) -> None:
    line = re.search(r"lerobot-train (.*?)```", Path(path).read_text(), re.S)[1].replace("\\\n", " ").replace("$HERE", "here")
    config = draccus.parse(TrainPipelineConfig, args=shlex.split(line))
    assert isinstance(config.policy, GrootConfig)
    print(json.dumps({"policy": config.policy.type, "embodiment_tag": config.policy.embodiment_tag, "push_to_hub": config.policy.push_to_hub,
                      "root": str(config.dataset.root), "batch_size": config.batch_size, "steps": config.steps, "output_dir": str(config.output_dir)}))


if __name__ == "__main__": main(sys.argv[1])
