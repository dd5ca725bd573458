"The GPU benchmark's own code, at a tiny size on a CPU; its speed there means nothing."
import json, subprocess, sys

import gpu_policy
import pytest
import torch

from groot_cookbook import inference
from groot_cookbook.core import CookbookError


@pytest.mark.parametrize("more, name", [([], "latency_tiny"), (["--n16"], "latency_tiny_n16")])
def test_every_way_gives_the_same_chunk(tmp_path, more, name):
    assert gpu_policy.main(["--size", "tiny", "--device", "cpu", "--no-compile", "--n", "3", "--side", "64", "--out", str(tmp_path), *more]) == 0
    found = json.loads((tmp_path / f"{name}.json").read_text())
    engines = [r for r in found["rows"] if r["scope"] == "engine"]
    assert [r["backend"] for r in engines] == ["eager, float32", "eager", "once per chunk", "compiled"]
    assert all(len(r["samples_ms"]) == 3 and r["cosine_of_movement"] > .99999 for r in engines) and found["rows"][-1]["scope"] == "end to end"
    assert {"command", "commit", "hardware", "date", "versions"} <= set(found) and found["floors"]["floor_ms"] > 0


def test_a_way_that_says_something_else_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(inference.Chunk, "watch", lambda self, pictures, ids, mask, state, noise: -noise)
    with pytest.raises(CookbookError, match="says something else than eager"): gpu_policy.run("tiny", torch.device("cpu"), 1, 32, False, 1e9, "", tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_without_a_gpu_it_says_so_and_leaves(tmp_path):
    done = subprocess.run([sys.executable, gpu_policy.__file__, "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0 and "no CUDA GPU" in done.stdout and not list(tmp_path.iterdir())


def test_at_full_size_n16_is_n16():
    head = gpu_policy.configured("full_n16").action_head
    assert (head.diffusion_model_cfg["num_layers"], head.num_target_vision_tokens, head.vl_self_attention_cfg, head.action_dim) == (32, 0, None, 29) and head.use_alternate_vl_dit
