#!/usr/bin/env python3
"""Time the graphs of this bundle on the machine at hand, and check that they still say what the reference says.

    python3 bench.py --backend tensorrt                    # on the board, after ./build.sh
    python3 bench.py --backend onnxruntime                 # anywhere; float32 graphs
    python3 bench.py --camera 0                            # end to end too: from a V4L2 camera, by OpenCV

Needs numpy and the backend (tensorrt and torch with CUDA, or onnxruntime; torch for the pipeline); nothing of groot_cookbook. Writes JSON that chapter 09 reads.

Scopes, each synchronised: "engine" alone; "engine and copies" between host and device; "pipeline" from a picture and a state in memory to joints in the robot's
units; "end to end" the same from a camera's next frame, waiting for it included.
"""
import argparse, datetime, json, math, os, platform, re, subprocess, sys, time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

FORM = "groot_cookbook bench 1"
KINDS = {"FP4": r"fp4|e2m1", "FP8": r"fp8|e4m3", "BF16": r"bf16|bfloat", "FP16": r"fp16|half|(?<![a-z0-9])f16", "INT8": r"int8|(?<![a-z0-9])i8",
         "FP32": r"fp32|float|(?<![a-z0-9])f32|tf32"}
WANTED = {"nvfp4": "FP4", "fp8": "FP8", "bf16": "BF16", "fp32": "FP32"}
COSINE = {"nvfp4": 0.99, "fp8": 0.99, "bf16": 0.999, "fp32": 0.99999}


# --- what was built: reading an engine's layer information -------------------------------------------------------

def kind(text):
    "The precision that a TensorRT format description or kernel name speaks of, lowest first; None where it says none."
    return next((k for k, pattern in KINDS.items() if re.search(pattern, str(text), re.I)), None)


SLACK = 0.05                # share of the products' work that may run in a precision that the graph asks of none
FUSED = 0.15                # and more of it than the graph asks for in one that it does ask for: an engine fuses products and counts them anew


def work(layer):
    "About how many multiplications a product layer does: what comes out, times the width of what goes in first; None where the report gives no shapes."
    shapes = lambda side: [d for t in layer.get(side, []) if isinstance(t, dict) and len(d := t.get("Dimensions") or ()) > 1]
    taken, given = shapes("Inputs"), shapes("Outputs")
    return sum(math.prod(d) for d in given) * taken[0][-1] if taken and given else None


def product_layers(report):
    "(name, precision, work) of every matrix-product layer in TensorRT's JSON layer information (built with detailed verbosity)."
    layers = report.get("Layers", []) if isinstance(report, dict) else report
    found = []
    for layer in layers:
        if not isinstance(layer, dict): raise SystemExit("the engine holds layer names only: build it with --profilingVerbosity=detailed")
        what = " ".join(str(layer.get(k, "")) for k in ("LayerType", "ParameterType", "TacticName", "Name"))
        if not re.search(r"gemm|matmul|matrix_?multiply|fully_?connected|_mha|fmha", what, re.I): continue
        if re.search(r"reformat|no_?op|constant|shuffle", f"{layer.get('LayerType', '')} {layer.get('Name', '')}".split("/")[0], re.I): continue      # on its way to a product, and named after it
        inputs = [k for i in layer.get("Inputs", []) if isinstance(i, dict) and (k := kind(i.get("Format/Datatype", "")))]
        found.append((layer.get("Name", "?"), kind(layer.get("TacticName", "")) or min(inputs, key=list(KINDS).index, default="?"), work(layer)))      # what multiplies says it best
    return found


def shares(parts):
    "(precision, amount) pairs -> precision -> share of the whole."
    total = sum(amount for _, amount in parts) or 1
    return {k: sum(amount for kind, amount in parts if kind == k) / total for k in sorted({k for k, _ in parts})}


def fallback(report, precision, asked=None):
    """How many product layers run in which precision, the share of each in their work (by count, where a layer's shapes are not told), and whether that is what the graph asks for.

    `asked`, of bundle.json: precision -> {"products": how many, "gflop": their work}; without it all are to run in the wanted one. Flagged, with the largest layers by name, are products in a precision
    that the graph asks of hardly any, FP32 above all, and too many in one that it asks of others."""
    layers = product_layers(report)
    by = "work" if all(w for *_, w in layers) and all("gflop" in a for a in (asked or {}).values()) else "count"
    found = shares([(k, w if by == "work" else 1) for _, k, w in layers])
    meant = shares([(k, a["gflop" if by == "work" else "products"]) for k, a in (asked or {WANTED[precision]: {"products": 1, "gflop": 1}}).items()])
    stray = {k for k in found if k != WANTED[precision] and meant.get(k, 0) <= SLACK}
    if sum(found[k] - meant.get(k, 0) for k in stray) <= SLACK: stray = set()
    stray |= {k for k in found if k != WANTED[precision] and meant.get(k, 0) > SLACK and found[k] - meant[k] > FUSED}
    named = [f"{name} ({k})" for name, k, _ in sorted(layers, key=lambda layer: -(layer[2] or 0)) if k in stray]
    counts = {k: sum(kind == k for _, kind, _ in layers) for k in found}
    return {"products": counts, "share": {k: round(v, 4) for k, v in found.items()}, "by": by, "fallback": bool(stray) or WANTED[precision] not in found, "stray": named[:8]}


# --- the two backends: each gives name -> call() in ms, copies included or not, and outputs ----------------------

class OnnxRuntime:
    where = "cpu"

    def __init__(self, path, threads):
        import onnxruntime as ort
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.versions, self.device, self.report = {"onnxruntime": ort.__version__}, platform.processor() or platform.machine(), None

    def run(self, inputs):
        started = time.perf_counter()
        outputs = self.session.run(None, {k: v if isinstance(v, np.ndarray) else v.numpy() for k, v in inputs.items()})
        return outputs[0], (time.perf_counter() - started) * 1e3, None


class TensorRT:
    "Synchronised twice over: CUDA events around the engine alone, the host clock around copies and engine."
    where = "cuda"

    def __init__(self, path, threads):
        import tensorrt as trt, torch
        self.torch, self.stream = torch, torch.cuda.Stream()
        self.engine = trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise SystemExit(f"{path}: TensorRT {trt.__version__} cannot read it. Engines belong to one GPU and one version: run ./build.sh here")
        self.context = self.engine.create_execution_context()
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        dtype = {trt.float32: torch.float32, trt.int64: torch.int64, trt.int32: torch.int32, trt.bfloat16: torch.bfloat16, trt.float16: torch.float16}
        shape_of, dtype_of = self.engine.get_tensor_shape, self.engine.get_tensor_dtype
        self.buffers = {n: torch.empty(tuple(shape_of(n)), dtype=dtype[dtype_of(n)], device="cuda") for n in names}
        self.output = next(n for n in names if self.engine.get_tensor_mode(n) == trt.TensorIOMode.OUTPUT)
        for n, b in self.buffers.items(): self.context.set_tensor_address(n, b.data_ptr())
        self.versions = {"tensorrt": trt.__version__, "torch": torch.__version__, "cuda": torch.version.cuda}
        self.device = torch.cuda.get_device_name()
        self.report = json.loads(self.engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))

    def run(self, inputs):
        torch, begin, end = self.torch, self.torch.cuda.Event(enable_timing=True), self.torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.cuda.stream(self.stream):
            for n, v in inputs.items():
                if n in self.buffers: self.buffers[n].copy_(torch.as_tensor(v), non_blocking=True)
            begin.record(self.stream)
            if not self.context.execute_async_v3(self.stream.cuda_stream): raise SystemExit("TensorRT refused to run the engine")
            end.record(self.stream)
            output = self.buffers[self.output].float().cpu()
        torch.cuda.synchronize()
        return output.numpy(), (time.perf_counter() - started) * 1e3, begin.elapsed_time(end)


# --- measuring ---------------------------------------------------------------------------------------------------

def agreement(got, expected):
    got, expected = np.asarray(got, np.float64).ravel(), np.asarray(expected, np.float64).ravel()
    if got.shape != expected.shape: raise SystemExit(f"the graph gives {got.size} numbers, the reference has {expected.size}")
    norm = np.linalg.norm(got) * np.linalg.norm(expected)
    return {"cosine": float(got @ expected / norm) if norm else 0.0, "max_abs_error": float(np.abs(got - expected).max())}


def spread(samples):
    p50, p90, p99 = np.percentile(samples, [50, 90, 99])
    return {"n": len(samples), "mean": float(np.mean(samples)), "p50": float(p50), "p90": float(p90), "p99": float(p99),
            "samples_ms": [round(float(s), 4) for s in samples]}


def judged(backend, part, precision, got, expected, asked):
    "How a row begins: whether the answer is right, and whether the engine was built as its graph asked."
    row = {"part": part, "precision": precision, **agreement(got, expected)}
    row["passed"] = bool(np.isfinite(row["max_abs_error"]) and row["cosine"] >= COSINE[precision])
    return row | (fallback(backend.report, precision, asked) if backend.report is not None else {})


def measure(backend, part, precision, reference, n, warmup, asked=None):
    inputs = {k: v for k, v in reference.items() if k != "expected"}
    for _ in range(warmup): backend.run(inputs)
    runs = [backend.run(inputs) for _ in range(n)]
    times, row = [r[1:] for r in runs], judged(backend, part, precision, runs[-1][0], reference["expected"], asked)
    with_copies, alone = [t[0] for t in times], [t[1] for t in times if t[1] is not None]
    rows = [{**row, "scope": "engine", **spread(alone or with_copies)}]
    return rows + ([{**row, "scope": "engine and copies", **spread(with_copies)}] if alone else [])


# --- from a picture to joints ------------------------------------------------------------------------------------

def look(image, border, device):
    "(1, H, W, 3) uint8 to (1, 3, S, S) in [-1, 1] on the device: the middle of the picture, resized there."
    import torch
    flat, size = torch.as_tensor(image).to(device).permute(0, 3, 1, 2).float(), int(border["size"])
    high, wide = (int(side * float(border["crop"])) for side in flat.shape[-2:])
    top, left = (round((side - kept) / 2) for side, kept in zip(flat.shape[-2:], (high, wide)))
    flat = flat[..., top: top + high, left: left + wide]
    if flat.shape[-2:] != (size, size): flat = torch.nn.functional.interpolate(flat, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return flat / 127.5 - 1


def scaled(x, low, high): return np.where(high > low, 2 * (x - low) / np.where(high > low, high - low, 1) - 1, 0)


def pipeline(backend, reference, border, frame, rng):
    "One chunk of joint targets, from what the robot sees and where it stands; the instruction was read when the task began."
    state = np.zeros_like(reference["state"])
    seen = border["state"][:, border["columns"]]
    if "sine" in border: state[:, border["sine"]], state[:, border["cosine"]] = np.sin(seen), np.cos(seen)        # a GR-1's angles
    else: state[:, : seen.shape[1]] = scaled(seen, border["state_low"], border["state_high"])
    inputs = {k: v for k, v in reference.items() if k != "expected"} | {"pixel_values": look(frame, border, backend.where), "state": state}
    if rng is not None: inputs["noise"] = rng.standard_normal(reference["noise"].shape, np.float32)
    said, low, high = backend.run(inputs)[0], border["action_low"], border["action_high"]
    return (said[..., : len(low)] + 1) / 2 * (high - low) + low


def camera(index, patience=10):
    "() -> the camera's next frame, (1, H, W, 3) uint8 RGB; one that is dropped is waited for, so many seconds."
    try: import cv2
    except ImportError: sys.exit("--camera needs OpenCV: pip install opencv-python-headless")
    source = cv2.VideoCapture(index)
    if not source.isOpened(): sys.exit(f"no camera {index}: look at v4l2-ctl --list-devices")
    source.set(cv2.CAP_PROP_BUFFERSIZE, 1)                   # the newest frame, not the oldest

    def take():
        began = time.monotonic()
        while time.monotonic() < began + patience:
            there, frame = source.read()
            if there: return frame[None, ..., ::-1].copy()
        sys.exit(f"camera {index} gave no picture in {patience} s: look at its cable and at dmesg")

    return take


def measure_pipeline(backend, precision, reference, border, n, warmup, frame_of, scope, asked=None):
    "Timed on the host's clock, with noise of its own each time; checked once with the reference's noise."
    expected = (reference["expected"][..., : len(border["action_low"])] + 1) / 2 * (border["action_high"] - border["action_low"]) + border["action_low"]
    row = judged(backend, "policy", precision, pipeline(backend, reference, border, border["image"], None), expected, asked)
    rng, samples = np.random.default_rng(0), []
    for i in range(warmup + n):
        started = time.perf_counter()
        pipeline(backend, reference, border, frame_of(), rng)
        if i >= warmup: samples.append((time.perf_counter() - started) * 1e3)
    return {**row, "scope": scope, **spread(samples)}


def ask(*command):
    "What a tool of the board answers, or None where there is no such tool."
    try: return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired): return None


def clocks():
    "Lowest and highest frequency that each clock of processor, GPU and memory may take: where both are one, as after `jetson_clocks`, it is held. None where the system does not say."
    def read(f):
        try: return int(f.read_text())
        except (OSError, ValueError): return None            # not there, asleep, or no number

    ends = "scaling_min_freq", "scaling_max_freq"
    found = {p.name: [read(p / end) for end in ends] for p in sorted(Path("/sys/devices/system/cpu/cpufreq").glob("policy*"))}
    found |= {p.name: [read(p / end) for end in ("min_freq", "max_freq")] for p in sorted(Path("/sys/class/devfreq").glob("*"))}
    return {k: v for k, v in found.items() if None not in v} or None


def hardware():
    model = Path("/proc/device-tree/model")
    return {"board": model.read_bytes().rstrip(b"\0").decode() if model.is_file() else None, "machine": platform.machine(), "cores": os.cpu_count(),
            "power_mode": ask("nvpmodel", "-q"), "jetson_clocks": ask("jetson_clocks", "--show"), "clocks": clocks(), "system": platform.platform(terse=True)}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=["tensorrt", "onnxruntime"], default="tensorrt")
    parser.add_argument("--precision", nargs="+", choices=list(WANTED), help="default: whatever is there")
    parser.add_argument("--part", nargs="+", help="default: all")
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--camera", type=int, help="number of a V4L2 camera; without it nothing is timed end to end")
    parser.add_argument("--threads", type=int, default=0, help="onnxruntime only; 0 = all cores")
    parser.add_argument("--out", type=Path, default=None, help="default: bench_BACKEND.json beside this script")
    args = parser.parse_args(argv)
    here = Path(__file__).resolve().parent
    files = sorted((here / "graphs").glob("*.onnx") if args.backend == "onnxruntime" else (here / "engines").glob("*.engine"))
    about = json.loads((here / "bundle.json").read_text())
    out, command = args.out or here / f"bench_{args.backend}.json", " ".join(["bench.py", *(argv if argv is not None else sys.argv[1:])])
    rows, versions, device = [], {"python": platform.python_version(), "numpy": np.__version__}, None
    border, machine, whole = dict(np.load(here / "pipeline.npz", allow_pickle=False)), hardware(), []

    def keep(backend, new):
        "Print and write what is there: whatever fails later takes nothing with it."
        nonlocal versions, device
        rows.extend(new); versions |= backend.versions; device = backend.device
        for row in new:
            warning = f"  NOT what was asked for: {row['share']}, {'; '.join(row['stray']) or 'no product'}" if row.get("fallback") else ""
            print(f"{row['part']:12} {row['precision']:6} {row['scope']:18}{row['p50']:9.3f} ms  cosine {row['cosine']:.6f}{warning}", flush=True)
        result = {"form": FORM, "backend": args.backend, "command": command, "date": datetime.date.today().isoformat(), "device": device,
                  "hardware": machine, "versions": versions, "checkpoint": about["checkpoint"], "model": about["model"], "rows": rows}
        part = out if out.exists() and not out.is_file() else out.with_name(f"{out.name}.part")      # a device such as /dev/null is written to, never replaced
        part.write_text(json.dumps(result, indent=1) + "\n")
        if part != out: part.replace(out)

    for path in files:
        part, precision, _ = path.name.split(".")
        if args.part and part not in args.part or args.precision and precision not in args.precision: continue
        if args.backend == "onnxruntime" and precision != "fp32": continue      # ONNX Runtime has no bf16 kernels on a CPU
        backend = (OnnxRuntime if args.backend == "onnxruntime" else TensorRT)(path, args.threads)
        reference = dict(np.load(here / f"reference_{part}.npz", allow_pickle=False))
        asked = about.get("asked", {}).get(f"{part}.{precision}")
        keep(backend, measure(backend, part, precision, reference, args.n, args.warmup, asked))
        if part != "policy" or not find_spec("torch"): continue
        from_picture = lambda take, scope, b=backend, p=precision, r=reference, a=asked: keep(b, [measure_pipeline(b, p, r, border, args.n, args.warmup, take, scope, a)])
        from_picture(lambda: border["image"], "pipeline")
        if args.camera is not None: whole.append(from_picture)           # its engine stays in memory until then
    if whole:
        take = camera(args.camera)                           # last: it shares the memory's bus, and may fail
        for from_picture in whole: from_picture(take, "end to end")
    if not rows: sys.exit(f"nothing to time under {here}: run ./build.sh first, or give --backend onnxruntime")
    print(f"wrote {out.name}")
    return 1 if any(not r["passed"] or r.get("fallback") for r in rows) else 0


if __name__ == "__main__": sys.exit(main())
