"The GPU benchmark's own code, at a tiny size on a CPU; its speed there means nothing."
import json, subprocess, sys

import gpu_policy
import pytest
import torch

from groot_cookbook import inference
from groot_cookbook.benchmark import Latency, measure


@pytest.mark.parametrize("more, name", [([], "latency_tiny"), (["--n16"], "latency_tiny_n16")])
def test_every_way_gives_the_same_chunk(tmp_path, more, name):
    assert gpu_policy.main(["--size", "tiny", "--device", "cpu", "--no-compile", "--n", "3", "--side", "64", "--out", str(tmp_path), *more]) == 0
    found = json.loads((tmp_path / f"{name}.json").read_text())
    engines = [r for r in found["rows"] if r["scope"] == "engine"]
    assert [r["backend"] for r in engines] == ["eager, float32", "eager", "once per chunk", "compiled"]
    assert all(len(r["samples_ms"]) == 3 and r["cosine_of_movement"] > .99999 for r in engines) and found["rows"][-1]["scope"] == "end to end"
    assert {"command", "commit", "hardware", "date", "versions"} <= set(found) and all(r["target"] == "p99 at most 1.2 times the median" and r["met"] == (r["p99"] <= 1.2 * r["p50"]) for r in engines)
    floors = found["floors"]
    assert floors["floor_ms"] == pytest.approx(1e3 * max(floors["gigabytes"] / floors["gb_s"], floors["teraflop"] / floors["tflops"])) and floors["teraflop"] > 0


def test_a_way_that_says_something_else_is_refused_and_costs_no_other_its_row(monkeypatch, tmp_path):
    monkeypatch.setattr(inference.Chunk, "watch", lambda self, pictures, ids, mask, state, noise: -noise)
    found = gpu_policy.run("tiny", torch.device("cpu"), 1, 32, False, 1e9, "", tmp_path)
    assert set(found["refused"]) == {"once per chunk", "compiled"} and all("says something else than eager" in why for why in found["refused"].values())
    assert {r["backend"] for r in found["rows"]} == {"eager, float32", "eager"} and found["floors"]["floor_ms"] > 0


@pytest.mark.parametrize("size, compiled", [("tiny", False), ("tiny", True), ("tiny_n16", False)])
def test_what_only_a_gpu_is_asked_runs_in_its_order(monkeypatch, tmp_path, size, compiled):
    "On a CPU that is taken for a GPU, without graphs, a compiler or a profiler: every shape is held against eager, after the policy has left."
    begin = gpu_policy.Bench.__init__
    def taken_for_a_gpu(self, *args): begin(self, *args); self.cuda = True
    monkeypatch.setattr(gpu_policy.Bench, "__init__", taken_for_a_gpu)
    monkeypatch.setattr(gpu_policy, "captured", lambda call, inputs: call)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: None)
    monkeypatch.setattr(gpu_policy, "profiled", lambda call, path: call())
    monkeypatch.setattr(gpu_policy, "measure", lambda call, backend, scope, n=1, warmup=0: measure(call, backend, scope, 1, 0))
    for name in ("reset_peak_memory_stats", "max_memory_allocated"): monkeypatch.setattr(torch.cuda, name, lambda: 0)
    found = gpu_policy.run(size, torch.device("cpu"), 1, 32, compiled, 1e9, "", tmp_path)
    ends = [r for r in found["rows"] if r["scope"] == "end to end"]
    shapes = [(1, 1), (1, 2), (1, 3), (8, 1), (32, 1), (128, 1)]
    assert not found["refused"] and [(r["backend"], r["rows"], r["views"]) for r in ends[3:]] == [("CUDA graph", *s) for s in shapes] + [("compiled", *s) for s in shapes[1:] if compiled]
    assert [r["backend"] for r in ends[:3]] == ["compiled", "FP8 compiled", "compiled, 8 steps"] and all(r["cosine_of_movement"] > .9999 for r in ends[2:])
    eight, = (r for r in found["rows"] if r["backend"] == "FP8 compiled" and r["scope"] == "engine")
    assert eight["cosine_to_bf16"] > .99 and "cosine to bf16" in eight["target"] and eight["met"] <= (eight["cosine_to_bf16"] >= .999)
    assert found["gigabytes_fp8"] < found["floors"]["gigabytes"] and found["weights_gb"]["fp8"] < found["weights_gb"]["bf16"]


@pytest.mark.parametrize("samples, more, met", [([4.] * 100, {}, True), ([4.6] * 100, {}, False), ([4.] * 90 + [5.] * 10, {}, False), ([4.] * 9, {"cosine_to_bf16": .9995}, True), ([4.] * 9, {"cosine_to_bf16": .99}, False)])
def test_a_row_says_what_it_was_held_to(tmp_path, samples, more, met):
    bench = gpu_policy.Bench(gpu_policy.random_policy("tiny", torch.device("cpu")), 1, 1e9, tmp_path)
    bench.targets = gpu_policy.TARGETS
    found = bench.judged(Latency("compiled", "end to end", tuple(samples)), more)
    assert found["met"] == met and "median at most 4.5 ms" in found["target"] and ("cosine" in found["target"]) == bool(more)
    assert "median" not in bench.judged(Latency("compiled", "engine", tuple(samples)), more)["target"].replace("times the median", "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_without_a_gpu_it_says_so_and_leaves(tmp_path):
    done = subprocess.run([sys.executable, gpu_policy.__file__, "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0 and "no CUDA GPU" in done.stdout and not list(tmp_path.iterdir())


def test_at_full_size_n16_is_n16():
    head = gpu_policy.configured("full_n16").action_head
    assert (head.diffusion_model_cfg["num_layers"], head.num_target_vision_tokens, head.vl_self_attention_cfg, head.action_dim) == (32, 0, None, 29) and head.use_alternate_vl_dit
