"Manifests, hand-overs and checkpoints by name: the properties every stage relies on."
import json, os, subprocess, sys
from pathlib import Path

import psutil
import pytest
from safetensors import SafetensorError
from hypothesis import HealthCheck, given, settings, strategies as st

from groot_cookbook import core
from groot_cookbook.core import CookbookError, Manifest

values = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.none())


def hand(run, stage="00_workspace", params=None, inputs=(), text="a", **kw):
    with core.hand_over(run, stage, params or {}, inputs, **kw) as folder: (folder / "made.txt").write_text(text)
    return Manifest.read(run, stage)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(params=st.dictionaries(st.text(min_size=1), values, max_size=4))
def test_a_manifest_reads_back_as_written(tmp_path, params):
    made = hand(tmp_path, params=params)
    assert made.params == params and Manifest.read(tmp_path, "00_workspace").digest == made.digest
    assert core.expected(tmp_path, "00_workspace", params).params == params


def test_the_digest_follows_what_matters(tmp_path):
    first = hand(tmp_path, params={"seed": 0})
    assert hand(tmp_path, params={"seed": 0}).digest == first.digest
    assert hand(tmp_path, params={"seed": 1}).digest != first.digest
    assert hand(tmp_path, params={"seed": 0}, text="b").digest != first.digest
    one = hand(tmp_path, params={"seed": 0}); two = hand(tmp_path, "01_episodes", inputs=["00_workspace"])
    assert two.inputs == {"00_workspace": one.digest}


def test_volatile_files_are_not_hashed(tmp_path):
    assert hand(tmp_path, volatile=["made.txt"], text="1 s").digest == hand(tmp_path, volatile=["made.txt"], text="2 s").digest


@pytest.mark.parametrize("fault", [ValueError("no"), KeyboardInterrupt()])
def test_a_fault_leaves_the_stage_as_it_was(tmp_path, fault):
    before = hand(tmp_path)
    with pytest.raises(type(fault)):
        with core.hand_over(tmp_path, "00_workspace", {}) as folder:
            (folder / "half").touch()
            raise fault
    assert Manifest.read(tmp_path, "00_workspace") == before and os.listdir(tmp_path) == ["00_workspace"]


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device", "x"), SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")])
def test_a_full_disk_is_one_sentence(tmp_path, fault):
    before = hand(tmp_path)
    with pytest.raises(CookbookError, match="No space left on device. Free some space"):
        with core.hand_over(tmp_path, "00_workspace", {}): raise fault
    assert Manifest.read(tmp_path, "00_workspace") == before and os.listdir(tmp_path) == ["00_workspace"]


LIMITED = """
import resource, sys
from pathlib import Path
from groot_cookbook import core
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with core.hand_over(sys.argv[1], "00_workspace", {}) as folder: (folder / "large").write_bytes(bytes(1_000_000))
except core.CookbookError as e: print(e)
"""


def test_a_file_beyond_a_limit_is_one_sentence(tmp_path):
    "A quota or ulimit -f: the disk is not full, and yet nothing more can be written."
    before = hand(tmp_path)
    said = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True, cwd=Path(core.__file__).parent.parent).stdout
    assert "File too large. Free some space" in said and Manifest.read(tmp_path, "00_workspace") == before and os.listdir(tmp_path) == ["00_workspace"]


@pytest.fixture
def small_disk(tmp_path):
    "A disk of one megabyte."
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_disk_that_is_really_full(small_disk):
    before = hand(small_disk)
    with pytest.raises(CookbookError, match="No space left on device. Free some space"):
        with core.hand_over(small_disk, "00_workspace", {}) as folder: (folder / "large").write_bytes(bytes(2_000_000))
    assert Manifest.read(small_disk, "00_workspace") == before and os.listdir(small_disk) == ["00_workspace"]


def test_a_dataset_on_a_full_disk_leaves_nothing(small_disk):
    import numpy as np
    from groot_cookbook.episodes import Episode, write_dataset
    noise = np.random.default_rng(0).integers(0, 255, (40, 96, 96, 3), np.uint8)
    for version in ("v2.1", "v3.0"):
        with pytest.raises(CookbookError, match="Free some space"):
            write_dataset((Episode(noise, np.zeros((40, 2)), np.zeros((40, 2)), "t", 10) for _ in range(9)), small_disk / "d", version)
        assert os.listdir(small_disk) == []


def test_a_folder_that_may_not_be_written(tmp_path):
    if os.geteuid() == 0: blocked = tmp_path / "a"; blocked.touch()                    # root may write anywhere but into a file
    else: (blocked := tmp_path / "a").mkdir(mode=0o500)
    with pytest.raises(CookbookError, match="choose another folder with --out"): hand(blocked)


def test_a_missing_stage_says_how_to_make_it(tmp_path):
    with pytest.raises(CookbookError, match="has not been run. Run it first: groot-cookbook run --out .* --only 03"): core.require(tmp_path, "03_idm")


@pytest.mark.parametrize("said, then", [
    ("groot-cookbook run --profile laptop --dataset 'my robot' --only 00 01 -p 03_idm.seed=1", "groot-cookbook run --profile laptop --dataset 'my robot' -p 03_idm.seed=1 --only 03"),
    ("groot-cookbook run --out 'a --force b' --from=02 --force", "groot-cookbook run --out 'a --force b' --only 03"), ("something else", "groot-cookbook run --out {run} --only 03")])
def test_a_missing_stage_is_made_as_the_rest_of_its_run_was(tmp_path, said, then):
    (tmp_path / "run.json").write_text(json.dumps({"command": said}))
    assert core.made_by(tmp_path, "03_idm") == then.format(run=tmp_path)


def test_only_a_folder_of_its_kind_is_replaced(tmp_path):
    for name in ("absent", "empty", "ours", "theirs"):
        if name != "absent": (tmp_path / name).mkdir()
    (tmp_path / "ours" / "learners").mkdir(); (tmp_path / "theirs" / "slides.txt").touch(); (tmp_path / "file").touch()
    for name in ("absent", "empty", "ours"): assert core.only_own(tmp_path / name, "a workshop", "learners") == tmp_path / name
    for name in ("theirs", "file"):
        with pytest.raises(CookbookError, match="exists and is not a workshop.*nothing but a workshop is ever replaced"): core.only_own(tmp_path / name, "a workshop", "learners")


def altered(**values) -> str: return json.dumps({"stage": "03_idm", "params": {}, "inputs": {}, "code": "c", "outputs": {}, **values})


@pytest.mark.parametrize("text", ["", "[]", "{", '{"stage": "x"}', '{"surprise": 1}', "[" * 100_000, "\udcff", altered(schema=2), altered(stage="02_dreaming"), altered(params=[1]), altered(inputs=None),
                                  altered(outputs={"a": 1}), altered(volatile="time.json"), altered(volatile=[1]), altered(code=None)])
def test_a_damaged_manifest_or_one_of_another_version_is_named(tmp_path, text):
    (tmp_path / "03_idm").mkdir()
    (tmp_path / "03_idm" / "manifest.json").write_text(text, errors="surrogateescape")
    with pytest.raises(CookbookError, match="not a manifest"): Manifest.read(tmp_path, "03_idm")


def test_write_json_never_leaves_a_half(tmp_path):
    core.write_json(tmp_path / "a.json", {"b": 1})
    with pytest.raises(TypeError): core.write_json(tmp_path / "a.json", {"b": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1}


def test_folders_hash_by_name_and_content(tmp_path):
    (tmp_path / "a").write_text("x"); first = core.sha256(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b"); assert core.sha256(tmp_path) != first
    (tmp_path / "b").rename(tmp_path / "a"); assert core.sha256(tmp_path) == first


def test_run_folders_are_relative_to_the_project(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert core.run_folder("runs/smoke") == Path(core.__file__).parent.parent / "runs" / "smoke"
    assert core.run_folder(tmp_path) == tmp_path


def test_checkpoints_by_name(monkeypatch, tmp_path):
    monkeypatch.setenv("GROOT_COOKBOOK_DATA", str(tmp_path))
    own = tmp_path / "checkpoints" / "tiny-idm"
    own.mkdir(parents=True)
    (own / "card.json").write_text('{"seed": 1}')
    assert core.checkpoint("tiny-idm") == str(own) and core.checkpoint(own) == str(own)
    assert core.checkpoint("nvidia/GR00T-N1.5-3B") == "nvidia/GR00T-N1.5-3B"
    assert core.card(own) == {"seed": 1} and core.card(tmp_path) == {}
    with pytest.raises(CookbookError, match="or one of: tiny-idm"): core.checkpoint("tiny-imd")
    with pytest.raises(CookbookError, match="no checkpoint"): core.checkpoint("./a/b")


def test_importing_the_package_touches_nothing_heavy():
    loaded = subprocess.run([sys.executable, "-c", "import sys, groot_cookbook, groot_cookbook.core, groot_cookbook.cli; print(*sorted(sys.modules))"], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "diffusers", "transformers", "matplotlib", "papermill", "mujoco"} & set(loaded)


# --- something to touch -----------------------------------------------------------------------------------------

def rising(slope=1, colour="red"):
    "A line & its slope"
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots(figsize=(2, 1))
    ax.plot([0, slope], color=colour)
    calls.append((slope, colour))
    return fig


calls = []


@pytest.mark.parametrize("metadata, looks", [({"cellId": "t001", "tags": []}, True), ({"tags": []}, False), ({}, False)], ids=["JupyterLab", "a front end without ids", "papermill"])
def test_who_looks_is_told_by_the_request(monkeypatch, metadata, looks):
    import IPython
    monkeypatch.setattr(IPython, "get_ipython", lambda: type("Shell", (), {"get_parent": lambda self: {"metadata": metadata}})())
    assert core.somebody_looks() is looks


def test_outside_a_notebook_nobody_looks(): assert not core.somebody_looks()


@pytest.fixture
def shown(monkeypatch):
    "What is displayed."
    from IPython import display
    things = []
    monkeypatch.setattr(display, "display", lambda *new, **_: things.extend(new))
    calls.clear()
    return things


def test_where_nobody_looks_the_figure_is_drawn_once_and_not_shown(shown):
    core.touch(rising, slope=(0, 3), colour=["red", "blue"])
    assert calls == [(1, "red")] and not shown
    with pytest.raises(ZeroDivisionError): core.touch(lambda slope=0: 1 / slope, slope=(0, 3))         # a cell that has stopped working fails a run


def test_a_slider_redraws_the_figure(shown, monkeypatch):
    monkeypatch.setattr(core, "somebody_looks", lambda: True)
    core.touch(rising, slope=(0, 3), colour=["red", "blue"])
    sliders, figure = shown[0].children
    slope, colour = sliders.kwargs_widgets
    assert (slope.value, slope.min, slope.max, colour.value) == (1, 0, 3, "red") and calls == [(1, "red")]
    assert figure.value.startswith('<img src="data:image/png;base64,') and 'alt="A line &amp; its slope"' in figure.value
    before = figure.value
    slope.value = 3
    assert calls[-1] == (3, "red") and figure.value != before
    colour.value = "blue"
    assert calls[-1] == (3, "blue")


PARENT = """
import os, time
from groot_cookbook import core
if __name__ == "__main__":
    pool = core.pool(2)
    print(*{pool.submit(os.getpid).result() for _ in range(8)}, *(p.pid for p in pool._processes.values()), flush=True)
    time.sleep(600)
"""


def test_workers_end_with_a_parent_that_was_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        workers = {psutil.Process(int(pid)) for pid in parent.stdout.readline().split()} | set(psutil.Process(parent.pid).children(recursive=True))
        assert len(workers) >= 2
        parent.kill()
    assert not psutil.wait_procs(workers, timeout=20)[1]


# --- arithmetic -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("found, has", [({"avx2": True, "avx512_f": True}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"architecture": "aarch64", "neon": True, "bf16": True}, True), ({"bf16": False, "sve_bf16": False}, False)])
def test_auto_is_bfloat16_where_the_processor_multiplies_it(monkeypatch, found, has):
    import torch
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    monkeypatch.setattr(sys, "platform", "linux")
    core.has_bf16.cache_clear()
    try:
        assert core.arithmetic() == ("bf16" if has else "fp32") and core.arithmetic("bf16") == "bf16" and core.arithmetic("fp32") == "fp32"
        with core.autocast(): assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is (torch.bfloat16 if has else torch.float32)
    finally: core.has_bf16.cache_clear()


def test_a_precision_that_nobody_knows_is_an_error():
    with pytest.raises(CookbookError, match="fp17"): core.autocast("fp17")


def test_code_that_is_edited_while_a_chapter_runs_makes_it_stale(tmp_path, monkeypatch):
    monkeypatch.setenv(core.BEGUN, "00_workspace the-digest-then")
    assert hand(tmp_path).code == "the-digest-then" != core.code_digest("00_workspace")
    assert hand(tmp_path, "01_episodes").code == core.code_digest("01_episodes")        # another chapter's kernel


@pytest.mark.parametrize("text", ["x" * 300, "a\0b"])
def test_a_text_that_cannot_name_a_folder_names_none(text):
    with pytest.raises(CookbookError, match="no checkpoint"): core.checkpoint(text)


@pytest.mark.parametrize("text", ["[]", "3", "{"])
def test_a_card_that_is_none_is_named(tmp_path, text):
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(CookbookError, match="not a card"): core.card(tmp_path)


def test_a_pipe_is_written_to_and_never_replaced(tmp_path):
    "As /dev/null is, given as --out by root."
    os.mkfifo(pipe := tmp_path / "pipe")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    core.write_json(pipe, {"a": 1})
    assert json.loads(os.read(reader, 100)) == {"a": 1} and pipe.is_fifo() and [*tmp_path.iterdir()] == [pipe]
    os.close(reader)
