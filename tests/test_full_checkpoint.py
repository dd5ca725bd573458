"The script that writes and loads a checkpoint of full size, at a tiny one."
import json

import full_checkpoint
import pytest
import torch

from groot_cookbook.policy import PolicyConfig


def test_written_loaded_and_refused(tmp_path):
    assert full_checkpoint.main(["--size", "tiny", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "full_checkpoint_tiny.json").read_text())
    assert found["met"] and found["names_are_the_peers"] and found["files"] > 2 and {"command", "commit", "hardware", "date", "versions"} <= set(found)
    assert [(x["precision"], x["keys_equal"], x["not_read"]) for x in found["loads"]] == [(p, found["keys"] - 1, ["backbone.eagle_model.language_model.lm_head.weight"]) for p in ("bfloat16", "float32")]
    assert found["loads"][0]["resident_gb"] <= found["loads"][1]["resident_gb"]
    for mistake, told in {"one key less": "1 missing", "one key more": "1 unexpected", "another shape": "1 of another shape"}.items(): assert f": {told} (first" in found["refused"][mistake]


def test_a_tensor_that_is_not_what_was_written_is_noticed(tmp_path):
    prints = full_checkpoint.written(tmp_path, full_checkpoint.configured("tiny").to_upstream(), 200_000)
    prints["action_head.vlln.bias"] = full_checkpoint.print_of(torch.zeros(32, dtype=torch.bfloat16))
    assert "action_head.vlln.bias" in full_checkpoint.load(tmp_path, "bfloat16", prints)["not_read"]
    assert full_checkpoint.refused(tmp_path, lambda weights: None) == ""


@pytest.mark.parametrize("names", [["action_head.model.transformer_blocks.3.attn1.to_k.weight"], ["a.layers.1.W", "a.layers.2.W"]])
def test_names_are_told_apart_by_all_but_the_number_of_a_layer(names): assert len(full_checkpoint.forms(names)) == 1 and full_checkpoint.forms(names) != full_checkpoint.forms(["a.layer.1.W"])


def test_upstreams_own_config_is_the_default_and_holds_nothing_of_ours():
    assert PolicyConfig.from_upstream(full_checkpoint.UPSTREAM) == PolicyConfig() and "eagle_cfg" not in full_checkpoint.UPSTREAM["backbone_cfg"]
