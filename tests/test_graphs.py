"Joining, quantising and lowering ONNX graphs."
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings, strategies as st
from onnx import TensorProto, helper, numpy_helper

from groot_cookbook.backbone import Backbone, BackboneConfig
from groot_cookbook.export import trace
from groot_cookbook.graphs import E4M3_MAX, Piece, asked, calibrate, emulated, fp8_scale, lower, open_session, products, quantise, to_fp8, weave


def model(nodes, inputs, outputs, **weights):
    info = lambda shapes: [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    arrays = [numpy_helper.from_array(np.asarray(w, np.float32), n) for n, w in weights.items()]
    graph = helper.make_graph(nodes, "g", info(inputs), info(outputs), arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


@pytest.fixture
def net():
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("MatMul", ["x", "A"], ["h"], "a"), helper.make_node("Softmax", ["h"], ["p"], "s"),
             helper.make_node("MatMul", ["p", "B"], ["y"], "b")]
    graph = model(nodes, {"x": (3, 16)}, {"y": (3, 4)}, A=rng.normal(size=(16, 24)), B=rng.normal(size=(24, 4)))
    return graph, rng.normal(size=(3, 16)).astype(np.float32)


def run(graph, **inputs): return open_session(graph).run(None, inputs)[0]
def cosine(a, b): return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


@given(st.floats(1e-3, 1e3), st.floats(-1, 1))
@settings(max_examples=200, deadline=None)
def test_eight_bits_err_by_at_most_a_sixteenth(peak, fraction):
    scale, value = fp8_scale(peak), np.float32(peak * fraction)
    back = float(to_fp8(value, scale)) * scale
    half_a_step, at_the_top, near_zero = abs(value) / 16, peak * 2 ** -9, scale * 2 ** -9      # the scale's own rounding cuts at the top
    assert abs(back - value) <= max(half_a_step + at_the_top, near_zero) * 1.02


def test_eight_bits_saturate():
    assert float(to_fp8(np.float32(1e9), 1.0)) == E4M3_MAX and float(to_fp8(np.float32(-1e9), 1.0)) == -E4M3_MAX


def test_a_scale_is_exact_in_bf16():
    import ml_dtypes
    for peak in (0.0, 1e-9, 0.3, 7.7, 1e6): assert float(np.float32(fp8_scale(peak)).astype(ml_dtypes.bfloat16)) == fp8_scale(peak) > 0


def test_pieces_share_weights_but_not_values():
    nodes = [helper.make_node("Mul", ["x", "w"], ["m"], "mul"), helper.make_node("Add", ["m", "c"], ["y"], "add")]
    step = model(nodes, {"x": (2,), "c": (2,)}, {"y": (2,)}, w=[3.0])
    pieces = [Piece(step, "step", f"s{i}", {"x": f"x{i}", "y": f"x{i + 1}", "c": f"c{i}"}) for i in range(2)]
    both = weave(pieces, ["x2"], {"c0": np.float32([1, 1]), "c1": np.float32([0, 5])})
    onnx.checker.check_model(both, full_check=True)
    assert [i.name for i in both.graph.input] == ["x0"] and [w.name for w in both.graph.initializer].count("step.w") == 1
    assert run(both, x0=np.float32([1, 2])).tolist() == [12, 26]


def test_only_products_with_weights_are_quantised(net):
    graph, x = net
    graph.graph.node.insert(0, helper.make_node("MatMul", ["x", "xt"], ["unused"], "activations"))
    graph.graph.input.append(helper.make_tensor_value_info("xt", TensorProto.FLOAT, (16, 3)))
    assert [n.name for n in products(graph)] == ["a", "b"]


def test_fp8_is_close_and_small(net):
    graph, x = net
    eight = quantise(graph, calibrate(graph, [{"x": x}]))
    onnx.checker.check_model(eight, full_check=True)
    assert cosine(run(eight, x=x), run(graph, x=x)) > .99
    assert calibrate(graph, [{"x": x}, {"x": 3 * x}, {"x": x}])["x"] == pytest.approx(3 * np.abs(x).max())     # the largest of all observations
    types = {w.name: w.data_type for w in eight.graph.initializer}
    assert types["A/fp8"] == TensorProto.FLOAT8E4M3FN and "A" not in types        # the float32 weight is gone


@pytest.mark.parametrize("low", [TensorProto.BFLOAT16, TensorProto.FLOAT16])
def test_lowering_keeps_borders_and_softmax(net, low):
    graph, x = net
    lowered = lower(graph, low)
    onnx.checker.check_model(lowered, full_check=True)
    inferred = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(lowered).graph.value_info}
    assert inferred["p"] == TensorProto.FLOAT and inferred["h"] == low
    assert [o.type.tensor_type.elem_type for o in lowered.graph.output] == [TensorProto.FLOAT]
    assert cosine(run(emulated(lowered, low), x=x), run(graph, x=x)) > .9999


def test_angles_keep_their_digits():
    "Two layers with N1.5's rotary code, 128 wide, and as many tokens as one view and a sentence have: rounded to bf16 the last positions would be a radian off."
    torch.manual_seed(0)
    text = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=128, vocab_size=128, max_position_embeddings=512, rope_theta=1e6, tie_word_embeddings=True)
    backbone = Backbone(BackboneConfig(vision=dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16), text=text, select_layer=2, image_token_index=1)).eval()
    for p in backbone.parameters():
        if p.ndim > 1: torch.nn.init.normal_(p, std=3 * p.shape[-1] ** -.5)       # large enough for attention to choose
    ids = torch.randint(2, 128, (1, 304))
    ids[:, 5:9] = 1
    x = dict(pixel_values=torch.rand(1, 3, 32, 32), input_ids=ids, attention_mask=torch.ones_like(ids))
    with torch.no_grad(): want = backbone(*x.values()).numpy()
    low = lower(trace(backbone, tuple(x.values()), list(x), ["features"]))
    onnx.checker.check_model(low, full_check=True)
    assert cosine(run(emulated(low), **{k: v.numpy() for k, v in x.items()}), want) > .9995
    types = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(low).graph.value_info}
    turned = [n.input[0] for n in low.graph.node if n.op_type in ("Sin", "Cos")]
    assert turned and all(types[i] == TensorProto.FLOAT for i in turned)
    assert not any(n.op_type == "Cast" and n.output[0] in turned and types.get(n.input[0]) == TensorProto.BFLOAT16 for n in low.graph.node)


def test_emulation_equals_real_kernels_where_there_are_some(net):
    "ONNX Runtime can run float16: what `emulated` says must be what it says, up to a rounding."
    graph, x = net
    half = lower(graph, TensorProto.FLOAT16)
    assert np.abs(run(half, x=x) - run(emulated(half, TensorProto.FLOAT16), x=x)).max() < 5e-3


def test_what_a_graph_asks_of_its_products(net):
    "By hand: (3, 16) by (16, 24), then (3, 24) by (24, 4), two operations each."
    graph, x = net
    gflop = 2 * 3 * 24 * (16 + 4) / 1e9
    eight = quantise(graph, calibrate(graph, [{"x": x}]))
    for g, kind in ((graph, "FP32"), (lower(graph), "BF16"), (lower(graph, TensorProto.FLOAT16), "FP16"), (eight, "FP8"), (lower(eight), "FP8")):
        assert asked(g) == {kind: {"products": 2, "gflop": pytest.approx(gflop)}}


def test_behind_a_node_of_modelopts_four_bits_are_seen():
    "Its type cannot be inferred, so nothing is said about work; a product that does not stand behind one is of the module's own type."
    nodes = [helper.make_node("TRT_FP4DynamicQuantize", ["x", "s"], ["q", "t"], "quantize", domain="trt"), helper.make_node("DequantizeLinear", ["q", "t"], ["b"], "back"),
             helper.make_node("MatMul", ["b", "W"], ["y"], "four"), helper.make_node("MatMul", ["y", "V"], ["z"], "sixteen")]
    graph = model(nodes, {"x": (3, 16)}, {"z": (3, 4)}, s=1., W=np.ones((16, 16)), V=np.ones((16, 4)))
    graph.opset_import.append(helper.make_opsetid("trt", 1))
    assert asked(graph) == {"BF16": {"products": 1}, "FP4": {"products": 1}}
    woven = weave([Piece(model([helper.make_node("Identity", ["a"], ["x"], "same")], {"a": (3, 16)}, {"x": (3, 16)}), "one", "one", {"a": "a", "x": "x"}), Piece(graph, "two", "two", {"x": "x", "z": "z"})], ["z"])
    assert {o.domain: o.version for o in woven.opset_import} == {"": 22, "trt": 1}


def test_originals_are_left_alone(net):
    graph, x = net
    before = graph.SerializeToString()
    lower(quantise(graph, calibrate(graph, [{"x": x}])))
    assert graph.SerializeToString() == before
