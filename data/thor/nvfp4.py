#!/usr/bin/env python3
"""Write FP4 (NVFP4) graphs into this bundle with NVIDIA ModelOpt; then ./build.sh nvfp4.

    python3 nvfp4.py --checkpoint FOLDER [--part backbone]

The policy as one graph is woven of the two parts, as soon as both are there.

Runs on a machine with CUDA, `pip install nvidia-modelopt[onnx]` and groot_cookbook. FP4 needs torch: ModelOpt inserts its block scales into
the module, not into an ONNX file. The authors had no GPU with ModelOpt at hand: with ModelOpt 0.47 on a CPU, and its CUDA kernel left out, the script ran to
its end on the tiny policy; what the graphs say, and how fast, nobody has seen. Look at what it prints.
"""
import argparse, copy, json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
from torch.utils._pytree import tree_map


SPARED = ("*vision_model*",                                           # as ModelOpt's newer lists have it, and its patches come from a convolution, which FP4's blocks do not fit
          "*timestep_encoder*", "*norm1.linear*", "*proj_out_1*")     # of the flow's time: constants in the graph, where fewer bits save nothing


class ActionHead(torch.nn.Module):
    "features, attention_mask, state, noise, and for N1.6's head input_ids, in the order of the bundle -> actions"
    def __init__(self, policy, names):
        super().__init__()
        self.head, self.names, self.patches = policy.action_head, names, policy.patches
        self.register_buffer("robot", torch.zeros(1, dtype=torch.long), persistent=False)

    def forward(self, *args):
        x = dict(zip(self.names, args))
        images = self.patches(x["input_ids"]) if "input_ids" in x else None       # which tokens are a picture's
        return self.head(x["features"], x["attention_mask"], x["state"], self.robot, x["noise"], images=images)


def to(dtype): return lambda a: a.to(dtype) if isinstance(a, torch.Tensor) and a.is_floating_point() else a


class Float32Borders(torch.nn.Module):
    "bf16 inside, float32 outside, like the other graphs of the bundle."
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args): return tree_map(to(torch.float32), self.module(*tree_map(to(torch.bfloat16), args)))


def trace(module, args, inputs, outputs, opset=21):
    "A quantised module as a graph. By torch's older exporter, the one for which ModelOpt describes its nodes; folding constants would undo them."
    with TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        torch.onnx.export(Float32Borders(module).eval(), tree_map(to(torch.float32), args), str(path), dynamo=False, opset_version=opset, do_constant_folding=False,
                          input_names=inputs, output_names=outputs)
        model = onnx.load(path)
    for a in (a for n in model.graph.node if n.op_type == "Cast" for a in n.attribute):
        if a.i == onnx.TensorProto.COMPLEX128: a.i = onnx.TensorProto.BFLOAT16       # a slip of the exporter: 15 is torch's number for bf16, and ONNX's for complex ones
    model = two_step(model)
    held = {w.name for w in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in held]             # ModelOpt lists its scales among them
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return model


def two_step(model):
    "ModelOpt's FP4 nodes as the two standard DequantizeLinear that TensorRT reads; the function moved in ModelOpt 0.43."
    try: from modelopt.onnx.export import NVFP4QuantExporter
    except ImportError:
        from modelopt.onnx.quantization.qdq_utils import fp4qdq_to_2dq
        return fp4qdq_to_2dq(model)
    return NVFP4QuantExporter.process_model(model)


def keep(here, about, part, graph):
    "Into the bundle, with what it asks for, which bench.py holds the engine against."
    from groot_cookbook.core import write_json
    from groot_cookbook.graphs import asked, save_graph
    about.setdefault("asked", {})[f"{part}.nvfp4"] = asks = asked(graph)
    files = save_graph(graph, here / "graphs" / f"{part}.nvfp4.onnx")
    write_json(here / "bundle.json", about)
    print("wrote", ", ".join(p.name for p in files), "asking for products in", {kind: a["products"] for kind, a in asks.items()}, flush=True)


def weave_policy(here, about):
    "Backbone and head, from the bundle's graphs in FP4, as one: what bench.py times from a picture to joints."
    from groot_cookbook.export import whole
    from groot_cookbook.graphs import load_graph
    parts = [here / "graphs" / f"{part}.nvfp4.onnx" for part in ("backbone", "action_head")]
    if all(p.is_file() for p in parts): keep(here, about, "policy", whole(*map(load_graph, parts)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the policy that this bundle was made of")
    parser.add_argument("--part", nargs="+", choices=["backbone", "action_head"], default=["backbone", "action_head"])
    args = parser.parse_args()
    import modelopt.torch.quantization as mtq
    from groot_cookbook.core import sha256
    from groot_cookbook.export import action_head_graph, lowered, settled
    from groot_cookbook.policy import GrootPolicy

    here = Path(__file__).resolve().parent
    about, data = json.loads((here / "bundle.json").read_text()), np.load(here / "calibration.npz")
    if sha256(args.checkpoint) != about["checkpoint"]: raise SystemExit(f"{args.checkpoint} is not the checkpoint of this bundle")
    policy = lowered(settled(GrootPolicy.from_pretrained(args.checkpoint), about["slot"]).cuda(), torch.bfloat16)
    config = copy.deepcopy(mtq.NVFP4_DEFAULT_CFG)
    for name in SPARED:
        if isinstance(config["quant_cfg"], dict): config["quant_cfg"][name] = {"enable": False}                               # as ModelOpt had it at first
        else: config["quant_cfg"].append({"quantizer_name": name, "enable": False})
    rows = [{k: torch.from_numpy(data[k][i: i + 1]).cuda() for k in data.files} for i in range(about["observations"])]
    with torch.no_grad():
        for x in rows if "action_head" in args.part else (): x["features"] = policy.encode(x["pixel_values"].bfloat16(), x["input_ids"], x["attention_mask"]).float()
    for part in args.part:
        names = about["inputs"][part]
        module = Float32Borders(policy.backbone if part == "backbone" else ActionHead(policy, names)).eval()

        def forward(m):
            with torch.no_grad():
                for x in rows: m(*(x[n] for n in names))

        module = mtq.quantize(module, config, forward_loop=forward)        # the policy's own layers, in place
        mtq.print_quant_summary(module)
        for layer in module.modules():
            if hasattr(layer, "input_quantizer"):
                layer.input_quantizer._trt_high_precision_dtype, layer.input_quantizer._onnx_quantizer_type = "BFloat16", "dynamic"
            if hasattr(layer, "weight_quantizer"): layer.weight_quantizer._onnx_quantizer_type = "static"
        with torch.no_grad():
            if part == "backbone": graph = trace(policy.backbone, tuple(rows[0][n] for n in names), names, ["features"])
            else: graph = action_head_graph(policy, rows[0]["features"].bfloat16(), rows[0], about["denoising_steps"], 21, trace)
        keep(here, about, part, graph)
    weave_policy(here, about)


if __name__ == "__main__": main()
