"""GR00T N1.5 at full size, weights drawn, through the export of chapter 08 on this machine's processor: every part as a graph, and the whole as one. python benchmarks/full_size.py

    export   draws the weights, asks torch for features and actions at fixed noise, and exports the parts by `export_policy`: float32, every weight on disk once
    fp32     opens each graph from there in ONNX Runtime and compares it with torch
    bf16     lowers each, writes it, and runs it as chapter 08 does: values stored in bf16, operators in float32
    fp8      calibrates each on the same observations, quantises and lowers it, writes it and runs it likewise
Each line is a process of its own, and so is each graph: torch's copy is gone before ONNX Runtime loads anything, and every peak of memory is its own. `peak_gb` is what cannot be dropped
(anonymous memory); weights that are mapped from disk come on top where there is room. A step that holds more than --memory is ended, and its row says so.
Drawn weights say nothing about a robot: what is checked is that graphs of this size are written, opened and right. Writes data/results/full_size_onnx.json.
"""
from __future__ import annotations

import argparse, json, os, shutil, subprocess, sys, tempfile, threading, time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
from bench import ROOT, provenance, status_gb, typed
from gpu_policy import SLOT, TAG, given, random_policy

from groot_cookbook import core
from groot_cookbook.export import PARTS, answers, export_policy
from groot_cookbook.graphs import calibrate, emulated, load_graph, lower, open_session, products, quantise, save_graph
from groot_cookbook.policy import GrootPolicy

COSINE = {"fp32": .999999, "bf16": .999, "fp8": .99}             # chapter 08's


@contextmanager
def watched(found: dict) -> Iterator[None]:
    "Seconds, and the most memory seen, looked at ten times a second, go into `found`."
    done, began, most = threading.Event(), time.monotonic(), [status_gb("RssAnon")]

    def look() -> None:
        while not done.wait(.1): most.append(status_gb("RssAnon"))

    eye = threading.Thread(target=look, daemon=True)
    eye.start()
    try: yield
    finally:
        done.set()
        eye.join()
        found |= {"seconds": round(time.monotonic() - began, 1), "peak_gb": round(max(most), 2)}


def observed(policy: GrootPolicy, n: int) -> list[dict[str, np.ndarray]]:
    "Drawn pictures and states, sentences of different length, fixed noise; padded to one length, so that a mask that is ignored is noticed."
    generator, (pictures, said, state) = torch.Generator().manual_seed(0), given(policy, n)
    said = [" ".join(s.split()[: max(3, len(s.split()) - 3 * i)]) for i, s in enumerate(said)]
    rows = lambda: [policy.processor(p[None], [s], x[None], TAG) | {"noise": policy.noise(1, generator)} for p, s, x in zip(pictures, said, state)]
    policy.processor.length = -(-max(r["input_ids"].shape[1] for r in rows()) // 8) * 8
    return [{k: v.numpy() for k, v in r.items() if k != "embodiment_id"} for r in rows()]


def files_gb(folder: Path) -> float: return round(sum({(s := p.stat()).st_ino: s.st_size for p in folder.iterdir()}.values()) / 1e9, 3)  # on disk, linked files once


def export(size: str, n: int, work: Path) -> dict:
    policy, made, torchs, written = random_policy(size, torch.device("cpu")), {}, {}, {}
    inputs = observed(policy, n)
    with watched(torchs): expected = [answers(policy, x, SLOT) for x in inputs]
    for i, row in enumerate(zip(inputs, expected)): np.savez(work / f"row{i}.npz", **(row[0] | row[1]))
    with watched(made): graphs = export_policy(policy, inputs[0], SLOT, shelf=work / "shelf")
    (work / "fp32").mkdir()
    with watched(written): files = {part: [f.name for f in save_graph(g, work / "fp32" / f"{part}.onnx")] for part, g in graphs.items()}
    about = {part: {"nodes": len(g.graph.node), "products": len(products(g)), "weights_m": round(sum(int(np.prod(w.dims)) for w in g.graph.initializer) / 1e6, 2), "files": files[part]} for part, g in graphs.items()}
    shutil.rmtree(work / "shelf", ignore_errors=True)                  # the last name but one of each file
    return {"parameters_m": round(sum(p.numel() for p in policy.parameters()) / 1e6, 2), "tokens": inputs[0]["input_ids"].shape[1], "torch": torchs, "export": made, "save": written,
            "disk_gb": files_gb(work / "fp32"), "graphs": about}


def check(part: str, precision: str, n: int, work: Path, threads: int) -> dict:
    rows, file, found = [dict(np.load(work / f"row{i}.npz")) for i in range(n)], work / "fp32" / f"{part}.onnx", {}
    if precision != "fp32":
        with watched(making := {}):
            graph = load_graph(file)
            if precision == "fp8": graph = quantise(graph, calibrate(graph, rows))
            graph, folder = lower(graph), work / f"{part}.{precision}"
            folder.mkdir()
            file = save_graph(graph, folder / f"{part}.onnx")[0]
            del graph
        found = {"made": making, "disk_gb": files_gb(folder)}
    onnx.checker.check_model(str(file))
    with watched(opened := {}): session = open_session(file if precision == "fp32" else emulated(load_graph(file)), threads)
    names = [i.name for i in session.get_inputs()]
    with watched(ran := {}): got = np.stack([session.run(None, {k: r[k] for k in names})[0] for r in rows]).astype(np.float64)
    want = np.stack([r[PARTS[part]] for r in rows]).astype(np.float64)
    cosine = lambda a, b: float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    found |= {"open": opened, "run": ran, "cosine": cosine(got, want), "max_abs_error": float(np.abs(got - want).max()), "largest": float(np.abs(want).max())}
    if part != "backbone":
        noise = np.stack([r["noise"] for r in rows])
        found["cosine_of_movement"] = cosine(got - noise, want - noise)               # both begin at the same noise, which flatters
    if precision != "fp32": shutil.rmtree(folder)
    return found | {"passed": found["cosine"] >= COSINE[precision]}


def step(args: argparse.Namespace) -> None:
    "One step, in a process of its own: its row goes to a file."
    torch.set_num_threads(args.threads)
    what, _, precision = args.step.partition(" ")
    found = export(args.size, args.observations, args.work) if what == "export" else check(what, precision, args.observations, args.work, args.threads)
    core.write_json(args.work / "step.json", found)


def ended(command: list[str], memory: float) -> str:
    """How a step failed; empty where it did not. It is watched from here and ended where it holds more than `memory` GB (0: never).

    A limit that the system keeps (`setrlimit`) makes some allocation fail wherever it happens to be, and one in a thread that just begins leaves `Thread.start` waiting for ever.
    """
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen(command, stderr=said) as running:
        try:
            while running.poll() is None:
                if memory and status_gb("RssAnon", running.pid) > memory: return f"wanted more than {memory:g} GB"
                time.sleep(.05)
        finally: running.kill()
        if running.returncode < 0: return f"ended by signal {-running.returncode}"
        said.seek(0)
        return (said.read().strip().splitlines() or ["?"])[-1][-300:] if running.returncode else ""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--size", choices=["full", "tiny"], default="full")
    parser.add_argument("--precision", nargs="+", choices=list(COSINE), default=list(COSINE))
    parser.add_argument("--observations", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--memory", type=float, default=0., help="GB that a step may hold, looked at twenty times a second; 0: all there are")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "results")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.step: step(args); return 0
    about, rows, began = provenance("full_size_onnx", __doc__.splitlines()[0], typed("full_size.py", argv), args.threads), [], time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("export", *(f"{part} {precision}" for precision in args.precision for part in PARTS)):
            command = [sys.executable, __file__, "--step", name, "--work", folder, *(f"--{k}={getattr(args, k)}" for k in ("size", "observations", "threads", "memory"))]
            (told := Path(folder, "step.json")).unlink(missing_ok=True)
            why = ended(command, args.memory)
            rows.append({"step": name} | ({"failed": why} if why else json.loads(told.read_text())))
            core.write_json(args.out / "full_size_onnx.json", about | {"size": args.size, "observations": args.observations, "rows": rows, "seconds": round(time.monotonic() - began, 1)})
            print(json.dumps(rows[-1]), flush=True)
            if "failed" in rows[0]: return 1
    return 0 if all(r.get("passed", True) and "failed" not in r for r in rows) else 1


if __name__ == "__main__": sys.exit(main())
