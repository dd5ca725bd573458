"The benchmark of a full-size export, at a tiny size; once with the limit of one file forced down, so that weights lie beside the graphs as they do at full size."
import json
import sys

import full_size
import pytest

from groot_cookbook import graphs


@pytest.mark.slow
def test_every_graph_is_written_opened_and_compared(tmp_path):
    assert full_size.main(["--size", "tiny", "--precision", "fp8", "--threads", "1", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "full_size_onnx.json").read_text())
    assert [r["step"] for r in found["rows"]] == ["export", *(f"{part} fp8" for part in ("backbone", "action_head", "policy"))]
    assert all(r["passed"] and r["run"]["peak_gb"] > 0 for r in found["rows"][1:]) and {"command", "commit", "hardware", "date", "versions"} <= set(found)
    assert [p.name for p in tmp_path.iterdir()] == ["full_size_onnx.json"]


def test_the_whole_shares_the_weights_of_its_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "LIMIT", 10_000)
    made = full_size.export("tiny", 2, tmp_path)
    parts = {part: set(g["files"]) - {f"{part}.onnx", f"{part}.onnx.data"} for part, g in made["graphs"].items()}
    assert parts["policy"] == parts["backbone"] | parts["action_head"] and len(parts["policy"]) == 3
    assert made["disk_gb"] < 1.3e-9 * 4e6 * made["parameters_m"]
    for part in parts: assert full_size.check(part, "fp32", 2, tmp_path, 1)["passed"] and full_size.check(part, "bf16", 2, tmp_path, 1)["passed"]


def test_a_step_that_wants_too_much_says_so(tmp_path):
    assert full_size.main(["--size", "tiny", "--memory", "0.05", "--out", str(tmp_path)]) == 1
    (row,) = json.loads((tmp_path / "full_size_onnx.json").read_text())["rows"]
    assert row == {"step": "export", "failed": "wanted more than 0.05 GB"}


@pytest.mark.parametrize(("script", "why"), [("pass", ""), ("print('x'); raise SystemExit('too few\\nno room')", "no room"), ("import os; os.kill(os.getpid(), 9)", "ended by signal 9"),
                                             ("raise SystemExit(3)", "?"), ("import time; x = bytearray(b'x' * 300_000_000); time.sleep(600)", "wanted more than 0.25 GB")])
def test_how_a_step_failed_is_told(script, why): assert full_size.ended([sys.executable, "-c", script], .25) == why
