#!/usr/bin/env bash
# Build TensorRT engines from the graphs of this bundle, on the board that will run them.
#
#   ./build.sh                 bf16 and fp8
#   ./build.sh bf16 fp8 nvfp4  (nvfp4 first needs nvfp4.py to have written graphs/*.nvfp4.onnx)
#
# Every graph carries its own types: bf16 weights, or explicit Q/DQ around FP8 products. The engine is therefore built *strongly typed*. Flags such as
# --fp8 only permit a precision; on Thor TensorRT 10.13 takes them and builds FP32 without a word (NVIDIA/TensorRT issue 4590).
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
trtexec="${TRTEXEC:-$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)}"
precisions=("$@")
if [[ ${#precisions[@]} -eq 0 ]]; then precisions=(bf16 fp8); fi

if [[ ! -x "$trtexec" ]]; then
    echo "trtexec not found at $trtexec. It comes with JetPack's tensorrt package; or set TRTEXEC to its path." >&2
    exit 1
fi

mkdir -p "$here/engines"

# The state that the timings will depend on, written beside the engines. For published numbers: sudo nvpmodel -m 0 && sudo jetson_clocks
{
    date -u +"date %Y-%m-%dT%H:%M:%SZ"
    uname -a
    if [[ -r /etc/nv_tegra_release ]]; then cat /etc/nv_tegra_release; fi
    if command -v nvpmodel > /dev/null; then nvpmodel -q || true; else echo "nvpmodel: not on this machine"; fi
    if command -v jetson_clocks > /dev/null; then jetson_clocks --show || true; else echo "jetson_clocks: not on this machine"; fi
    if command -v nvidia-smi > /dev/null; then nvidia-smi || true; fi
} > "$here/engines/environment.txt" 2>&1

# TensorRT 11 knows strong typing only and may have dropped the flag.
typed=()
help="$("$trtexec" --help 2>&1 || true)"          # whole: a pipe that is closed at the first match fails under pipefail, and the flag would be lost
if [[ "$help" == *--stronglyTyped* ]]; then typed=(--stronglyTyped); fi

for precision in "${precisions[@]}"; do
    case "$precision" in
        fp32 | bf16 | fp8 | nvfp4) ;;
        *) echo "unknown precision '$precision': fp32, bf16, fp8 or nvfp4" >&2; exit 2 ;;
    esac
    found=0
    for graph in "$here"/graphs/*."$precision".onnx; do
        [[ -e "$graph" ]] || continue
        found=1
        name="$(basename "$graph" .onnx)"
        echo "building $name"
        "$trtexec" --onnx="$graph" --saveEngine="$here/engines/$name.engine.part" "${typed[@]}" --skipInference \
            --profilingVerbosity=detailed --exportLayerInfo="$here/engines/$name.layers.json" --timingCacheFile="$here/engines/timing.cache" \
            > "$here/engines/$name.log" 2>&1 || { echo "failed; the end of engines/$name.log:" >&2; tail -n 20 "$here/engines/$name.log" >&2; exit 1; }
        mv "$here/engines/$name.engine.part" "$here/engines/$name.engine"
    done
    if [[ $found -eq 0 ]]; then
        echo "no graphs/*.$precision.onnx in this bundle" >&2
        if [[ "$precision" == nvfp4 ]]; then echo "make them on a machine with CUDA: python3 nvfp4.py --checkpoint FOLDER" >&2; fi
        exit 3
    fi
done

echo "engines are in engines/; now: python3 bench.py --backend tensorrt"
