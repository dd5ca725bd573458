"""A checkpoint of GR00T N1.5 at full size and in upstream's layout, weights drawn, written and then loaded as a user loads NVIDIA's. python benchmarks/full_checkpoint.py

    written   upstream's config.json, with nothing of ours in it; bfloat16 weights in shards; their index; an output layer that nothing reads. The names of the keys
              are held against those that lerobot's N1.5 gave its own weights (tests/fixtures)
    loaded    by `GrootPolicy.from_pretrained`, in bfloat16 and in float32, each in a process of its own; every tensor is held against the hash it was written with
    refused   the same with one key less, one more, one of another shape
Writes data/results/full_checkpoint.json. Needs 8 GB of disk where temporary files go and 12 GB of memory; no GPU.
"""
from __future__ import annotations

import argparse, hashlib, json, os, re, shutil, subprocess, sys, tempfile, time, zlib
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from bench import ROOT, provenance, status_gb, typed
from gpu_policy import configured

from groot_cookbook import core
from groot_cookbook.backbone import UNREAD
from groot_cookbook.inference import held
from groot_cookbook.policy import GrootPolicy, PolicyConfig

BLOCKS = dict(dropout=.2, final_dropout=True, num_attention_heads=32, positional_embeddings=None)
UPSTREAM = dict(                                   # config.json of nvidia/GR00T-N1.5-3B, as far as it speaks of the model
    model_type="gr00t_n1_5", architectures=["GR00T_N1_5"], action_dim=32, action_horizon=16, hidden_size=2048, model_dtype="float32", torch_dtype="bfloat16", compute_dtype="bfloat16", transformers_version="4.51.3",
    backbone_cfg=dict(eagle_path="NVEagle/eagle_er-qwen3_1_7B-Siglip2_400M_stage1_5_128gpu_er_v7_1mlp_nops", select_layer=12, project_to_dim=None, reproject_vision=False, tune_llm=False, tune_visual=True, use_flash_attention=True),
    action_head_cfg=dict(action_dim=32, max_action_dim=32, max_state_dim=64, action_horizon=16, input_embedding_dim=1536, hidden_size=1024, backbone_embedding_dim=2048, add_pos_embed=True, max_seq_len=1024,
                         num_target_vision_tokens=32, num_inference_timesteps=4, num_timestep_buckets=1000, noise_beta_alpha=1.5, noise_beta_beta=1.0, noise_s=.999, use_vlln=True, max_num_embodiments=32,
                         diffusion_model_cfg=BLOCKS | dict(num_layers=16, attention_head_dim=48, cross_attention_dim=2048, interleave_self_attention=True, norm_type="ada_norm", output_dim=1024),
                         vl_self_attention_cfg=BLOCKS | dict(num_layers=4, attention_head_dim=64)))
MISSING, EXTRA = "action_head.vlln.weight", "action_head.something_else.weight"


def print_of(value: Tensor) -> str: return hashlib.sha256(value.contiguous().view(torch.uint8).numpy()).hexdigest()


def written(folder: Path, config: dict, shard: int) -> dict[str, str]:
    "Upstream's files, shards of at most so many bytes; key -> the hash of its weights."
    with torch.device("meta"): shapes = {k: v.shape for k, v in GrootPolicy(PolicyConfig.from_upstream(config)).state_dict().items()}
    sizes, files, prints = {k: 2 * s.numel() for k, s in shapes.items()}, [[]], {}
    for key in sorted(shapes):
        if files[-1] and sum(sizes[k] for k in files[-1]) + sizes[key] > shard: files.append([])
        files[-1].append(key)
    names = [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    for name, keys in zip(names, files):
        drawn = {k: torch.empty(shapes[k], dtype=torch.bfloat16).normal_(0, .02, generator=torch.Generator().manual_seed(zlib.crc32(k.encode()))) for k in keys}
        prints |= {k: print_of(v) for k, v in drawn.items()}
        save_file(drawn, folder / name, metadata={"format": "pt"})
    core.write_json(folder / "config.json", config)
    core.write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": sum(sizes.values())}, "weight_map": {k: name for name, keys in zip(names, files) for k in keys}})
    return prints


def forms(keys) -> set[str]: return {re.sub(r"(layers|transformer_blocks)\.\d+", r"\1.N", k) for k in keys if not any(u in k for u in UNREAD)}


def load(folder: Path, precision: str, prints: dict[str, str]) -> dict:
    "What loading costs, and of how many keys the weights arrived; in a process that has done nothing else."
    memory = lambda: status_gb("VmHWM")           # its highest so far, pages of the mapped files among it
    before, started = memory(), time.monotonic()
    policy = GrootPolicy.from_pretrained(folder, precision=getattr(torch, precision))
    taken = {"precision": precision, "seconds": round(time.monotonic() - started, 1), "peak_gb_before": round(before, 2), "peak_gb": round(memory(), 2)}
    state = policy.state_dict()
    arrived = {k for k, v in state.items() if print_of(low := v.to(torch.bfloat16)) == prints[k] and torch.equal(low.to(v.dtype), v)}
    tied = torch.equal(state["backbone.eagle_model.language_model.lm_head.weight"], state["backbone.eagle_model.language_model.model.embed_tokens.weight"])
    return taken | {"resident_gb": round(held(policy) / 1e9, 3), "parameters": sum(p.numel() for p in policy.parameters()),
                    "keys_equal": len(arrived), "not_read": sorted(state.keys() - arrived), "output_layer_is_the_embedding": tied}


def refused(folder: Path, change) -> str: # of the keys of one file
    "What is said of a checkpoint with one thing changed."
    with tempfile.TemporaryDirectory(dir=folder.parent) as other:
        shutil.copytree(folder, other, copy_function=os.link, dirs_exist_ok=True)
        index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        weights = load_file(folder / index[MISSING])
        Path(other, index[MISSING]).unlink()
        change(weights)
        save_file(weights, Path(other, index[MISSING]))
        try: GrootPolicy.from_pretrained(other)
        except core.CookbookError as e: return e.what
    return ""


def run(size: str) -> dict:
    "Written, loaded, refused."
    config, shard = (UPSTREAM, 2_000_000_000) if size == "full" else (configured("tiny").to_upstream(), 200_000)
    with tempfile.TemporaryDirectory() as room:
        folder, started = Path(room, "GR00T-N1.5-3B"), time.monotonic()
        folder.mkdir()
        prints = written(folder, config, shard)
        about = {"seconds_to_write": round(time.monotonic() - started, 1), "keys": len(prints), "files": len(files := sorted(folder.glob("*.safetensors"))), "gigabytes": round(sum(f.stat().st_size for f in files) / 1e9, 3)}
        with safe_open(ROOT / "tests" / "fixtures" / "groot_n15.safetensors", "pt") as f: peers = forms(k for k in f.keys() if k.startswith(("backbone.", "action_head.")))
        about |= {"forms_of_names": len(peers), "names_are_the_peers": forms(prints) == peers}
        core.write_json(Path(room) / "prints.json", prints)
        loads = []
        for precision in ("bfloat16", "float32"):
            command = [sys.executable, __file__, "--load", str(folder), "--precision", precision, "--prints", f"{room}/prints.json"]
            loads.append(json.loads(subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout))
            print(loads[-1], flush=True)
        short = lambda weights: weights.__setitem__(MISSING, weights[MISSING][:-1].clone())
        mistakes = {"one key less": lambda weights: weights.pop(MISSING), "one key more": lambda weights: weights.__setitem__(EXTRA, torch.zeros(3)), "another shape": short}
        said = {name: refused(folder, change) for name, change in mistakes.items()}
    unread = sorted(k for k in prints if any(u in k for u in UNREAD))
    met = about["names_are_the_peers"] and all(said.values()) and all(x["not_read"] == unread and x["output_layer_is_the_embedding"] for x in loads) and loads[0]["resident_gb"] <= 5.2
    return about | {"loads": loads, "refused": said, "target": "all weights arrive but the output layer, which nothing reads; every mistake is refused; in bfloat16 at most 5.2 GB stay", "met": bool(met)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--size", choices=["full", "tiny"], default="full")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "results")
    for inside in ("--load", "--precision", "--prints"): parser.add_argument(inside, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.load:
        print(json.dumps(load(Path(args.load), args.precision, json.loads(Path(args.prints).read_text()))))
        return 0
    name = "full_checkpoint" if args.size == "full" else "full_checkpoint_tiny"
    about = provenance(name, __doc__.splitlines()[0], typed("full_checkpoint.py", argv if argv is not None else sys.argv[1:]), torch.get_num_threads())
    found = about | run(args.size)
    args.out.mkdir(parents=True, exist_ok=True)
    core.write_json(args.out / f"{name}.json", found)
    print(f"{'met' if found['met'] else 'MISSED'}: {found['target']}; refused: {found['refused']}")
    return 0


if __name__ == "__main__": sys.exit(main())
