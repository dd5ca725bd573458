"""Run lerobot 0.4.4's GR00T N1.5 (Eagle backbone and flow-matching head) at a small size and write what it computed. In lerobot's own environment:

    python tests/peers/groot_n15.py tests/fixtures/groot_n15.safetensors

The weights are drawn here and given to the peer, name by name, so every one of its names is in the file; beside them stand inputs, the backbone's
features, the training loss, its gradients, and the sampled actions. tests/test_parity.py holds our own classes to them, and needs no peer.
"""
import json
import sys

import torch

if not torch.version.cuda:      # torchvision's compiled operators do not load beside a CPU-only torch; declaring two of them lets its Python part import
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from importlib import metadata

from lerobot.policies.groot.action_head import flow_matching_action_head as theirs
from lerobot.policies.groot.eagle2_hg_model.configuration_eagle2_5_vl import Eagle25VLConfig
from lerobot.policies.groot.eagle2_hg_model.modeling_eagle2_5_vl import Eagle25VLForConditionalGeneration
from lerobot.policies.groot.groot_n1 import EagleBackbone
from safetensors.torch import save_file
from transformers import Qwen3ForCausalLM, SiglipVisionModel
from transformers.feature_extraction_utils import BatchFeature

VISION = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
TEXT = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=16, vocab_size=96,
            max_position_embeddings=128, rope_theta=1e6, tie_word_embeddings=True)
SELECT, IMAGE = 3, 90
HEAD = dict(action_dim=6, max_state_dim=10, action_horizon=8, hidden_size=24, input_embedding_dim=32, backbone_embedding_dim=48, max_num_embodiments=5, max_seq_len=16,
            num_target_vision_tokens=8, num_inference_timesteps=4, num_timestep_buckets=1000, noise_beta_alpha=1.5, noise_beta_beta=1.0, noise_s=.999, add_pos_embed=True,
            use_vlln=True,
            diffusion_model_cfg=dict(num_layers=4, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=48, output_dim=24, dropout=.2, final_dropout=True,
                                     interleave_self_attention=True, norm_type="ada_norm", positional_embeddings=None),
            vl_self_attention_cfg=dict(num_layers=2, num_attention_heads=3, attention_head_dim=16, dropout=.2, final_dropout=True, positional_embeddings=None))


def fill(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    "Draw every weight, in order of name: norms around one, the rest so that signals keep their size."
    generator = torch.Generator().manual_seed(seed)
    for name, p in sorted(module.named_parameters()):
        drawn = torch.randn(p.shape, generator=generator)
        norm = "norm" in name.lower() and p.ndim == 1 and name.endswith("weight") or name == "vlln.weight"
        p.data = 1 + .1 * drawn if norm else drawn * (.1 if p.ndim == 1 else p.shape[1] ** -.5)
    return module.eval()


def backbone() -> EagleBackbone:
    "Their backbone around their Eagle; their constructor would fetch Eagle's configuration, so its steps are done here."
    config = Eagle25VLConfig(vision_config={"model_type": "siglip_vision_model", **VISION, "vision_use_head": False}, text_config={"architectures": ["Qwen3ForCausalLM"], **TEXT},
                             select_layer=-1, image_token_index=IMAGE, use_pixel_shuffle=False, mlp_connector_layers=1, _attn_implementation="eager")
    for part in (config.vision_config, config.text_config): part._attn_implementation = "eager"
    made = EagleBackbone.__new__(EagleBackbone)
    torch.nn.Module.__init__(made)
    made.eagle_model = Eagle25VLForConditionalGeneration(config, SiglipVisionModel(config.vision_config), Qwen3ForCausalLM(config.text_config))
    made.eagle_linear, made.select_layer, made.tune_llm, made.tune_visual = torch.nn.Identity(), SELECT, False, False
    while len(made.eagle_model.language_model.model.layers) > SELECT: made.eagle_model.language_model.model.layers.pop(-1)
    return fill(made, 1)


def main(out: str) -> None:
    generator = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.randn(*shape, generator=generator)
    eyes, head = backbone(), fill(theirs.FlowmatchingActionHead(theirs.FlowmatchingActionHeadConfig(**HEAD)), 2)
    rows, patches, length = 3, (VISION["image_size"] // VISION["patch_size"]) ** 2, 26
    ids = torch.randint(1, 80, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row, pad in enumerate((0, 4, 7)):                                   # padded on the left, as upstream's processor does
        ids[row, :pad], mask[row, :pad] = 0, 0
        ids[row, pad + 1: pad + 1 + patches] = IMAGE
    pixels = random(rows, 3, VISION["image_size"], VISION["image_size"]).clamp(-1, 1)
    seen = {"eagle_pixel_values": pixels, "eagle_input_ids": ids, "eagle_attention_mask": mask, "eagle_image_sizes": torch.zeros(rows, 2)}
    with torch.no_grad(): features, _ = eyes.forward_eagle(BatchFeature(data=seen))

    state, robot, noise = random(rows, 1, HEAD["max_state_dim"]), torch.tensor([4, 0, 2]), random(rows, HEAD["action_horizon"], HEAD["action_dim"])
    actions, t = random(*noise.shape), torch.tensor([.05, .4, .93])
    action_mask = (torch.arange(HEAD["action_dim"]) < torch.tensor([6, 4, 3])[:, None, None]).float().expand_as(actions)
    features = features.masked_fill(mask[..., None] == 0, .5)              # what stands in padded places differs between versions of transformers
    theirs.torch.randn, head.sample_time = lambda *a, **k: noise.clone(), lambda *a, **k: t.clone()
    output = lambda: BatchFeature(data={"backbone_features": features.clone(), "backbone_attention_mask": mask})
    given = BatchFeature(data={"state": state, "embodiment_id": robot, "action": actions, "action_mask": action_mask})
    loss = head(output(), given)["loss"]
    loss.backward()
    sampled = head.get_action(output(), given)["action_pred"]

    tensors = {f"backbone.{k}": v for k, v in eyes.state_dict().items() if "lm_head" not in k} | {f"action_head.{k}": v for k, v in head.state_dict().items()}
    tensors |= {f"gradient.{k}": p.grad for k, p in head.named_parameters() if p.grad is not None}
    tensors |= {f"given.{k}": v for k, v in dict(pixels=pixels, ids=ids, mask=mask, features=features, state=state, robot=robot, noise=noise, actions=actions, t=t,
                                                 action_mask=action_mask).items()} | {"made.loss": loss, "made.actions": sampled}
    about = {"lerobot": metadata.version("lerobot"), "transformers": metadata.version("transformers"), "torch": torch.__version__.split("+")[0]}
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, out,
              metadata={"versions": json.dumps(about), "config": json.dumps({"vision": VISION, "text": TEXT, "select_layer": SELECT, "image_token_index": IMAGE, "head": HEAD})})
    print(json.dumps({**about, "loss": loss.item(), "tensors": len(tensors)}))


if __name__ == "__main__": main(sys.argv[1])
