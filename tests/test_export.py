"A tiny policy at random weights through every graph, and the bundle's own scripts as far as they run here."
import importlib.util, json, os, subprocess, sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from groot_cookbook import core
from groot_cookbook.backbone import Backbone, BackboneConfig, tiny_backbone, tiny_tokenizer
from groot_cookbook.benchmark import ingest
from groot_cookbook.episodes import Dataset, Episode, Normalizer, write_dataset
from groot_cookbook import graphs as files
from groot_cookbook.export import Parity, action_head_graph, answers, borders, drawn, export_policy, lowered, observations, parity, settled, trace, write_bundle
from groot_cookbook.graphs import calibrate, check, emulated, lower, quantise, save_graph
from groot_cookbook.policy import Embodiment, GrootPolicy, PolicyConfig, build_policy

THOR = core.data_dir() / "thor"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "Policy, observations, torch's answers and the graphs; made once."
    folder, rng = tmp_path_factory.mktemp("export"), np.random.default_rng(0)
    joints = lambda: rng.normal(size=(12, 7)).astype(np.float32)
    episodes = [Episode(rng.integers(0, 255, (12, 64, 64, 3), dtype=np.uint8), joints(), joints(), text, 10.0)
                for text in ("pick up the red block and place it in the left bin", "wave")]
    dataset, tokenizer = Dataset(write_dataset(episodes, folder / "teleop")), tiny_tokenizer()
    config = BackboneConfig(
        vision=dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16),
        text=dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
                  vocab_size=len(tokenizer), max_position_embeddings=128, rope_theta=1e4, tie_word_embeddings=True),
        select_layer=1, image_token_index=tokenizer.convert_tokens_to_ids("<image>"), image_token="<image>", template="{images}{instruction}")
    torch.manual_seed(0)
    robot = Embodiment.of(dataset)
    policy = build_policy(Backbone(config, tokenizer), robot, width=32, layers=2)
    for name, p in policy.action_head.named_parameters():
        if name.endswith((".W", ".b")): torch.nn.init.normal_(p, std=.2)     # every robot another
    policy.save_pretrained(folder / "policy")
    inputs = observations(policy, dataset, robot.tag, 3)
    graphs = export_policy(policy, inputs[0], robot.slot)
    expected = [answers(policy, x, robot.slot) for x in inputs]
    return dict(folder=folder, policy=policy, robot=robot, dataset=dataset, inputs=inputs, expected=expected, graphs=graphs)


@pytest.mark.parametrize("part", ["backbone", "action_head", "policy"])
def test_graph_says_what_torch_says(made, part):
    check(made["graphs"][part])
    parity(made["graphs"][part], part, "fp32", made["inputs"], made["expected"]).check(0.999999, 1e-4)


def test_observations_hold_a_padded_instruction(made):
    "Otherwise no test above would notice a mask that is ignored."
    assert any((x["attention_mask"] == 0).any() for x in made["inputs"])
    again = observations(made["policy"], made["dataset"], made["robot"].tag, 3)
    assert all((a[k] == b[k]).all() for a, b in zip(made["inputs"], again) for k in a)


def n16_of(p):
    "The same backbone under a head that looks at words and pictures in turn."
    head = p.config.action_head
    torch.manual_seed(0)
    n16 = GrootPolicy(PolicyConfig(p.config.backbone, replace(head, num_target_vision_tokens=0, vl_self_attention_cfg=None, use_alternate_vl_dit=True, attend_text_every_n_blocks=1,
                                                              diffusion_model_cfg=head.diffusion_model_cfg | {"num_layers": 4})), p.processor).eval()
    n16.backbone.load_state_dict(p.backbone.state_dict())
    return n16


def test_n16_leaves_as_a_graph_too(made):
    "The head's graph is told by the ids which token is a picture's, and takes nothing else that N1.5's does not."
    n16 = n16_of(made["policy"])
    inputs, slot = made["inputs"], made["robot"].slot
    graphs, expected = export_policy(n16, inputs[0], slot), [answers(n16, x, slot) for x in inputs]
    for part, graph in graphs.items():
        check(graph)
        parity(graph, part, "fp32", inputs, expected).check(0.999999, 1e-4)
    takes = lambda g: {i.name for i in g.graph.input}
    assert takes(graphs["action_head"]) - takes(made["graphs"]["action_head"]) == {"input_ids"} and takes(graphs["policy"]) == takes(made["graphs"]["policy"])
    blind = [x | {"input_ids": np.full_like(x["input_ids"], 5)} for x in inputs]
    with pytest.raises(core.CookbookError, match="disagrees"): parity(graphs["action_head"], "action_head", "fp32", blind, expected).check(0.9999)


def test_lower_precisions_are_close(made):
    graph = made["graphs"]["policy"]
    eight = quantise(graph, calibrate(graph, made["inputs"]))
    for precision, g, cosine in (("bf16", emulated(lower(graph)), .999), ("fp8", eight, .99), ("fp8+bf16", emulated(lower(eight)), .99)):
        parity(g, "policy", precision, made["inputs"], made["expected"]).check(cosine)


def test_no_file_name_of_this_machine_in_a_graph(made):
    for graph in made["graphs"].values():
        text = graph.SerializeToString()
        assert b"site-packages" not in text and b".py" not in text


def test_same_module_same_bytes():
    module = torch.nn.Linear(3, 2)
    first, second = (trace(module, (torch.zeros(1, 3),), ["x"], ["y"]).SerializeToString() for _ in range(2))
    assert first == second


def test_settled_policy_is_that_robot_and_no_other(made):
    x, policy = made["inputs"][0], made["policy"]
    for slot in (0, 7, 31): assert np.allclose(answers(settled(policy, slot), x, 0)["actions"], answers(policy, x, slot)["actions"], atol=1e-6)
    assert not np.allclose(answers(settled(policy, 7), x, 0)["actions"], answers(policy, x, 8)["actions"], atol=1e-3)


def test_disagreement_is_an_error():
    with pytest.raises(core.CookbookError, match="disagrees with torch"): Parity("policy", "fp8", .5, .97, 4).check(.98)
    with pytest.raises(core.CookbookError, match="disagrees with torch"): Parity("policy", "fp32", float("nan"), float("nan"), 4).check(.98)
    with pytest.raises(core.CookbookError, match="disagrees with torch"): Parity("policy", "fp32", 1., .9999999, 4).check(.999, 1e-3)      # one joint far off, the others right


def test_wrong_and_missing_checkpoints(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "idm"}')
    with pytest.raises(core.CookbookError, match="not a GR00T N1.5 checkpoint"): GrootPolicy.from_pretrained(tmp_path)
    with pytest.raises(core.CookbookError, match="no checkpoint called"): GrootPolicy.from_pretrained(tmp_path / "nothing")


# --- the bundle --------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def bundle(made):
    graphs = made["graphs"]
    about = dict(model="N1.5, tiny", checkpoint="0" * 64, slot=made["robot"].slot, embodiment=made["robot"].tag)
    both = {"fp32": graphs, "bf16": {k: lower(g) for k, g in graphs.items()}}
    return write_bundle(made["folder"] / "bundle", both, made["inputs"], made["expected"], about, seen(made))


def seen(made): return borders(made["policy"], made["robot"].tag, drawn(made["dataset"], 1)[0])


def bench(bundle, *args):
    command = [sys.executable, str(bundle / "bench.py"), "--backend", "onnxruntime", "--n", "3", "--warmup", "1", *args]
    return subprocess.run(command, capture_output=True, text=True)


def test_bench_writes_what_chapter_09_reads(bundle, tmp_path):
    done = bench(bundle, "--out", str(tmp_path / "b.json"))
    assert done.returncode == 0, done.stderr
    rows, doubts = ingest(tmp_path / "b.json")
    assert not doubts and {r.part for r in rows} == {"backbone", "action_head", "policy"} and all(r.ms > 0 for r in rows)
    scopes = {(r.part, r.mode) for r in rows}
    assert scopes == {(p, "onnxruntime (engine)") for p in ("backbone", "action_head", "policy")} | {("policy", "onnxruntime (pipeline)")}
    hardware = json.loads((tmp_path / "b.json").read_text())["hardware"]
    assert {"power_mode", "jetson_clocks", "clocks"} <= set(hardware) and hardware["cores"]


def test_the_bundles_pipeline_is_the_policys(script, bundle, made):
    "A picture and a state through bench.py, which knows nothing of the library, and through `predict`: the same joints in the robot's units."
    reference, border = (dict(np.load(bundle / f"{name}.npz")) for name in ("reference_policy", "pipeline"))
    backend = script.OnnxRuntime(bundle / "graphs" / "policy.fp32.onnx", 1)
    said = script.pipeline(backend, reference, border, border["image"], None)
    x = made["inputs"][0]
    assert np.abs(script.look(border["image"], border, "cpu").numpy() - x["pixel_values"]).max() < 1e-6
    assert np.allclose(said, made["policy"].processor.actions(torch.from_numpy(made["expected"][0]["actions"]), made["robot"].tag), atol=1e-4)
    other = script.pipeline(backend, reference, border | {"state": border["state"] + 1}, border["image"], None)
    assert np.abs(other - said).max() > 1e-4


def test_a_gr1s_angles_cross_the_border_as_the_policy_is_told_them(script):
    parts = {"left_arm": [4, 5, 6], "right_arm": [0, 1], "left_hand": [3]}
    one = Normalizer("min_max", -np.ones(6), np.ones(6))
    policy = build_policy(tiny_backbone(0), Embodiment("gr1", parts, parts, one, one))
    state = np.random.default_rng(0).uniform(-3, 3, (1, 7)).astype(np.float32)
    border, told = borders(policy, "gr1", (np.zeros((1, 64, 64, 3), np.uint8), "go", state)), {}
    def run(inputs): told.update(inputs); return [np.zeros((1, 16, 32))]
    script.pipeline(SimpleNamespace(run=run, where="cpu"), {"state": np.zeros((1, 64), np.float32)}, border, border["image"], None)
    assert np.allclose(told["state"], policy.processor.state(state, "gr1").numpy(), atol=1e-6) and np.abs(told["state"]).max() > .5


class Eye:
    "A camera with a loose cable: of its pictures every third arrives, and after `life` none."
    def __init__(self, life): self.life, self.asked = life, 0
    def isOpened(self): return True
    def set(self, *what): return True
    def read(self):
        self.asked += 1
        there = self.asked % 3 == 0 and self.asked <= self.life
        return there, np.full((48, 64, 3), (1, 2, 3), np.uint8) if there else None


def test_a_dropped_picture_is_waited_for_and_a_dead_camera_loses_nothing(script, bundle, tmp_path, monkeypatch):
    eye = Eye(life=30)
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(VideoCapture=lambda index: eye, CAP_PROP_BUFFERSIZE=38))
    monkeypatch.setattr(script, "__file__", str(bundle / "bench.py"))
    ask = ["--backend", "onnxruntime", "--part", "policy", "--n", "3", "--warmup", "1", "--camera", "0", "--out", str(tmp_path / "b.json")]
    assert script.main(ask) == 0 and [r["scope"] for r in json.loads((tmp_path / "b.json").read_text())["rows"]] == ["engine", "pipeline", "end to end"]
    eye.asked, eye.life = 0, 6
    patience = script.camera.__defaults__
    script.camera.__defaults__ = (.05,)
    try:
        with pytest.raises(SystemExit, match="no picture in 0.05 s"): script.main(ask)
    finally: script.camera.__defaults__ = patience
    assert [r["scope"] for r in json.loads((tmp_path / "b.json").read_text())["rows"]] == ["engine", "pipeline"] and not list(tmp_path.glob("*.part"))


def test_a_camera_that_is_not_there_says_so(bundle):
    done = bench(bundle, "--part", "policy", "--camera", "99")
    assert done.returncode == 1 and ("OpenCV" in done.stderr or "no camera 99" in done.stderr)


def test_weights_beside_the_graph_where_one_file_cannot_hold_them(made, tmp_path, monkeypatch):
    "The limit forced down: graph and weights apart, in every precision, say what they said; the checker and the bundle's script read them too."
    whole = made["graphs"]["policy"]
    one = save_graph(whole, tmp_path / "one.onnx")
    monkeypatch.setattr(files, "LIMIT", 1000)
    graph, weights = save_graph(whole, tmp_path / "policy.fp32.onnx")
    again = files.load_graph(graph)
    assert files.weight_bytes(again) < 1e5 and files.outside(again) == [weights.resolve()]
    for w, held in zip(again.graph.initializer, whole.graph.initializer): assert w.name == held.name and (files.numbers(w) == onnx.numpy_helper.to_array(held)).all()
    parity(emulated(sixteen := lower(again)), "policy", "bf16", made["inputs"], made["expected"]).check(.999)
    assert not files.outside(sixteen)                                                # norms are not worth a second file
    moved = save_graph(again, (tmp_path / "elsewhere").mkdir() or tmp_path / "elsewhere" / "other.onnx")
    assert moved[1].samefile(weights) and moved[1].name == weights.name
    moved[1].unlink()                                                                # onnx's checker wants a file to have one name
    check(again)
    assert not list(tmp_path.glob(".*"))
    assert len(one) == 1 and graph.stat().st_size < one[0].stat().st_size / 3 and weights.stat().st_size > files.weight_bytes(whole) * .9
    check(whole)
    onnx.checker.check_model(str(graph), full_check=True)
    for precision, g, cosine in (("fp32", whole, 0.999999), ("bf16", emulated(lower(whole)), .999), ("fp8", quantise(whole, calibrate(whole, made["inputs"])), .99)):
        parity(g, "policy", precision, made["inputs"], made["expected"]).check(cosine)
    about = dict(model="N1.5, tiny", checkpoint="0" * 64, slot=made["robot"].slot, embodiment=made["robot"].tag)
    folder = write_bundle(tmp_path / "bundle", {"fp32": made["graphs"]}, made["inputs"], made["expected"], about, seen(made))
    assert {p.name for p in (folder / "graphs").iterdir()} == {f"{part}.fp32.onnx{end}" for part in made["graphs"] for end in ("", ".data")}
    assert bench(folder, "--out", str(tmp_path / "b.json")).returncode == 0
    rows, doubts = ingest(tmp_path / "b.json")
    assert rows and not doubts
    weights.unlink()
    with pytest.raises(Exception, match="data"): files.open_session(graph)


def test_bench_fails_where_the_answer_is_wrong(bundle, tmp_path):
    path = bundle / "reference_policy.npz"
    kept = path.read_bytes()
    data = dict(np.load(path))
    np.savez(path, **data | {"expected": -data["expected"]})
    try:
        assert bench(bundle, "--part", "policy", "--out", str(tmp_path / "b.json")).returncode == 1
        with pytest.raises(core.CookbookError, match="its speed means nothing"): ingest(tmp_path / "b.json")
    finally: path.write_bytes(kept)


def test_bench_leaves_a_device_a_device(bundle, tmp_path):
    "`--out /dev/null`, as root: it was renamed over."
    os.mkfifo(pipe := tmp_path / "pipe")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert bench(bundle, "--part", "policy", "--warmup", "0", "--out", str(pipe)).returncode == 0
    os.close(reader)
    assert pipe.is_fifo() and not [p for p in tmp_path.iterdir() if p != pipe]


def test_bench_without_graphs_says_what_to_do(bundle):
    done = bench(bundle, "--part", "nothing")
    assert done.returncode == 1 and "build.sh" in done.stderr


def load(name):
    "A script of the bundle as a module."
    spec = importlib.util.spec_from_file_location(f"thor_{name}", THOR / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, old = True, sys.dont_write_bytecode
    spec.loader.exec_module(module)
    sys.dont_write_bytecode = old
    return module


@pytest.fixture(scope="module")
def script(): return load("bench")


def layer(name, formats, tactic=""):
    return {"Name": name, "LayerType": "gemm", "Inputs": [{"Name": "x", "Format/Datatype": f} for f in formats], "Outputs": [], "TacticName": tactic}


@pytest.mark.parametrize("precision,layers,fell", [
    ("fp8", [layer("a", ["FP8", "FP8"]), layer("b", ["Row major linear FP8 format"])], False),
    ("fp8", [layer("a", ["Float", "Float"]), layer("b", ["FP32"])], True),
    ("fp8", [layer("a", ["FP8"]), layer("b", ["BFloat16"]), layer("c", ["Half"])], True),
    ("bf16", [layer("a", ["BFloat16"]), layer("b", ["Float"], "sm110_xmma_gemm_bf16bf16")], False),
    ("bf16", [layer("a", ["Row major linear FP32"], "sm80_xmma_gemm_tf32f32")], True),
    ("nvfp4", [layer("a", ["FP4E2M1", "FP8"])], False),
    ("fp8", [layer("a", ["FP8", "FP8"], "sm80_xmma_gemm_f32f32_tf32f32_f32_nn_n_tilesize128x128")], True),                # fed in eight bits, multiplied in none
    ("bf16", [layer("a", ["BFloat16"], "sm80_xmma_gemm_f32f32_f32f32_f32_nn_n")], True),
    ("bf16", [*[{**layer("Reformatting CopyNode for Input Tensor 0 to /blocks.0/MatMul", ["BFloat16"]), "LayerType": "Reformat"}] * 5, *[layer("gemm", ["Float"])] * 4], True),
    ("fp8", [layer("a", ["FP8"])] * 55 + [layer("b", ["Float"])] * 45, True),                                            # more than half as asked
    ("fp8", [layer("a", ["FP8"])] * 93 + [layer("b", ["Float"])] * 7, True), ("fp8", [layer("a", ["FP8"])] * 97 + [layer("b", ["Float"])] * 3, False),
    ("bf16", [layer("a", ["BFloat16"])] * 9 + [{**layer(n, ["Float"]), "LayerType": "kgen"} for n in ("softmax", "layernorm")] * 9, False),      # no products
    ("fp8", [], True)])
def test_a_silent_fallback_is_seen(script, precision, layers, fell): assert script.fallback({"Layers": layers}, precision)["fallback"] is fell


def test_an_engine_is_held_against_what_its_graph_asked_for(script):
    "FP4 spares the eyes, so most products of a good engine are not in FP4."
    layers, asked = [layer("a", ["FP4E2M1"])] * 4 + [layer("b", ["BFloat16"])] * 6, {"FP4": {"products": 4}, "BF16": {"products": 6}}
    assert script.fallback({"Layers": layers}, "nvfp4")["fallback"] and not script.fallback({"Layers": layers}, "nvfp4", asked)["fallback"]
    assert script.fallback({"Layers": layers[3:]}, "nvfp4", asked)["fallback"]
    fell = script.fallback({"Layers": [*layers[:-1], layer("c", ["Float"])]}, "nvfp4", asked)
    assert fell["fallback"] and fell["stray"] == ["c (FP32)"] and fell["products"] == {"BF16": 5, "FP32": 1, "FP4": 4}


def wide(name, precision, rows, width): return layer(name, [precision]) | {"Inputs": [{"Dimensions": [1, rows, width], "Format/Datatype": precision}], "Outputs": [{"Dimensions": [1, rows, width]}]}


def test_work_weighs_more_than_number(script):
    "Where a report tells shapes: one wide product in FP32 outweighs nineteen narrow ones in FP8, and nineteen narrow ones in FP32 weigh nothing beside a wide one."
    narrow, asked = [wide(f"n{i}", "FP8", 16, 64) for i in range(19)], {"FP8": {"products": 20, "gflop": 20.}}
    fell = script.fallback({"Layers": [*narrow, wide("w", "Float", 300, 2048)]}, "fp8", asked)
    assert fell["fallback"] and fell["by"] == "work" and fell["stray"] == ["w (FP32)"] and fell["share"]["FP32"] > .99
    assert not script.fallback({"Layers": [wide("n", "Float", 16, 64)] * 19 + [wide("w", "FP8", 300, 2048)]}, "fp8", asked)["fallback"]
    assert script.fallback({"Layers": [layer("n", ["Float"])] * 19 + [wide("w", "FP8", 300, 2048)]}, "fp8", asked)["by"] == "count"


@pytest.mark.parametrize("eights,fell", [(80, False), (70, False), (55, True)])
def test_a_mixed_graph_may_be_mixed_and_no_more(script, eights, fell):
    "Of an FP8 graph with a fifth of its products between two activations, in bf16."
    layers = [layer("a", ["FP8"])] * eights + [layer("b", ["BFloat16"])] * (100 - eights)
    assert script.fallback({"Layers": layers}, "fp8", {"FP8": {"products": 80}, "BF16": {"products": 20}})["fallback"] is fell


def test_every_graph_of_the_bundle_says_what_it_asks_for(bundle, made):
    asked = json.loads((bundle / "bundle.json").read_text())["asked"]
    assert set(asked) == {f"{part}.{p}" for part in made["graphs"] for p in ("fp32", "bf16")}
    total = lambda name: [sum(a[k] for a in asked[name].values()) for k in ("products", "gflop")]
    for part in made["graphs"]:
        assert set(asked[f"{part}.fp32"]) == {"FP32"} and asked[f"{part}.bf16"]["BF16"]["gflop"] > .99 * total(f"{part}.bf16")[1]
        assert total(f"{part}.fp32") == pytest.approx(total(f"{part}.bf16"), rel=1e-4)
    graph = made["graphs"]["policy"]
    eight = files.asked(lower(quantise(graph, calibrate(graph, made["inputs"]))))
    assert eight["FP8"]["products"] == len(files.products(graph)) and eight["BF16"]["products"] > 0


REPORTS = Path(__file__).parent / "fixtures"


@pytest.mark.parametrize("name,precision,products,fell", [
    ("trtexec_layers_fp8.json", "fp8", {"FP8": 3}, False), ("trtexec_layers_fp8.json", "bf16", {"FP8": 3}, True), ("trtexec_layers_silent_fp32.json", "fp8", {"FP32": 3}, True)])
def test_a_whole_layer_report(script, name, precision, products, fell):
    "Written by hand in the form of trtexec's --exportLayerInfo: the same three products built as asked, and built in FP32 without a word."
    found = script.fallback(json.loads((REPORTS / name).read_text()), precision)
    assert found["products"] == products and found["fallback"] is fell and found["by"] == "work" and bool(found["stray"]) is fell


def test_layer_names_alone_are_refused(script):
    with pytest.raises(SystemExit, match="detailed"): script.fallback({"Layers": ["gemm_1", "gemm_2"]}, "fp8")


TRTEXEC = """#!/bin/bash
if [[ "$1" == --help ]]; then echo "  --stronglyTyped"; for i in {1..5000}; do echo "  --another$i  far more help than a pipe holds"; done; exit; fi
printf "%s\\n" "$@" >> "$(dirname "$0")/calls"
for a in "$@"; do case "$a" in --saveEngine=*) echo engine > "${a#*=}";; esac; done
"""


def build(bundle, tmp_path, *args, trtexec=True):
    "Run build.sh with a trtexec that notes what it was asked."
    fake = tmp_path / "trtexec"
    fake.write_text(TRTEXEC)
    fake.chmod(0o755)
    env = os.environ | {"TRTEXEC": str(fake if trtexec else tmp_path / "absent")}
    return subprocess.run(["bash", str(bundle / "build.sh"), *args], capture_output=True, text=True, env=env)


def test_build_script_parses(): subprocess.run(["bash", "-n", str(THOR / "build.sh")], check=True)


def test_build_script_builds_strongly_typed(bundle, tmp_path):
    done = build(bundle, tmp_path, "bf16")
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text()
    assert calls.count("--stronglyTyped") == calls.count("--profilingVerbosity=detailed") == 3 and "--fp8" not in calls and "--bf16" not in calls
    assert sorted(p.name for p in (bundle / "engines").glob("*.engine*")) == ["action_head.bf16.engine", "backbone.bf16.engine", "policy.bf16.engine"]
    assert (bundle / "engines" / "environment.txt").stat().st_size


@pytest.fixture(scope="module")
def fp4(): return load("nvfp4")


@pytest.mark.filterwarnings("ignore")
def test_without_fp4_the_graphs_for_fp4_say_what_torch_says(made, fp4, monkeypatch, tmp_path):
    "ModelOpt wants CUDA; all that stands around it does not: the way from a module in bf16 to a graph with float32 borders, the head woven from such graphs, and the policy from both."
    (tmp_path / "graphs").mkdir()
    monkeypatch.setattr(fp4, "two_step", lambda model: model)
    for p in (made["policy"], n16_of(made["policy"])):
        slot, inputs = made["robot"].slot, made["inputs"]
        one, expected = lowered(settled(p, slot), torch.bfloat16), [answers(p, x, slot) for x in inputs]
        x, features = ({k: torch.from_numpy(v) for k, v in each.items()} for each in (inputs[0], expected[0]))
        with torch.no_grad():
            seen = ["pixel_values", "input_ids", "attention_mask"]
            graphs = {"backbone": fp4.trace(one.backbone, tuple(x[n] for n in seen), seen, ["features"]),
                      "action_head": action_head_graph(one, features["features"].bfloat16(), x, 4, 21, fp4.trace)}
        for part, graph in graphs.items():
            onnx.checker.check_model(graph)
            for node in (n for n in graph.graph.node if n.op_type == "EyeLike"):     # TensorRT has it, ONNX Runtime does not have it for booleans
                graph.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(x["input_ids"].shape[1], dtype=bool), node.output[0]))
                graph.graph.node.remove(node)
            parity(emulated(graph), part, "bf16", inputs, expected).check(.999)
        about = {}
        for part, graph in graphs.items(): fp4.weave_policy(tmp_path, about); fp4.keep(tmp_path, about, part, graph)
        assert not (tmp_path / "graphs" / "policy.nvfp4.onnx").exists()                # only when both are there
        fp4.weave_policy(tmp_path, about)
        parity(emulated(files.load_graph(tmp_path / "graphs" / "policy.nvfp4.onnx")), "policy", "bf16", inputs, expected).check(.999)
        asked = json.loads((tmp_path / "bundle.json").read_text())["asked"]
        count = lambda part: sum(a["products"] for a in asked[f"{part}.nvfp4"].values())
        assert count("policy") == count("backbone") + count("action_head") and set(asked["policy.nvfp4"]) <= {"BF16", "FP32"}
        for file in (tmp_path / "graphs").iterdir(): file.unlink()


def test_the_heads_for_fp4_are_the_policys(made, fp4):
    "What ModelOpt measures the reach of: N1.5's head, and N1.6's, which takes the ids too."
    p, slot = made["policy"], made["robot"].slot
    x = {k: torch.from_numpy(v) for k, v in (made["inputs"][0] | made["expected"][0]).items()}
    for policy in (p, n16_of(p)):
        names = sorted(["features", "attention_mask", "state", "noise", *["input_ids"] * (policy is not p)])
        with torch.no_grad(): said = fp4.ActionHead(settled(policy, slot), names)(*(x[n] for n in names))
        want = policy.act(x["features"], x["attention_mask"], x["state"], torch.tensor([slot]), x["noise"], policy.patches(x["input_ids"]))
        assert torch.allclose(said, want, atol=1e-6)


@pytest.mark.parametrize("args,trtexec,code,says", [
    (["fp7"], True, 2, "unknown precision"), (["nvfp4"], True, 3, "nvfp4.py"), ([], False, 1, "trtexec not found")])
def test_build_script_says_what_to_do(bundle, tmp_path, args, trtexec, code, says):
    done = build(bundle, tmp_path, *args, trtexec=trtexec)
    assert done.returncode == code and says in done.stderr


def test_bundle_without_its_scripts(made, tmp_path, monkeypatch):
    monkeypatch.setenv("GROOT_COOKBOOK_DATA", str(tmp_path))
    with pytest.raises(core.CookbookError, match="missing"): write_bundle(tmp_path / "b", {"fp32": {}}, made["inputs"], made["expected"], {}, seen(made))


def test_bundle_json_describes_the_graphs(bundle, made):
    about = json.loads((bundle / "bundle.json").read_text())
    assert about["inputs"]["policy"] == [v.name for v in made["graphs"]["policy"].graph.input]
    data = np.load(bundle / "calibration.npz")
    assert {k: list(data[k].shape[1:]) for k in data.files} == {k: v[1:] for k, v in about["shapes"].items()} and len(data["noise"]) == 3


def test_a_real_humanoid_passes_through_the_same_code(made, gr1):
    dataset = Dataset(gr1)
    robot = Embodiment.of(dataset)
    policy = build_policy(made["policy"].backbone, robot, width=32, layers=2)
    x = observations(policy, dataset, robot.tag, 1)[0]
    assert robot.slot == 24 and x["pixel_values"].shape == (1, 3, 32, 32) and np.isfinite(x["state"]).all()
    assert np.allclose(answers(settled(policy, 24), x, 0)["actions"], answers(policy, x, 24)["actions"], atol=1e-6)
