"The GPU benchmark's own code, at a tiny size on a CPU; its speed there means nothing."
import json, subprocess, sys

import gpu_policy
import pytest
import torch

from groot_cookbook.core import CookbookError


def test_every_way_gives_the_same_chunk(tmp_path):
    assert gpu_policy.main(["--size", "tiny", "--device", "cpu", "--precision", "fp32", "--no-compile", "--n", "3", "--side", "64", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "latency_tiny_fp32.json").read_text())
    assert [r["backend"] for r in found["rows"]] == ["eager", "once per chunk"] and all(len(r["samples_ms"]) == 3 and r["cosine"] > .99999 for r in found["rows"])
    assert {"command", "commit", "hardware", "date", "versions"} <= set(found) and found["floors"]["floor_ms"] > 0


def test_a_way_that_says_something_else_is_an_error(monkeypatch):
    monkeypatch.setattr(gpu_policy.OncePerChunk, "forward", lambda self, pixels, ids, state, noise: -noise)
    with pytest.raises(CookbookError, match="says something else than eager"): gpu_policy.run("tiny", "fp32", torch.device("cpu"), 1, False, 32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_without_a_gpu_it_says_so_and_leaves(tmp_path):
    done = subprocess.run([sys.executable, gpu_policy.__file__, "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0 and "no CUDA GPU" in done.stdout and not list(tmp_path.iterdir())
