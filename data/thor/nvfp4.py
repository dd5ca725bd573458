#!/usr/bin/env python3
"""Write FP4 (NVFP4) graphs into this bundle with NVIDIA ModelOpt; then ./build.sh nvfp4.

    python3 nvfp4.py --checkpoint FOLDER [--part backbone]

Runs on a machine with CUDA, `pip install nvidia-modelopt[onnx]` and groot_cookbook. FP4 needs torch: ModelOpt inserts its block scales into
the module, not into an ONNX file. NOT RUN by the authors, who had neither ModelOpt nor a Blackwell GPU at hand: read what it prints.
"""
import argparse, copy, json
from pathlib import Path

import numpy as np
import onnx
import torch


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


class Float32Borders(torch.nn.Module):
    "bf16 inside, float32 outside, like the other graphs of the bundle."
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args): return self.module(*(a.bfloat16() if a.is_floating_point() else a for a in args)).float()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the policy that this bundle was made of")
    parser.add_argument("--part", nargs="+", choices=["backbone", "action_head"], default=["backbone", "action_head"])
    args = parser.parse_args()
    import modelopt.torch.quantization as mtq
    from groot_cookbook.core import sha256
    from groot_cookbook.export import lowered, settled
    from groot_cookbook.policy import GrootPolicy

    here = Path(__file__).resolve().parent
    about, data = json.loads((here / "bundle.json").read_text()), np.load(here / "calibration.npz")
    if sha256(args.checkpoint) != about["checkpoint"]: raise SystemExit(f"{args.checkpoint} is not the checkpoint of this bundle")
    policy = lowered(settled(GrootPolicy.from_pretrained(args.checkpoint), about["slot"]).cuda(), torch.bfloat16)
    config = copy.deepcopy(mtq.NVFP4_DEFAULT_CFG)                           # the patch embedding stays as it is: FP4's blocks are for matrices
    if isinstance(config["quant_cfg"], dict): config["quant_cfg"]["nn.Conv2d"] = {"*": {"enable": False}}         # as ModelOpt had it at first
    else: config["quant_cfg"].append({"parent_class": "nn.Conv2d", "quantizer_name": "*", "enable": False})
    rows = [{k: torch.from_numpy(data[k][i: i + 1]).cuda() for k in data.files} for i in range(about["observations"])]
    for part in args.part:
        names = about["inputs"][part]
        if part == "action_head":
            with torch.no_grad():
                for x in rows: x["features"] = policy.encode(x["pixel_values"].bfloat16(), x["input_ids"], x["attention_mask"]).float()
        module = Float32Borders(policy.backbone if part == "backbone" else ActionHead(policy, names)).eval()

        def forward(m):
            with torch.no_grad():
                for x in rows: m(*(x[n] for n in names))

        module = mtq.quantize(module, config, forward_loop=forward)
        mtq.print_quant_summary(module)
        for layer in module.modules():
            if hasattr(layer, "input_quantizer"):
                layer.input_quantizer._trt_high_precision_dtype, layer.input_quantizer._onnx_quantizer_type = "BFloat16", "dynamic"
            if hasattr(layer, "weight_quantizer"): layer.weight_quantizer._onnx_quantizer_type = "static"
        path = here / "graphs" / f"{part}.nvfp4.onnx"
        output = "features" if part == "backbone" else "actions"
        torch.onnx.export(module, tuple(rows[0][n] for n in names), str(path), dynamo=False, opset_version=21, do_constant_folding=False,
                          input_names=names, output_names=[output])
        onnx.save(two_step(onnx.load(path)), path)
        print(f"wrote {path.name}")


def two_step(model):
    "ModelOpt's FP4 nodes as the two standard DequantizeLinear that TensorRT reads; the function moved in ModelOpt 0.43."
    try: from modelopt.onnx.export import NVFP4QuantExporter
    except ImportError:
        from modelopt.onnx.quantization.qdq_utils import fp4qdq_to_2dq
        return fp4qdq_to_2dq(model)
    return NVFP4QuantExporter.process_model(model)


if __name__ == "__main__": main()
