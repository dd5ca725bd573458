"""lerobot 0.4.4's GR00T N1.5 on the weights and inputs that gpu_policy.py left in a folder: python benchmarks/gpu_peer.py FOLDER, in lerobot's own environment

Eager, and with the DiT under torch.compile as upstream's fast mode has it. Only the files of its policy are imported, not the rest of lerobot.
"""
import json, sys, time, types
from importlib import metadata, util
from pathlib import Path

import torch

if not torch.version.cuda:      # torchvision's compiled operators do not load beside a CPU-only torch; declaring two of them lets its Python part import
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

where = Path(util.find_spec("lerobot").submodule_search_locations[0])
for name in ("lerobot", "lerobot.policies", "lerobot.policies.groot"):       # packages without what their __init__ would draw in
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(where.joinpath(*name.split(".")[1:]))]

from lerobot.policies.groot.action_head.flow_matching_action_head import FlowmatchingActionHead, FlowmatchingActionHeadConfig
from lerobot.policies.groot.action_head import flow_matching_action_head as theirs
from lerobot.policies.groot.eagle2_hg_model.configuration_eagle2_5_vl import Eagle25VLConfig
from lerobot.policies.groot.eagle2_hg_model.modeling_eagle2_5_vl import Eagle25VLForConditionalGeneration
from lerobot.policies.groot.groot_n1 import EagleBackbone
from safetensors.torch import load_file, save_file
from transformers import Qwen3ForCausalLM, SiglipVisionModel
from transformers.feature_extraction_utils import BatchFeature

folder = Path(sys.argv[1])
about, given = json.loads((folder / "about.json").read_text()), load_file(folder / "given.safetensors")
device, cuda = torch.device(about["device"]), about["device"] == "cuda"
weights = load_file(folder / "weights.safetensors")
part = lambda prefix: {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}

config = Eagle25VLConfig(vision_config={"model_type": "siglip_vision_model", **about["vision"], "vision_use_head": False}, text_config={"architectures": ["Qwen3ForCausalLM"], **about["text"]},
                         select_layer=-1, image_token_index=about["image_token_index"], use_pixel_shuffle=False, mlp_connector_layers=1, _attn_implementation="sdpa")
for c in (config.vision_config, config.text_config): c._attn_implementation = "sdpa"
with device:
    backbone = EagleBackbone.__new__(EagleBackbone)
    torch.nn.Module.__init__(backbone)
    config.text_config.num_hidden_layers = about["select_layer"]
    backbone.eagle_model = Eagle25VLForConditionalGeneration(config, SiglipVisionModel(config.vision_config), Qwen3ForCausalLM(config.text_config))
    backbone.eagle_linear, backbone.select_layer, backbone.tune_llm, backbone.tune_visual = torch.nn.Identity(), about["select_layer"], False, False
    head = FlowmatchingActionHead(FlowmatchingActionHeadConfig(**{k: v for k, v in about["head"].items() if k not in ("use_alternate_vl_dit", "attend_text_every_n_blocks")}))
lost = [k for k in backbone.load_state_dict(part("backbone."), strict=False).missing_keys if "lm_head" not in k and "vision_model.head" not in k]
assert not lost, lost
head.load_state_dict(part("action_head."))
exact = {m: m.inv_freq for m in backbone.modules() if hasattr(m, "inv_freq")}             # transformers loads these in float32 whatever the weights are in
backbone, head = backbone.to(torch.bfloat16 if cuda else torch.float32).eval(), head.to(torch.bfloat16 if cuda else torch.float32).eval()
for module, frequencies in exact.items(): module.inv_freq = frequencies
dtype = next(head.parameters()).dtype
drawn = given["noise"].to(device, dtype)


class SameNoise:
    "torch, as that module sees it; a compiler that draws numbers of its own must not be given these."
    def __getattr__(self, name: str): return getattr(torch, name)
    def randn(self, *_, **__): return drawn.clone()


theirs.torch = SameNoise()
seen = {"eagle_pixel_values": given["pixels"].to(device, dtype), "eagle_input_ids": given["ids"].to(device), "eagle_attention_mask": given["mask"].to(device), "eagle_image_sizes": torch.zeros(1, 2)}
state = BatchFeature(data={"state": given["state"][:, None].to(device, dtype), "embodiment_id": torch.tensor([about["slot"]], device=device)})
wait = torch.cuda.synchronize if cuda else (lambda: None)


@torch.no_grad()
def chunk() -> torch.Tensor:
    features, mask = backbone.forward_eagle(BatchFeature(data=seen))
    return head.get_action(BatchFeature(data={"backbone_features": features, "backbone_attention_mask": mask}), state)["action_pred"]


def samples(n: int) -> list[float]:
    for _ in range(3): chunk()
    found = []
    for _ in range(n):
        wait()
        began = time.perf_counter()
        chunk()
        wait()
        found.append((time.perf_counter() - began) * 1e3)
    return found


def keep() -> None:
    save_file(made, folder / "made.safetensors")
    versions = {p: metadata.version(p) for p in ("lerobot", "transformers", "diffusers")} | {"torch": torch.__version__.split("+")[0]}
    (folder / "peer.json").write_text(json.dumps({"rows": rows, "versions": versions}))


rows, made = {"eager": samples(min(about["n"], 30))}, {"eager": chunk().float().cpu().contiguous()}
keep()
if cuda:
    head.model.forward = torch.compile(head.model.forward, mode="max-autotune")
    rows["DiT compiled"], made["DiT compiled"] = samples(min(about["n"], 100)), chunk().float().cpu().contiguous()
    keep()
