"Percentiles, deadlines, the roofline's counting, and files that come home from a board."
import json, math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from groot_cookbook import core
from groot_cookbook.benchmark import (DEVICES, FORM, STEPS, Device, Latency, Op, Row, Tally, Work, ages, both_plans, chunk_ms, drive, fit_reading, floor_ms,
                                      ingest, measure, nudge, predict_ms, published, results, row_ms, times_ms, workload)
from groot_cookbook.workspace import sample_scene, seeds


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=200), st.floats(0, 100))
@settings(max_examples=100, deadline=None)
def test_percentiles_are_numpys(samples, q):
    assert Latency("a", "engine", tuple(samples)).percentile(q) == pytest.approx(np.percentile(samples, q))


@pytest.mark.parametrize("samples", [(), (1.0, float("nan")), (-1.0,), (math.inf,)])
def test_latencies_that_cannot_be(samples):
    with pytest.raises(core.CookbookError, match="finite, non-negative samples"): Latency("a", "engine", samples)


def test_measure_counts_calls():
    calls = []
    assert len(measure(lambda: calls.append(1), "a", "engine", n=5, warmup=2).samples_ms) == 5 and len(calls) == 7


# --- deadlines ---------------------------------------------------------------------------------------------------

@given(st.integers(1, 700), st.integers(1, 16), st.sampled_from([10.0, 30.0, 50.0]))
@settings(max_examples=200, deadline=None)
def test_the_law_of_the_loop(ms, replan, hz):
    "No misses exactly while (ticks between plans) + (ticks a plan takes) <= chunk."
    ahead = math.ceil(ms * hz / 1e3 - 1e-9)
    loop = drive([ms], hz=hz, replan=replan, ticks=300)
    assert (loop.misses == 0) == (max(replan, ahead) + ahead <= 16)


def test_no_latency_no_staleness_beyond_replanning():
    loop = drive([0.0], replan=4, ticks=400)
    assert loop.misses == 0 and loop.stale_ms_max == pytest.approx(3 * 1e3 / 30) and loop.stale_ms_mean == pytest.approx(1.5 * 1e3 / 30)


def test_one_hiccup_misses_as_many_ticks_as_it_is_too_long():
    "Replanning every 8; at once, but the second plan takes 20 ticks: the first chunk ends after 16, the second arrives at tick 8 + 20."
    loop = drive([0.0, 20 * 1e3 / 30, *[0.0] * 1000], replan=8, ticks=100)
    assert loop.misses == 12 + 0 and loop.plans > 5


def test_impossible_loops():
    for replan in (0, 17):
        with pytest.raises(core.CookbookError, match="replanning every"): drive([1.0], replan=replan)


@given(st.integers(1, 700), st.integers(1, 16))
@settings(max_examples=100, deadline=None)
def test_a_picture_is_never_younger_than_the_thought_it_took(ms, replan):
    age, plans = ages([ms], replan=replan, ticks=200)
    ahead = math.ceil(ms * 30 / 1e3 - 1e-9)
    assert age.min() == ahead and age[0] == ahead and age.max() <= ahead + max(replan, ahead) and (np.diff(age) <= 1).all() and plans >= 1


@pytest.fixture(scope="module")
def moved():
    scene = sample_scene(seeds("evaluation", 1, 70_000)[0])
    return scene, both_plans(scene)


@pytest.mark.parametrize("warning, age, placed", [(12, 0, True), (12, 4, True), (5, 12, False), (30, 12, True)])
def test_what_moves_after_the_last_picture_is_grasped_where_it_was(moved, warning, age, placed):
    "`warning` ticks before the gripper closes the block slides 5 cm; pictures are `age` ticks old."
    scene, plans = moved
    closes = int(np.argmax(plans[1][0, :, 6] > 0))
    assert nudge(scene, plans, closes - warning, np.full(plans[1].shape[1], age)) is placed


def test_the_expert_at_thirty_hertz_is_the_expert(moved):
    "Every third command is the demonstrations' own, and two plans differ in the arm alone, once the block lies elsewhere."
    from groot_cookbook.workspace import expert
    scene, (by, plans) = moved
    assert plans.shape == (2, 168, 7) and np.allclose(plans[0, 2::3], expert(scene)) and abs(by) == .05
    assert np.allclose(plans[0, :, 6], plans[1, :, 6]) and np.abs(plans[0, 60, :6] - plans[1, 60, :6]).max() > .05


# --- roofline ----------------------------------------------------------------------------------------------------

def test_counting_a_known_stack():
    stack = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Linear(16, 4, bias=False))
    with Tally(stack, {"0.": "a", "1.": "b"}) as tally, torch.no_grad(): stack(torch.zeros(3, 8))
    assert tally.ops == [Op("a", 768, 128, 72), Op("b", 384, 64, 60)]


def test_attention_counts_for_the_part_before_it():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.q = nn.Linear(8, 8, bias=False)
        def forward(self, x):
            q = self.q(x)
            return q @ q.transpose(1, 2)
    with torch.device("meta"):
        net = Net()
        with Tally(net, {"q": "mine"}) as tally, torch.no_grad(): net(torch.zeros(1, 5, 8))
    assert [(o.part, o.flops, o.weights) for o in tally.ops] == [("mine", 2 * 5 * 8 * 8, 64), ("mine", 2 * 5 * 5 * 8, 0)]


BOX = Device("box", 100, {"bf16": 10, "fp8": 20}, "made up")


def test_roofline_by_hand():
    work = Work("x", gflop=50, weights_m=400, activations_m=100)
    assert times_ms(work, BOX, "bf16") == pytest.approx((10, 5)) and times_ms(work, BOX, "fp8") == pytest.approx((6, 2.5))
    assert floor_ms(work, BOX, "bf16") == pytest.approx(8) and predict_ms(work, BOX, "bf16", .5) == pytest.approx(25)
    with pytest.raises(core.CookbookError, match="box has no nvfp4"): floor_ms(work, BOX, "nvfp4")


def test_steps_are_counted_as_often_as_they_run():
    work = {p: Work(p, 0, 50, 0) for p in ("vit", "dit_step")}
    assert "dit_step" in STEPS and chunk_ms(work, BOX, {"": "bf16"}) == pytest.approx(1 + 4)
    assert chunk_ms(work, BOX, {"": "bf16", "dit_step": "fp8"}, steps=8) == pytest.approx(1 + 4)


def test_the_share_of_bandwidth_is_found_again(monkeypatch):
    monkeypatch.setitem(DEVICES, "box", BOX)
    work = {p: Work(p, 10, w, 0) for p, w in (("vit", 400), ("llm", 700))}
    rows = [Row("m", "box", "e", "bf16", p, predict_ms(w, BOX, "bf16", .64), None, "s") for p, w in work.items()]
    assert fit_reading(rows, work) == pytest.approx(.64, abs=.002)


@pytest.fixture(scope="module")
def n15(): return workload()


def test_n15_is_counted_from_its_configuration(n15):
    "Against upstream's own printed parameter counts (and 9,855,008 parameters per embodiment, biases among them)."
    assert n15["dit_step"].weights_m == pytest.approx(550.386688, abs=.01)
    assert n15["adapter"].weights_m == pytest.approx(201.4, abs=.1)
    assert n15["vit"].weights_m == pytest.approx(412.0, abs=.5)
    assert sum(n15[p].weights_m for p in ("state_encoder", "action_encoder", "action_decoder")) == pytest.approx(9.85, abs=.02)


def test_prediction_holds_on_the_board_it_was_not_fitted_on(n15):
    large = ("vit", "llm", "adapter", "dit_step")
    rows = [r for r in published() if (r.model, r.mode, r.precision) == ("N1.5", "TensorRT engine", "fp16") and r.part in large]
    reading = fit_reading([r for r in rows if r.device == "Thor"], n15)
    assert .7 < reading <= 1
    for r in rows: assert abs(predict_ms(n15[r.part], DEVICES[r.device], r.precision, reading) / r.ms - 1) < .25, r
    for r in rows: assert floor_ms(n15[r.part], DEVICES[r.device], r.precision) < r.ms, r


def test_a_lean_step_reads_what_it_needs_and_the_scene_is_read_once(n15):
    "By hand: eight blocks have keys and values of a scene 2048 wide, and 17 modulations of 1536 x 3072 stand in the graph as constants, with the two layers before them."
    lean, keys_values, constants = workload(lean=True), 8 * 2 * 2049 * 1536 / 1e6, (17 * 1537 * 3072 + 257 * 1536 + 1537 * 1536) / 1e6        # biases too
    assert lean["dit_step"].weights_m == pytest.approx(n15["dit_step"].weights_m - keys_values - constants, abs=.01) and lean["scene"].weights_m == pytest.approx(keys_values, abs=.01)
    assert {p: w for p, w in lean.items() if p not in ("dit_step", "scene")} == {p: w for p, w in n15.items() if p != "dit_step"}
    assert chunk_ms(lean, DEVICES["Thor"], {"": "bf16"}) < chunk_ms(n15, DEVICES["Thor"], {"": "bf16"}) - 3


def test_a_head_is_its_parts(monkeypatch):
    monkeypatch.setitem(DEVICES, "box", BOX)
    work = {p: Work(p, 0, 50, 0) for p in ("adapter", "state_encoder", *STEPS)}
    row = lambda part: Row("m", "box", "e", "bf16", part, 1.0, None, "s")
    assert row_ms(row("adapter"), work, floor_ms) == pytest.approx(1) and row_ms(row("head"), work, floor_ms) == pytest.approx(2 + 4 * len(STEPS))


def test_published_rows_are_whole():
    rows = published()
    assert len(rows) == 171 and len(set(rows)) == 171 and all(r.ms > 0 and r.source and r.device for r in rows)
    assert [r.ms for r in rows if (r.model, r.device, r.mode, r.part) == ("N1.6", "Thor", "TensorRT", "end_to_end")] == [92]


# --- what comes home ---------------------------------------------------------------------------------------------

ROW = dict(part="policy", precision="fp8", scope="engine", cosine=.999, max_abs_error=.01, passed=True, fallback=False, p50=31.5)
GOOD = dict(form=FORM, backend="tensorrt", command="bench.py", date="2026-01-01", device="NVIDIA Thor", versions={}, checkpoint="0", model="N1.5",
            hardware=dict(board="Jetson AGX Thor", power_mode="NV Power Mode: MAXN\n0"), rows=[ROW])


def home(tmp_path, value):
    path = tmp_path / "bench.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def changed(**row): return GOOD | {"rows": [GOOD["rows"][0] | row]}


def test_a_good_file_comes_in(tmp_path):
    (row,), doubts = ingest(home(tmp_path, GOOD))
    assert not doubts
    assert (row.device, row.precision, row.part, row.ms) == ("Jetson AGX Thor", "fp8", "policy", 31.5)
    assert "MAXN" in row.source and "\n" not in row.source


def test_how_much_of_an_engine_is_what_was_asked_for_comes_home(tmp_path):
    "And which clocks were held; a file without either is read too."
    told = changed(share={"FP8": .97, "BF16": .03}, stray=[]) | {"hardware": GOOD["hardware"] | {"clocks": {"policy0": [1, 2], "gpu": [3, 3]}}}
    (row,), _ = ingest(home(tmp_path, told))
    assert row.as_asked == .97 and "1 of 2 clocks held" in row.source
    assert ingest(home(tmp_path, GOOD))[0][0].as_asked is None
    fell = changed(share={"FP8": .55, "FP32": .45}, stray=["blocks.0.to_q (FP32)"], fallback=True)
    with pytest.raises(core.CookbookError, match=r"not built in fp8: 55% of its products are, and not blocks.0.to_q \(FP32\)"): ingest(home(tmp_path, fell))


@pytest.mark.parametrize("value,says", [
    ("{", "not JSON"), ("[]", "not written by"), ({"form": "other"}, "not written by"), (GOOD | {"rows": []}, "no rows"),
    (GOOD | {"rows": [{}]}, "missing or of the wrong kind"),
    ({k: v for k, v in GOOD.items() if k != "date"}, "missing or of the wrong kind"),
    (GOOD | {"hardware": "Thor"}, "missing or of the wrong kind"), (changed(p50="fast"), "wrong kind"), (changed(p50=float("nan")), "a latency of nan"),
    (changed(p50=-1), "a latency of -1"), (changed(fallback=True), "was not built in fp8"),
    (changed(passed=False, cosine=-.55), "its speed means nothing"), (changed(cosine=float("nan")), "its speed means nothing")])
def test_a_bad_file_does_not(tmp_path, value, says):
    with pytest.raises(core.CookbookError, match=says): ingest(home(tmp_path, value))


def test_one_bad_row_does_not_shut_out_the_others(tmp_path):
    rows, doubts = ingest(home(tmp_path, GOOD | {"rows": [ROW, ROW | {"precision": "nvfp4", "cosine": .985, "passed": False}, ROW | {"precision": "bf16"}]}))
    assert [r.precision for r in rows] == ["fp8", "bf16"] and len(doubts) == 1 and "in nvfp4: the engine answers something else (cosine 0.9850)" in str(doubts[0])


def test_an_absent_file(tmp_path):
    with pytest.raises(core.CookbookError, match="No such file"): ingest(tmp_path / "nothing.json")


def test_absent_results_say_how_to_measure_them(tmp_path, monkeypatch):
    monkeypatch.setenv("GROOT_COOKBOOK_DATA", str(tmp_path))
    with pytest.raises(core.CookbookError, match="benchmarks/bench.py --only policy_latency"): results("policy_latency")
