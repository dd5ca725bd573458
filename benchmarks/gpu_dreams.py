"""Dreams of Cosmos-Predict2.5-2B's shape on one CUDA GPU, random weights: diffusers' stock pipeline beside ways to be faster. python benchmarks/gpu_dreams.py

Each way dreams the same film in the same run, from the same noise, prompt embeddings given (so the text encoder is no part of it), few steps; every step costs the same.
    stock               Cosmos2_5_PredictBasePipeline as it comes, bfloat16
    cuDNN attention     the same, its attention by cuDNN first (where PyTorch takes cuDNN first of itself, as newer ones do on Hopper, this is stock again)
    guidance batched    that, both passes of guidance as one pass of two films
    compiled            cuDNN attention, its blocks compiled
    FP8                 that, its blocks' linear layers in FP8 (`inference.Linear8`, a scale for each row)
    half guided         that, with guidance in the first half of the steps only
The film is decoded once as it comes, once in tiles and once compiled. There is no way of CUDA graphs: chapter 02 counts that launches are not what takes the time.
Says how far each film is from the stock one, which for drawn weights is what rounding and skipping change, not what a viewer would see.
Writes data/results/dream_throughput.json. Without CUDA it says so and leaves everything as it is.
"""
from __future__ import annotations

import argparse, gc, sys, time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from bench import gpu_arguments, provenance, typed

from groot_cookbook import core
from groot_cookbook.core import torchvision_ready

torchvision_ready()
from diffusers import AutoencoderKLWan, CosmosTransformer3DModel, Cosmos2_5_PredictBasePipeline, UniPCMultistepScheduler
from PIL import Image

from groot_cookbook.benchmark import measure
from groot_cookbook.dreaming import OwnWeightsChecker
from groot_cookbook.inference import Linear8, replace_linear

SHAPES = {"full": dict(num_attention_heads=16, attention_head_dim=128, num_layers=28, adaln_lora_dim=256, text_embed_dim=1024, crossattn_proj_in_channels=100352),
          "tiny": dict(num_attention_heads=2, attention_head_dim=32, num_layers=2, adaln_lora_dim=16, text_embed_dim=64, crossattn_proj_in_channels=128)}


def drawn_pipeline(size: str, device: torch.device, dtype: torch.dtype) -> Cosmos2_5_PredictBasePipeline:
    "The real classes around drawn weights; no text encoder, for embeddings are given."
    torch.manual_seed(0)
    width = SHAPES[size]["text_embed_dim"]
    with device:
        transformer = CosmosTransformer3DModel(in_channels=17, out_channels=16, mlp_ratio=4., rope_scale=(1., 3., 3.), extra_pos_embed_type=None, use_crossattn_projection=True,
                                               encoder_hidden_states_channels=width, **SHAPES[size]).to(dtype).eval()
        vae = AutoencoderKLWan(**({} if size == "full" else dict(base_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1))).to(dtype).eval()
    scheduler = UniPCMultistepScheduler(use_karras_sigmas=True, use_flow_sigmas=True, prediction_type="flow_prediction", sigma_max=200., sigma_min=.01)
    pipe = Cosmos2_5_PredictBasePipeline(text_encoder=None, tokenizer=None, transformer=transformer, vae=vae, scheduler=scheduler, safety_checker=OwnWeightsChecker())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def guided_at_once(pipe, unsaid: torch.Tensor):
    "Guidance asks with the sentence, then without: here the first pass answers both, and the second is handed what was kept."
    forward, kept = pipe.transformer.forward, []

    def both(**asked):
        if kept: return (kept.pop(),)
        if pipe.do_classifier_free_guidance:
            also = asked | {"encoder_hidden_states": unsaid}
            asked |= {k: torch.cat([asked[k], also[k]]) for k in ("hidden_states", "timestep", "encoder_hidden_states", "condition_mask")}
        (said,) = forward(**asked)
        kept.extend(said[1:].split(1))
        return (said[:1],)

    pipe.transformer.forward = both
    try: yield
    finally: del pipe.transformer.forward


def unguided_after(share: float, steps: int) -> Callable:
    "A callback that switches guidance off once so many of the steps are done."
    def switch(pipe, step: int, t, held: dict) -> dict:
        if step + 1 >= share * steps: pipe._guidance_scale = 1.
        return {}
    return switch


@torch.no_grad()
def run(size: str, device: torch.device, height: int, width: int, frames: int, steps: int, n: int, ways: list[str], keep: Callable[[dict], None], until: float = float("inf")) -> dict:
    "A film's rows, handed to `keep` as they are made; nothing new is begun after `until`."
    cuda, dtype = device.type == "cuda", torch.bfloat16 if device.type == "cuda" else torch.float32
    pipe = drawn_pipeline(size, device, dtype)
    random, channels = torch.Generator(device).manual_seed(0), SHAPES[size]["crossattn_proj_in_channels"]
    said, unsaid = (torch.randn(1, 512 if size == "full" else 8, channels, generator=random, device=device).to(dtype) for _ in range(2))
    seed_image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    rows, stock, decoded, needed = [], None, {}, {}
    film_of = lambda: {"height": height, "width": width, "frames": frames, "steps": steps, "rows": rows, "decode_s": decoded, "decode_peak_gb": needed}

    def dreamed(share: float, steps: int = steps) -> torch.Tensor:
        return pipe(image=seed_image, prompt_embeds=said, negative_prompt_embeds=unsaid, height=height, width=width, num_frames=frames, num_inference_steps=steps, guidance_scale=7., output_type="latent",
                    generator=torch.Generator("cpu").manual_seed(1), callback_on_step_end=unguided_after(share, steps)).frames

    def peak() -> float | None: return round(torch.cuda.max_memory_allocated() / 1e9, 2) if cuda else None

    def seconds(call: Callable, n: int = 1, warmup: int = 0) -> list[float]: return [ms / 1e3 for ms in measure(call, "dream", "film", n, warmup).samples_ms]

    from torch.nn.attention import SDPBackend, sdpa_kernel
    attention = nullcontext
    for way in ways:
        if time.monotonic() > until: print(f"no time left for {way}", flush=True); break
        share = .5 if way == "half guided" else 1.
        if way == "cuDNN attention" and cuda: attention = lambda: sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH], set_priority=True)
        if way == "FP8": replace_linear(pipe.transformer.transformer_blocks, lambda name, layer: layer.in_features % 16 == 0 and layer.out_features % 16 == 0 and ("attn" in name or "ff" in name), lambda name, layer: Linear8(layer))
        if way in ("compiled", "FP8"):
            torch._dynamo.reset()
            for block in pipe.transformer.transformer_blocks: block.compile(dynamic=False)
        if cuda: torch.cuda.reset_peak_memory_stats()
        with attention(), guided_at_once(pipe, unsaid) if way == "guidance batched" else nullcontext():
            (warm,), (few,) = seconds(lambda: dreamed(share, 2)), seconds(lambda: dreamed(1., 1))
            films: list[torch.Tensor] = []
            taken = seconds(lambda: films.append(dreamed(share)), n)
        film = torch.as_tensor(films[-1]).float().cpu()
        once = float(np.median(taken))
        stock = film if stock is None else stock
        cosine = torch.nn.functional.cosine_similarity(film.flatten().double(), stock.flatten().double(), 0).item()
        step = (once - few) / (steps - 1) if steps > 1 else once              # `few` is what is done once, and one step
        if share < 1 and rows: step = (once - few + rows[-1]["seconds_per_step"]) / steps       # its steps differ, and `few` has a guided one, as the way before has
        row = {"backend": way, "seconds": taken, "seconds_per_step": step, "first_call_s": round(warm, 1), "cosine_to_stock": cosine,
               "relative_difference": ((film - stock).norm() / stock.norm()).item(), "peak_gb": peak()}
        rows.append(row)
        keep(film_of())
        print(f"{way:16} {once:8.2f} s for {steps} steps, {row['seconds_per_step']:.3f} s a step, {rows[0]['seconds_per_step'] / row['seconds_per_step']:.2f} x stock, cosine {cosine:.5f}, first call {warm:.0f} s", flush=True)
    latents = torch.randn(1, 16, (frames - 1) // 4 + 1, height // 8, width // 8, device=device, dtype=dtype)
    for name in ("stock", "tiled", "compiled"):                 # last: its compiler takes longest, for three kinds of cache
        if time.monotonic() > until: print(f"no time left for decoding {name}", flush=True); break
        if name == "compiled" and not cuda: break
        if name == "tiled": pipe.vae.enable_tiling()
        if name == "compiled": pipe.vae.use_tiling = False; pipe.vae.decoder.compile(dynamic=False)
        if cuda: torch.cuda.reset_peak_memory_stats()
        (decoded[name],), needed[name] = seconds(lambda: pipe.vae.decode(latents), warmup=1), peak()
        keep(film_of())
        print(f"decoding {name}: {decoded[name]:.2f} s", flush=True)
    return film_of()


def main(argv: list[str] | None = None) -> int:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--films", nargs="+", default=["480x832x93", "704x1280x93"], help="height x width x frames")
        parser.add_argument("--steps", type=int, default=4)
        parser.add_argument("--n", type=int, default=1)
        parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing new after so many")
        parser.add_argument("--ways", nargs="+", default=["stock", "cuDNN attention", "guidance batched", "compiled", "FP8", "half guided"])

    args = gpu_arguments(__doc__.splitlines()[0], argv, add)
    if args is None: return 0
    about = provenance("dream_throughput", __doc__.splitlines()[0], typed("gpu_dreams.py", argv), torch.get_num_threads())
    if args.commit: about["commit"] = args.commit
    done, until = [], time.monotonic() + args.seconds
    keep = lambda film: core.write_json(args.out / "dream_throughput.json", about | {"films": [*done, film]})
    for film in args.films:
        print(film, flush=True)
        done.append(run(args.size, torch.device(args.device), *map(int, film.split("x")), args.steps, args.n, args.ways, keep, until))
        torch._dynamo.reset(); gc.collect()                     # a compiled film's weights would be counted with the next one's
        if torch.cuda.is_available(): torch.cuda.empty_cache()
    return 0


if __name__ == "__main__": sys.exit(main())
