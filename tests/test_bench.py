"The benchmarks run and say what they measured; how fast this machine is, is no test."
import json

import bench
import numpy as np
import pytest
import torch


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
    assert "left out: the GR-1 sample is not here" in capsys.readouterr().out and not (tmp_path / "idm_gr1.json").exists()
