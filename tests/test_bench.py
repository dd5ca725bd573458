"The benchmarks run and say what they measured; how fast this machine is, is no test."
import json

import bench
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
