"""GR00T N1.5 at full size on one CUDA GPU, random weights: eager, once per chunk, captured, compiled. python benchmarks/gpu_policy.py

**It has not been run on a GPU yet**; its code path has, at a tiny size on a CPU (tests/test_gpu_policy.py: the same ways but the captured graph).

Four ways through the same policy, on the same picture, words, state and noise, in one run; all must give the same chunk before any is believed:
    eager               every denoising step computed anew, adapter, keys, values and modulations too, as stock code does
    once per chunk      what depends on the scene or on the flow's time alone is computed once a chunk, or once for good
    CUDA graph          the same, captured once, replayed for every chunk
    compiled            the same through torch.compile, which captures it too
Beside them the floors of this very machine: how fast it copies and multiplies, and what the chunk's bytes and operations need at those rates.
Writes data/results/latency_SIZE_PRECISION.json with raw samples. Without CUDA it says so and leaves everything as it is.
"""
from __future__ import annotations

import argparse, datetime, sys, time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from bench import ROOT, commit, hardware

from groot_cookbook import core
from groot_cookbook.action_head import step_times
from groot_cookbook.benchmark import STEPS, measure, workload
from groot_cookbook.export import settled
from groot_cookbook.policy import GrootPolicy, PolicyConfig

TINY = dict(vision=dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16),
            text=dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16, vocab_size=128,
                      max_position_embeddings=128, rope_theta=1e4, tie_word_embeddings=True),
            select_layer=1, image_token_index=1)


def configured(size: str) -> PolicyConfig:
    "The 3B model, or something of its shape for a test."
    if size == "full": return PolicyConfig()
    from groot_cookbook.action_head import ActionHeadConfig
    from groot_cookbook.backbone import BackboneConfig
    blocks = dict(num_layers=2, num_attention_heads=2, attention_head_dim=16)
    head = ActionHeadConfig(hidden_size=32, input_embedding_dim=32, backbone_embedding_dim=32, max_seq_len=64, diffusion_model_cfg=dict(**blocks, cross_attention_dim=32, output_dim=32),
                            vl_self_attention_cfg=blocks | {"num_layers": 1})
    return PolicyConfig(BackboneConfig(**TINY), head)


class OncePerChunk(nn.Module):
    "Pixels, words, state and noise to a chunk, for one robot: modulations and masks made beforehand, keys and values once a chunk."
    def __init__(self, policy: GrootPolicy, mask: Tensor):   # settled; (1, L)
        super().__init__()
        head, device = policy.action_head, policy.device
        self.policy, times = policy, step_times(policy.config.action_head)
        every = head.model.modulations(torch.tensor(times, device=device))
        self.steps = [(torch.full((1,), t, device=device), [m[i: i + 1].clone() for m in every]) for i, t in enumerate(times)]
        self.mask, self.robot = mask, torch.zeros(1, dtype=torch.long, device=device)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, state: Tensor, noise: Tensor) -> Tensor:
        head, x = self.policy.action_head, noise
        keys_values = head.look(self.policy.encode(pixel_values, input_ids, self.mask), self.mask)
        for t, modulations in self.steps: x = x + head.velocity(keys_values, self.mask, state, x, t, self.robot, modulations)[0] / len(self.steps)
        return x


def anew(policy: GrootPolicy, mask: Tensor, pixel_values: Tensor, input_ids: Tensor, state: Tensor, noise: Tensor) -> Tensor:
    "The same chunk with everything computed in every step."
    features, robot, x = policy.encode(pixel_values, input_ids, mask), torch.zeros(1, dtype=torch.long, device=mask.device), noise
    times = step_times(policy.config.action_head)
    for t in times: x = x + policy.denoise_step(features, mask, state, robot, x, torch.full((1,), t, device=mask.device)) / len(times)
    return x


def captured(call: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[..., Tensor]:
    "One CUDA graph for the whole chunk: inputs are copied to where it reads them, and it is replayed."
    held, side = [x.clone() for x in inputs], torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3): call(*held)                       # whatever is chosen or allocated at first use is, before the capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph): out = call(*held)

    def replay(*inputs: Tensor) -> Tensor:
        for there, x in zip(held, inputs): there.copy_(x)
        graph.replay()
        return out.clone()

    return replay


def floors(device: torch.device, dtype: torch.dtype, n: int, side: int) -> dict[str, float]:
    "What this machine reaches in this run: GB/s of a copy, read and written, and TFLOPS of a square product."
    a, b = torch.empty(side * side * 16, dtype=dtype, device=device), torch.randn(2, side, side, device=device).to(dtype)
    copy, multiply = measure(lambda: a.clone(), "copy", "floor", n), measure(lambda: b[0] @ b[1], "product", "floor", n)
    return {"gb_s": 2 * a.nbytes / copy.percentile(50) / 1e6, "tflops": 2 * side ** 3 / multiply.percentile(50) / 1e9}


@torch.no_grad()                          # not inference_mode: under it `workload` sees linear layers whole and counts nothing
def run(size: str, precision: str, device: torch.device, n: int, compiled: bool, side: int) -> dict:
    "Every way in one run, its agreement with eager, and the floors."
    config, dtype = configured(size), {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    torch.manual_seed(0)
    with device: policy = settled(GrootPolicy(config).eval(), 0).to(dtype)
    backbone, head = config.backbone, config.action_head
    words = torch.full((1, 40), 2, device=device)
    ids = torch.cat([torch.full((1, backbone.tokens_per_view), backbone.image_token_index, device=device), words], 1)
    random = lambda *shape: torch.randn(*shape, device=device, dtype=dtype)
    inputs = [random(1, 3, backbone.image_size, backbone.image_size), ids, random(1, head.max_state_dim), random(1, head.action_horizon, head.action_dim)]
    mask, made = torch.ones_like(ids), time.perf_counter()
    once = OncePerChunk(policy, mask)
    ways: dict[str, Callable] = {"eager": lambda *x: anew(policy, mask, *x), "once per chunk": once}
    if device.type == "cuda": ways["CUDA graph"] = captured(once, inputs)
    if compiled: ways["compiled"] = torch.compile(once, mode="max-autotune" if device.type == "cuda" else None, fullgraph=True)
    want, rows = ways["eager"](*inputs).float(), []
    for name, way in ways.items():
        got = way(*inputs).float()
        cosine = torch.nn.functional.cosine_similarity(got.flatten(), want.flatten(), 0).item()
        if not cosine >= .999: raise core.CookbookError(f"{name} says something else than eager (cosine {cosine:.5f})", "gpu_policy", "Its speed means nothing; find the step that differs")
        rows.append({**measure(lambda: way(*inputs), name, "engine", n).summary(), "cosine": cosine, "max_abs_error": (got - want).abs().max().item()})
    found, work = floors(device, dtype, n, side), workload(config)
    times = {p: len(step_times(head)) if p in STEPS else 1 for p in work}
    gigabytes = sum(w.weights_m * times[p] for p, w in work.items()) * dtype.itemsize / 1e3
    teraflop = sum(w.gflop * times[p] for p, w in work.items()) / 1e3
    found |= {"gigabytes": gigabytes, "teraflop": teraflop, "floor_ms": max(gigabytes / found["gb_s"], teraflop / found["tflops"]) * 1e3}
    memory = {"peak_gb": torch.cuda.max_memory_allocated() / 1e9} if device.type == "cuda" else {}
    weights = sum(p.nbytes for p in policy.parameters()) / 1e9
    return {"rows": rows, "floors": found, "weights_gb": weights, **memory, "denoising_steps": len(step_times(head)), "seconds": round(time.perf_counter() - made, 1)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["full", "tiny"], default="full")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--side", type=int, default=8192, help="of the square matrices that find the machine's ceiling")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "results")
    args = parser.parse_args(argv)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("This machine has no CUDA GPU, so nothing was measured.")
        return 0
    found = run(args.size, args.precision, torch.device(args.device), args.n, not args.no_compile, args.side)
    about = {"name": f"latency_{args.size}_{args.precision}", "what": __doc__.splitlines()[0], "command": " ".join(["python benchmarks/gpu_policy.py", *(argv if argv is not None else sys.argv[1:])]),
             "commit": commit(), "hardware": hardware(torch.get_num_threads()), "date": datetime.date.today().isoformat(), "versions": {p: core.version(p) for p in core.VERSIONED if core.version(p)}}
    path = core.write_json(args.out / f"{about['name']}.json", about | found)
    for row in found["rows"]: print(f"{row['backend']:15} p50 {row['p50']:8.3f} ms   p99 {row['p99']:8.3f} ms   cosine {row['cosine']:.6f}")
    print(f"floor {found['floors']['floor_ms']:.3f} ms at {found['floors']['gb_s']:.0f} GB/s and {found['floors']['tflops']:.0f} TFLOPS, measured here; wrote {path.name}")
    return 0


if __name__ == "__main__": sys.exit(main())
