"""Our GR00T N1.5 against the peer's: same weights, inputs and noise, the same features, loss, gradients and actions.

The fixture was computed by lerobot 0.4.4 (tests/peers/groot_n15.py); every weight in it carries the peer's name."""
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from groot_cookbook.action_head import ActionHead, ActionHeadConfig, flow_loss
from groot_cookbook.backbone import Backbone, BackboneConfig
from groot_cookbook.core import CookbookError
from groot_cookbook.policy import GrootPolicy, PolicyConfig

FIXTURE = Path(__file__).parent / "fixtures" / "groot_n15.safetensors"


@pytest.fixture(scope="module")
def peer() -> dict:
    with safe_open(FIXTURE, "pt") as f: return {"config": json.loads(f.metadata()["config"])} | {k: f.get_tensor(k) for k in f.keys()}


@pytest.fixture(scope="module")
def config(peer) -> PolicyConfig:
    c = peer["config"]
    return PolicyConfig(BackboneConfig(c["vision"], c["text"], c["select_layer"], c["image_token_index"]), ActionHeadConfig.from_upstream(c["head"]))


def weights(peer: dict, *parts: str) -> dict: return {k: v for k, v in peer.items() if k.startswith(parts)}


def head_of(peer: dict, config: PolicyConfig, upstream_compatible: bool = True) -> ActionHead:
    head = ActionHead(config.action_head, upstream_compatible).eval()
    head.load_state_dict({k.removeprefix("action_head."): v for k, v in weights(peer, "action_head.").items()})          # strict: every name is the peer's
    return head


def given(peer: dict, *names: str) -> list[torch.Tensor]: return [peer[f"given.{n}"] for n in names]


def training_loss(head: ActionHead, peer: dict) -> torch.Tensor:
    features, mask, state, robot, noise, actions, t, known = given(peer, "features", "mask", "state", "robot", "noise", "actions", "t", "action_mask")
    noised = (1 - t[:, None, None]) * noise + t[:, None, None] * actions
    velocity, _ = head.velocity(head.look(features, mask), mask, state[:, 0], noised, (t * 1000).long(), robot)
    return flow_loss(velocity, actions - noise, known)


def test_the_whole_checkpoint_loads_under_the_peers_names(peer, config, tmp_path):
    from safetensors.torch import save_file
    (tmp_path / "config.json").write_text(json.dumps(config.to_upstream()))
    save_file(weights(peer, "backbone.", "action_head."), tmp_path / "model.safetensors")
    policy = GrootPolicy.from_pretrained(tmp_path)
    assert torch.equal(policy.action_head.future_tokens.weight, peer["action_head.future_tokens.weight"])
    one = next(iter(weights(peer, "action_head.")))
    save_file({k: v for k, v in weights(peer, "backbone.", "action_head.").items() if k != one}, tmp_path / "model.safetensors")
    with pytest.raises(CookbookError, match="1 missing"): GrootPolicy.from_pretrained(tmp_path)


def test_features(peer, config):
    "A clip of padded rows through vision tower, connector and the kept layers of the language model."
    backbone = Backbone(config.backbone).eval()
    backbone.load_state_dict({k.removeprefix("backbone."): v for k, v in weights(peer, "backbone.").items()}, strict=False)
    pixels, ids, mask, features = given(peer, "pixels", "ids", "mask", "features")
    with torch.no_grad(): ours = backbone(pixels, ids, mask)
    true = mask.bool()
    assert (ours - features)[true].abs().max() <= 1e-5 * features[true].abs().max()


def test_training_loss_and_every_gradient(peer, config):
    head = head_of(peer, config)
    loss = training_loss(head, peer)
    loss.backward()
    assert abs(loss.item() - peer["made.loss"].item()) <= 1e-5
    theirs = {k.removeprefix("gradient."): v for k, v in weights(peer, "gradient.").items()}
    ours = {k: p.grad for k, p in head.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys() and len(ours) > 80
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).abs().max() <= 1e-5 * max(1, gradient.abs().max().item()), name


def test_sampled_actions(peer, config):
    features, mask, state, robot, noise = given(peer, "features", "mask", "state", "robot", "noise")
    with torch.no_grad():
        ours = head_of(peer, config)(features, mask, state[:, 0], robot, noise)
        right = head_of(peer, config, upstream_compatible=False)(features, mask, state[:, 0], robot, noise)
    assert (ours - peer["made.actions"]).abs().max() <= 1e-5
    assert (right[0] - peer["made.actions"][0]).abs().max() <= 1e-5                      # nothing is padded in the first row
    assert (right[1:] - peer["made.actions"][1:]).abs().max() > 1e-3                     # by default padding is not seen; the peer sees it


@pytest.mark.parametrize("swap", ["scale and shift", "cosine first", "velocity"])
def test_parity_would_notice(peer, config, swap):
    "The mistakes that leave every shape as it is."
    head = head_of(peer, config)
    if swap == "scale and shift":
        linear = head.model.transformer_blocks[0].norm1.linear
        linear.weight.data, linear.bias.data = linear.weight.data.roll(len(linear.bias) // 2, 0), linear.bias.data.roll(len(linear.bias) // 2)
    elif swap == "cosine first":
        first = head.model.timestep_encoder.timestep_embedder["linear_1"]
        first.weight.data = first.weight.data.roll(128, 1)
    else: head.action_decoder.layer2.W.data *= -1
    assert abs(training_loss(head, peer).item() - peer["made.loss"].item()) > 1e-3
