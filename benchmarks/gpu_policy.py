"""GR00T N1.5 (--n16: with N1.6's head) at full size on one CUDA GPU, random weights: eager, once per chunk, captured, compiled, in FP8, beside the peer. python benchmarks/gpu_policy.py

**It has run on one H200 as far as the captured graph** (data/results/latency_full.json); what comes after has run at a tiny size on a CPU (tests/test_gpu_policy.py).

Ways through the same policy on the same picture, words, state and noise, in one run; all must give the same chunk before any is believed:
    eager               every denoising step computed anew, keys, values and modulations too; the adapter once, as stock code does (in the stored run in every step)
    once per chunk      `inference.Chunk`: what depends on the scene or on the flow's time alone is computed once a chunk, or once for good
    CUDA graph          the same, captured once, replayed for every chunk
    compiled            the same, compiled stage by stage before it is captured: what `inference.ChunkEngine` does
    FP8                 the same with weights and activations of all wide layers in FP8
`end to end` begins with a uint8 picture and a state in the robot's units in main memory and ends with actions in the robot's units there.
With --peer FOLDER (where lerobot 0.4.4 and what it needs are installed) the peer gets the same weights and inputs in a process of its own, engine only.
Beside them the floors of this very machine: how fast it copies and multiplies, and what the bytes and operations of the chunk that is timed need at those rates.
Every row of an engine says what it was held to and whether that was met. Two and three views and batches are timed on the captured graph first, and then, while there is time, compiled.
Writes data/results/latency_SIZE.json with raw samples. Without CUDA it says so and leaves everything as it is.
"""
from __future__ import annotations

import argparse, copy, gc, json, os, shutil, subprocess, sys, tempfile, time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from bench import gpu_arguments, provenance, typed

from groot_cookbook import core
from groot_cookbook.action_head import ActionHeadConfig, step_times
from groot_cookbook.backbone import BackboneConfig, pixels, tiny_tokenizer
from groot_cookbook.benchmark import Latency, measure
from groot_cookbook.episodes import Normalizer
from groot_cookbook.export import lowered, settled
from groot_cookbook.inference import Chunk, ChunkEngine, Cost, captured, held
from groot_cookbook.policy import Embodiment, GrootPolicy, PolicyConfig, Processor

TAG, SLOT = "new_embodiment", 31
N16 = dict(max_action_dim=29, max_state_dim=29, use_alternate_vl_dit=True)                # N1.6's head, on N1.5's eyes: its own are not built here
TARGETS = {"compiled": 4.5, "FP8 compiled": 3.5, "compiled, 8 steps": 7.}       # ms, median from a picture to commands, N1.5 at full size with one view
PEER = 7.                                                                         # times as fast as the peer's compiled path, engine against engine
SENTENCE = "pick up the red block and place it in the left bin"


def configured(size: str) -> PolicyConfig:
    "The 3B model, the same with N1.6's head, or something of its shape for a test; all read with the tiny tokenizer, which knows one picture token."
    told = dict(image_token="<image>", image_token_index=1, view="{patches}", template="{images}" + "the robot will " * 12 + "{instruction}")
    if size == "full": return PolicyConfig(BackboneConfig(**told))
    if size == "full_n16": return PolicyConfig(BackboneConfig(**told), ActionHeadConfig.from_upstream(N16 | {"diffusion_model_cfg": ActionHeadConfig().diffusion_model_cfg | {"num_layers": 32}}))
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=16)
    text = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16, vocab_size=600, max_position_embeddings=256,
                rope_theta=1e4, tie_word_embeddings=True)
    blocks = dict(num_layers=2, num_attention_heads=2, attention_head_dim=16, final_dropout=True, positional_embeddings=None)
    head = ActionHeadConfig(hidden_size=32, input_embedding_dim=32, backbone_embedding_dim=32, max_seq_len=64, diffusion_model_cfg=dict(**blocks, cross_attention_dim=32, output_dim=32, norm_type="ada_norm", interleave_self_attention=True),
                            vl_self_attention_cfg=blocks | {"num_layers": 1})
    if size == "tiny_n16": head = ActionHeadConfig.from_upstream(head.to_upstream() | N16 | {"action_dim": 29, "num_target_vision_tokens": 0, "vl_self_attention_cfg": None})
    return PolicyConfig(BackboneConfig(vision=vision, text=text, select_layer=1, **told), head)


def random_policy(size: str, device: torch.device) -> GrootPolicy:
    "Drawn weights, a tokenizer of few words, and a robot of GR-1's 26 driven joints."
    tokenizer, joints = tiny_tokenizer(), list(range(26))
    config = configured(size)
    around = Normalizer("min_max", -np.ones(26), np.ones(26))
    processor = Processor(config.backbone, tokenizer, {TAG: Embodiment(TAG, {"body": joints}, {"body": joints}, around, around)}, config.action_head.max_state_dim, config.action_head.action_dim)
    torch.manual_seed(0)
    with device: policy = GrootPolicy(config, processor).eval()
    for p in policy.parameters():
        if p.ndim > 1: p.data.normal_(0, p.shape[-1] ** -.5 if p.ndim < 3 else p.shape[-2] ** -.5)     # signals keep their size through all layers
    return policy.requires_grad_(False)


def anew(policy: GrootPolicy, picture: Tensor, ids: Tensor, mask: Tensor, state: Tensor, noise: Tensor, steps: int | None = None) -> Tensor:
    "A chunk as stock code makes it, from what `Chunk.watch` takes: the adapter once, everything else in every step."
    dtype, robot = policy.action_head.vlln.weight.dtype, torch.full((len(ids),), SLOT, device=ids.device)
    features, x, times = policy.encode(pixels(picture, policy.config.backbone).to(dtype), ids, mask), noise.to(dtype), step_times(policy.config.action_head, steps)
    images, head = policy.patches(ids), policy.action_head
    context = head.adapted(features, mask)
    for t in times: x = x + head.velocity(head.model.keys_values(context), mask, state.to(dtype), x, torch.full((len(ids),), t, device=ids.device), robot, images=images)[0] / len(times)
    return x.float()


def alike(a: Tensor, b: Tensor) -> float: return torch.nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), 0).item()


def asked_of(chunk: Chunk, inputs: list[Tensor]) -> Cost:
    "What a chunk has to read and to multiply, counted while it runs, before anything is compiled."
    with Cost(chunk) as asked: chunk(pixels(inputs[0], chunk.config.backbone), *inputs[1:])
    return asked


def floors(device: torch.device, dtype: torch.dtype, side: int) -> dict[str, float]:
    "What this machine reaches in this run: GB/s of a copy, read and written, and TFLOPS of a square product."
    a, b = torch.empty(side * side * 16, dtype=dtype, device=device), torch.randn(2, side, side, device=device).to(dtype)
    copy, multiply = measure(lambda: a.clone(), "copy", "floor", 30), measure(lambda: b[0] @ b[1], "product", "floor", 30)
    return {"gb_s": 2 * a.nbytes / copy.percentile(50) / 1e6, "tflops": 2 * side ** 3 / multiply.percentile(50) / 1e9}


def wall(asked: Cost, device: torch.device, dtype: torch.dtype, side: int) -> dict[str, float]:
    "The least time that what is `asked` can take at the rates this machine reaches."
    reached, gigabytes, teraflop = floors(device, dtype, side), asked.read / 1e9, asked.flop / 1e12
    return reached | {"gigabytes": gigabytes, "teraflop": teraflop, "floor_ms": max(gigabytes / reached["gb_s"], teraflop / reached["tflops"]) * 1e3}


def given(policy: GrootPolicy, rows: int = 1, views: int = 1, seed: int = 0) -> tuple[np.ndarray, list[str], np.ndarray]:
    "Pictures, sentences and states as a robot would send them."
    rng, side = np.random.default_rng(seed), policy.config.backbone.image_size
    return rng.integers(0, 256, (rows, views, side, side, 3), np.uint8), [SENTENCE] * rows, rng.uniform(-1, 1, (rows, 26)).astype(np.float32)


class Bench:
    "Rows of one run, each printed as it is made; a way whose answer differs from eager's is refused and gets none."
    def __init__(self, policy: GrootPolicy, n: int, deadline: float, out: Path):
        self.policy, self.n, self.deadline, self.out, self.rows, self.wants, self.refused = policy, n, deadline, out, [], {}, {}
        self.targets, self.floors = {}, {}
        self.cuda = policy.device.type == "cuda"

    def late(self, what: str) -> bool:
        if late := time.monotonic() > self.deadline: print(f"no time left for: {what}", flush=True)
        return late

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        "A way that fails, or whose answer is not believed, is named and costs no other its row."
        try: yield
        except (core.CookbookError, RuntimeError, OSError) as e:
            self.refused[what] = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"
            print(f"{what}: {self.refused[what]}", flush=True)

    def row(self, taken: Latency, **more) -> None:
        self.rows.append(taken.summary() | more)
        core.write_json(self.out / "rows_so_far.json", {"rows": self.rows, "refused": self.refused, "floors": self.floors})
        about = "  ".join(f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}" for k, v in more.items())
        print(f"{taken.backend:28} {taken.scope:11} p50 {taken.percentile(50):9.3f} ms  p99 {taken.percentile(99):9.3f}  {about}", flush=True)

    def want(self, inputs: list[Tensor], steps: int | None = None) -> Tensor:
        "What float32 eager says, computed once."
        key = (steps, *(x.shape for x in inputs))
        if key not in self.wants: self.wants[key] = anew(self.policy, *inputs, steps=steps)
        return self.wants[key]

    def agreement(self, got: Tensor, inputs: list[Tensor], name: str, at_least: float = .998, steps: int | None = None) -> dict[str, float]:
        "How near to float32 eager: the chunk, and by the stricter measure, which decides, what was added to the noise; `size_of_movement` should be 1."
        want = self.want(inputs, steps)
        moved, wanted = got - inputs[-1], want - inputs[-1]
        found = {"cosine": alike(got, want), "cosine_of_movement": alike(moved, wanted), "size_of_movement": (moved.norm() / wanted.norm()).item()}
        if not found["cosine_of_movement"] >= at_least: raise core.CookbookError(f"{name} says something else than eager (cosine {found['cosine_of_movement']:.5f})", "gpu_policy", "Its speed means nothing; find the step that differs")
        return found

    def judged(self, taken: Latency, found: dict) -> dict:
        "What a row is held to, and whether it was met."
        p50, p99 = taken.percentile(50), taken.percentile(99)
        wanted = {"p99 at most 1.2 times the median": p99 <= 1.2 * p50}
        if taken.scope == "end to end" and (limit := self.targets.get(taken.backend)): wanted[f"median at most {limit} ms"] = p50 <= limit
        if "cosine_to_bf16" in found: wanted["cosine to bf16 on the same noise at least 0.999"] = found["cosine_to_bf16"] >= .999
        return {"target": "; ".join(wanted), "met": all(wanted.values())}

    def engine(self, name: str, call: Callable, inputs: list[Tensor], n: int | None = None, at_least: float = .998, steps: int | None = None, **more) -> dict[str, float]:
        found = self.agreement(call(*inputs).clone(), inputs, name, at_least, steps)
        taken = measure(lambda: call(*inputs), name, "engine", n or self.n)
        self.row(taken, **found, **more, **self.judged(taken, more))
        return found

    def end_to_end(self, name: str, engine: ChunkEngine, seen: tuple, n: int, warmup: int = 20, **more) -> None:
        generator, (pictures, said, state) = torch.Generator().manual_seed(0), seen
        taken = measure(lambda: engine.predict(pictures, said, state, generator), name, "end to end", n, warmup)
        one = self.judged(taken, more) if pictures.shape[:2] == (1, 1) else {}                  # other shapes have no target
        self.row(taken, rows=len(pictures), views=pictures.shape[1], chunks_a_second=len(pictures) / taken.percentile(50) * 1e3, **more, **one)


def profiled(call: Callable, path: Path) -> None:
    "Which kernels one call spends its time in."
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(5): call()
        torch.cuda.synchronize()
    averages = sorted((e for e in seen.key_averages() if e.self_device_time_total > 0), key=lambda e: -e.self_device_time_total)      # kernels and copies, not the calls that asked for them
    path.write_text("\n".join(f"{e.self_device_time_total / 5:9.1f} us {e.count / 5:7.1f} x {e.key[:150]}" for e in averages))
    print(f"kernels: {sum(e.self_device_time_total for e in averages) / 5e3:.3f} ms in {sum(e.count for e in averages) / 5:.0f} launches; the largest\n" + "\n".join(path.read_text().splitlines()[:14]), flush=True)


def beside_the_peer(bench: Bench, inputs: list[Tensor], peer: str) -> None:
    "lerobot's N1.5 in a process of its own: the same weights, inputs and noise; what it had measured when its time was over counts."
    backbone = bench.policy.config.backbone
    weights = {k: v.to(torch.bfloat16 if bench.cuda else v.dtype).cpu().contiguous() for k, v in bench.policy.state_dict().items() if "lm_head" not in k}
    roomy = Path("/dev/shm").is_dir() and shutil.disk_usage("/dev/shm").free > 1.1 * sum(w.nbytes for w in weights.values())
    with tempfile.TemporaryDirectory(dir="/dev/shm" if roomy else None) as folder:
        save_file(weights, f"{folder}/weights.safetensors")
        picture, ids, mask, state, noise = (x.cpu() for x in inputs)
        save_file(dict(pixels=pixels(picture, backbone).contiguous(), ids=ids, mask=mask, state=state, noise=noise), f"{folder}/given.safetensors")
        Path(folder, "about.json").write_text(json.dumps({"vision": backbone.vision, "text": backbone.text, "select_layer": backbone.select_layer, "image_token_index": backbone.image_token_index,
                                                          "head": bench.policy.config.action_head.to_upstream(), "slot": SLOT, "n": bench.n, "device": bench.policy.device.type}))
        command, env = [sys.executable, str(HERE / "gpu_peer.py"), folder], os.environ | {"PYTHONPATH": peer, "HF_HUB_OFFLINE": "1"}
        with bench.trying("the peer, to its end"):
            try: done = subprocess.run(command, env=env, text=True, capture_output=True, timeout=min(1e6, max(60., bench.deadline - time.monotonic())))
            except subprocess.TimeoutExpired as e: raise core.CookbookError("the time was over", "the peer", "Give more --seconds") from e
            if done.returncode:
                print(done.stderr[-3000:], flush=True)
                raise core.CookbookError(f"ended with {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}", "the peer")
        if not Path(folder, "peer.json").is_file(): return
        found, made = json.loads(Path(folder, "peer.json").read_text()), load_file(f"{folder}/made.safetensors")
        for name, samples in found["rows"].items():
            with bench.trying(f"peer {name}"): bench.row(Latency(f"peer {name}", "engine", tuple(samples)), **bench.agreement(made[name].to(inputs[-1].device), inputs, f"peer {name}", .99), versions=found["versions"])


def made_ready(engine: ChunkEngine, seen: tuple, name: str) -> float:
    "Seconds until everything is compiled and captured, before the first picture is there."
    started, (pictures, said, _) = time.monotonic(), seen
    engine.ready(said, pictures.shape[2:4], pictures.shape[1])
    print(f"{name} after {(made := round(time.monotonic() - started, 1)):.0f} s", flush=True)
    return made


@torch.no_grad()                          # not inference_mode: under it `Cost` sees linear layers whole and counts no products
def run(size: str, device: torch.device, n: int, side: int, compiled: bool, seconds: float, peer: str, out: Path, tuned: bool = False) -> dict:
    "Every way in one run, its agreement with eager, and the floors."
    began, policy, precision = time.monotonic(), random_policy(size, device), "bf16" if device.type == "cuda" else "fp32"
    bench, seen = Bench(policy, n, began + seconds, out), given(policy)
    peak = lambda: {"peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2)} if bench.cuda else {}
    found: dict = {}
    quick = ChunkEngine(policy, TAG, precision, compiled, tuned)
    inputs = quick.inputs(*seen, torch.Generator().manual_seed(0))
    if size == "full": bench.targets = TARGETS
    sixteen = quick.chunk.watch(*inputs)
    bench.floors = wall(asked_of(quick.chunk, inputs), device, quick.chunk.future.dtype, side)
    bench.engine("eager, float32", lambda *x: anew(policy, *x), inputs, min(n, 20))
    with bench.trying("eager"): bench.engine("eager", partial(anew, lowered(settled(policy, SLOT), quick.chunk.future.dtype)), inputs, min(n, 50))
    with bench.trying("once per chunk"): bench.engine("once per chunk", quick.chunk.watch, inputs, min(n, 50))
    if bench.cuda:
        with bench.trying("CUDA graph"): bench.engine("CUDA graph", captured(quick.chunk.watch, inputs), inputs)
    with bench.trying("compiled"):
        made = made_ready(quick, seen, "compiled")
        bench.engine("compiled", quick.run, inputs, seconds_to_make=made)
        bench.end_to_end("compiled", quick, seen, max(n, 1000) if bench.cuda else n)
        if bench.cuda: profiled(lambda: quick.run(*inputs), out / "kernels_bf16.txt")
    if bench.cuda and not bench.late("FP8"):
        with bench.trying("FP8 compiled"):
            low = ChunkEngine(policy, TAG, "fp8", compiled, tuned)
            low.calibrate([given(policy, seed=s) for s in range(1, 9)])
            found["gigabytes_fp8"] = asked_of(low.chunk, inputs).read / 1e9
            made = made_ready(low, seen, "FP8 compiled")
            bench.engine("FP8 compiled", low.run, inputs, at_least=.9, cosine_to_bf16=alike(low.run(*inputs), sixteen), seconds_to_make=made)
            bench.end_to_end("FP8 compiled", low, seen, 1000)
            profiled(lambda: low.run(*inputs), out / "kernels_fp8.txt")
            found["weights_gb"] = {"bf16": held(quick.chunk) / 1e9, "fp8": held(low.chunk) / 1e9}
    if bench.cuda and not bench.late("8 steps"):
        with bench.trying("compiled, 8 steps"):
            eight = ChunkEngine(policy, TAG, precision, compiled, tuned, steps=8)
            made_ready(eight, seen, "compiled, 8 steps")
            bench.end_to_end("compiled, 8 steps", eight, seen, n, **bench.engine("compiled, 8 steps", eight.run, inputs, steps=8))
    if peer and not size.endswith("n16") and not bench.late("the peer"):
        with bench.trying("the peer"): beside_the_peer(bench, inputs, peer)
        medians = {r["backend"]: r["p50"] for r in bench.rows if r["scope"] == "engine"}
        if {"compiled", "peer DiT compiled"} <= set(medians):
            times = medians["peer DiT compiled"] / medians["compiled"]
            found["beside_the_peer"] = {"times_as_fast": times, "target": f"at least {PEER:g} times as fast as the peer's compiled path", "met": times >= PEER}
    if bench.cuda:
        low = eight = None
        plain = copy.copy(quick)                                     # other shapes without waiting for the compiler
        plain.compiled, plain.graphs, quick.graphs = False, {}, {}
        for stage in plain.chunk.stages: stage._compiled_call_impl = None
        shapes = []
        for rows, views in ((1, 1), (1, 2), (1, 3), (8, 1), (32, 1), (128, 1)):
            plain.processor.length, plain.said = None, {}            # as long as these words need, not as the ones before
            shapes.append((rows, views, plain.inputs(*given(policy, rows, views), torch.Generator().manual_seed(0))))
            bench.want(shapes[-1][2])
        policy.to("meta")                                            # from here on only what serves is on the GPU
        torch._dynamo.reset(); gc.collect(); torch.cuda.empty_cache()
        for way, engine, some in (("CUDA graph", plain, shapes), ("compiled", quick, shapes[1:] if compiled and not tuned else [])):       # the sure way first
            for rows, views, x in some:
                if bench.late(name := f"{way}, {rows} rows of {views} views"): break
                torch.cuda.reset_peak_memory_stats()
                engine.processor.length, engine.said, engine.graphs = None, {}, {}
                with bench.trying(name): bench.end_to_end(way, engine, given(policy, rows, views), 100 if rows == 1 else 20, 3, **bench.agreement(engine.run(*x), x, name), **peak())
    return {"rows": bench.rows, "refused": bench.refused, **found, "floors": bench.floors, "tokens": inputs[1].shape[1], "denoising_steps": len(step_times(policy.config.action_head)), "seconds": round(time.monotonic() - began, 1)}


def main(argv: list[str] | None = None) -> int:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--n", type=int, default=200)
        parser.add_argument("--n16", action="store_true", help="N1.6's head in place of N1.5's: 32 blocks, words and pictures in turn; without the peer")
        parser.add_argument("--no-compile", action="store_true")
        parser.add_argument("--tuned", action="store_true", help="let the compiler try kernels for every shape: about 25 s each")
        parser.add_argument("--side", type=int, default=8192, help="of the square matrices that find the machine's ceiling")
        parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing new after so many")
        parser.add_argument("--peer", default="", help="folder where lerobot 0.4.4 is installed with what it needs")

    args = gpu_arguments(__doc__.splitlines()[0], argv, add)
    if args is None: return 0
    size = args.size + "_n16" * args.n16
    about = provenance(f"latency_{size}", __doc__.splitlines()[0], typed("gpu_policy.py", argv), torch.get_num_threads())
    if args.commit: about["commit"] = args.commit
    found = run(size, torch.device(args.device), args.n, args.side, not args.no_compile, args.seconds, args.peer, args.out, args.tuned)
    path = core.write_json(args.out / f"{about['name']}.json", about | found)
    print(f"floor {found['floors']['floor_ms']:.3f} ms at {found['floors']['gb_s']:.0f} GB/s and {found['floors']['tflops']:.0f} TFLOPS, measured here; wrote {path.name}")
    return 0


if __name__ == "__main__": sys.exit(main())
