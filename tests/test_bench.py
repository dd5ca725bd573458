"The benchmarks run and say what they measured; how fast this machine is, is no test."
import json

import bench
import numpy as np
import pytest
import torch

from groot_cookbook.filtering import QUESTIONS, THRESHOLD, WAYS, Verdict, ablation, heard


@pytest.mark.parametrize("name", ["camera_frame", "idm_frames"])
def test_a_benchmark_leaves_its_provenance(tmp_path, name):
    threads = torch.get_num_threads()
    try: assert bench.main(["--only", name, "--out", str(tmp_path), "--threads", "1"]) == 0
    finally: torch.set_num_threads(threads)
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert {"command", "commit", "hardware", "date", "load_average_before", "versions", "target", "met"} <= set(found)
    assert all(row["p99"] >= row["p50"] > 0 for row in found["rows"])


def test_a_result_says_what_was_typed_and_nothing_of_this_machine():
    assert bench.typed("gpu_policy.py", ["--n", "9", "--peer=/opt/p", "--n16", "--out", "/home/me", "--commit", "abc"]) == "python benchmarks/gpu_policy.py --n 9 --n16 --peer FOLDER"


def test_an_interval_counts_workspaces_and_not_clips():
    "Ten copies of every clip are no more evidence than one."
    x = np.random.default_rng(0).normal(size=40)
    once, copied = (bench.drawn_anew(lambda i, x=x: x[i].mean(), groups) for x, groups in ((x, np.arange(40)), (x.repeat(10), np.arange(40).repeat(10))))
    assert once == copied and once["low"] < once["is"] == round(x.mean(), 4) < once["high"]
    assert bench.drawn_anew(lambda i: x.repeat(10)[i].mean(), np.arange(400))["high"] < once["high"]


def test_without_the_gr1_sample_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GROOT_COOKBOOK_GR1", str(tmp_path / "nowhere"))
    assert bench.main(["--only", "idm_gr1", "--out", str(tmp_path), "--threads", str(torch.get_num_threads())]) == 1
    assert "the GR-1 sample is not here" in capsys.readouterr().out and not (tmp_path / "idm_gr1.json").exists()


def stored(name: str) -> dict: return json.loads((bench.ROOT / "data" / "results" / f"{name}.json").read_text())


def test_what_witnesses_add_is_what_the_stored_dreams_say():
    "The table is computed from verdicts; these are stored beside it, rounded."
    known = stored("critic_witnesses")
    verdicts = [Verdict({q: d[q] for q in QUESTIONS}, 0., d["kept"], consistency=d["consistency"]) for d in known["dreams"]]
    for scope, true in (("good", ("followed", "whole", "replayed")), ("replayed", ("replayed",))):
        good = np.array([all(d[k] for k in true) for d in known["dreams"]])
        rows = {r["backend"]: r for r in known["rows"] if r["scope"] == scope}
        assert list(rows) == list(WAYS) and {r["true"] for r in rows.values()} == {good.sum()}
        for way, found in ablation(verdicts, good).items():
            assert rows[way]["auc"] == pytest.approx(found["auc"], abs=2e-3) and rows[way]["kept"] == pytest.approx(found["keep rate"] * len(good), abs=1)
            assert rows[way]["auc_low"] <= rows[way]["auc"] <= rows[way]["auc_high"]
    assert [d["kept"] for d in known["dreams"]] == pytest.approx([heard(v) >= THRESHOLD for v in verdicts]) and rows["all three"]["kept"] == sum(d["kept"] for d in known["dreams"])


def test_the_critics_examination_is_of_one_piece():
    known = stored("critic_score")
    exam, auc_of = known["exam"], {(r["backend"], r["scope"]): r["auc"] for r in known["rows"]}
    assert exam["unseen"]["auc"] == auc_of["smallest", "kinds never shown"] and exam["unseen"]["auc_low"] < exam["unseen"]["auc"] < exam["unseen"]["auc_high"]
    assert {"true", "dream"}.isdisjoint(exam["kinds"]) and sum(k["clips"] for k in exam["kinds"].values()) == exam["unseen"]["clips"] + exam["seen"]["clips"] == exam["clips"] - exam["good"]
    at = {k: v[exam["tradeoff"]["threshold"].index(.5)] for k, v in exam["tradeoff"].items()}
    let_through = sum(k["let_through"] for k in exam["kinds"].values())
    assert at["keep rate"] * exam["clips"] == pytest.approx(let_through + at["recall"] * exam["good"], abs=.1)
    for curve in exam["reliability"].values(): assert curve["said"] == sorted(curve["said"]) and len(curve["answers"]) == 10


def test_the_gr1_row_is_of_the_parts_that_move():
    "Every episode is held out once by the one-step form and by both guesses, the last by all three forms; what it was held to is what its rows say."
    known = stored("idm_gr1")
    by = {(r["scope"], r["backend"]): r["keys"] for r in known["rows"]}
    names = [r["backend"] for r in known["rows"]]
    assert len(by) == len(names) == 3 * len(known["episodes"]) + 2 and all({"right_arm", "right_hand"} <= set(keys) for keys in by.values())
    last = {name: keys for (scope, name), keys in by.items() if scope == known["rows"][0]["scope"]}
    beats = lambda k: last["one step, regression"][k]["mae"] < min(last[guess][k]["mae"] for guess in ("the mean of what was shown", "holding still"))
    assert known["met"] == all(map(beats, last["one step, regression"]))
