"The benchmark of full-size dreams, its code path at a tiny size on a CPU; its speed there means nothing."
import json, subprocess, sys

import gpu_dreams
import pytest
import torch


def test_every_way_dreams_nearly_the_same_film(tmp_path):
    args = ["--size", "tiny", "--device", "cpu", "--films", "32x48x9", "--steps", "2", "--ways", "stock", "cuDNN attention", "half guided", "--out", str(tmp_path)]
    assert gpu_dreams.main(args) == 0
    (film,) = json.loads((tmp_path / "dream_throughput.json").read_text())["films"]
    rows = {r["backend"]: r for r in film["rows"]}
    assert (film["height"], film["width"], film["frames"]) == (32, 48, 9) and rows["stock"]["relative_difference"] == 0
    assert rows["cuDNN attention"]["relative_difference"] < 1e-5 and rows["half guided"]["relative_difference"] > 1e-3
    assert all(len(r["seconds"]) == 1 for r in film["rows"]) and film["decode_s"]["stock"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_without_a_gpu_it_says_so_and_leaves(tmp_path):
    done = subprocess.run([sys.executable, gpu_dreams.__file__, "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0 and "no CUDA GPU" in done.stdout and not list(tmp_path.iterdir())
