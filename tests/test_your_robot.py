"Chapter 20: parts from names and from movement, the doubts about them, what is taken home; the chapter on a dataset of its own and on the GR-1 sample."
import ast, json, re

import numpy as np
import pytest

from groot_cookbook import chapters, cli, core, runner
from groot_cookbook.core import CookbookError, Manifest
from groot_cookbook.episodes import Dataset, Episode, Modality, validate, write_dataset
from groot_cookbook.layout import OWN_COLUMN
from groot_cookbook.policy import GrootPolicy
from groot_cookbook.your_robot import choose_driven, data_config, how_to_train, part_of, propose, read_parts, runs

STAGE = "20_your_robot"
LONG = ["--cell-limit", "3600", "--chapter-limit", "7200"]


def brought(path, actions, names=None, modality=None):
    "A dataset of one camera with these commands, (T, A); without a table unless one is given."
    actions = np.asarray(actions, np.float32)
    frames = np.random.default_rng(0).integers(0, 255, (len(actions), 16, 16, 3), dtype=np.uint8)
    e = Episode(frames, actions, actions, "lift the lid", 30., {})
    names = names if isinstance(names, dict) else {c: names for c in OWN_COLUMN.values()} if names else None
    d = write_dataset([e], path, "v3.0", "some_arm", modality=modality, names=names)
    if modality is None: (d / "meta" / "modality.json").unlink()
    return Dataset(d)


def waves(width, still=(), switch=()):  # -> (60, width)
    a = np.sin(np.arange(60)[:, None] * .3 + np.arange(width))
    a[:, list(still)] = .5
    a[:, list(switch)] = (np.arange(60) // 15 % 2)[:, None]
    return a


def whats(proposal): return [f.what for f in proposal.findings]


@pytest.mark.parametrize("name, part", [
    ("shoulder_pan.pos", "arm"), ("gripper.pos", "gripper"), ("main_wrist_roll", "arm"), ("left_waist", "left_arm"), ("waist", "waist"), ("right_gripper", "right_gripper"),
    ("kLeftHandThumb0", "left_hand"), ("kRightHipPitch", "right_leg"), ("kWaistYaw", "waist"), ("panda_finger_joint1", "gripper"), ("panda_joint4", "arm"), ("x", "tip"), ("yaw", "tip"),
    ("x.vel", "base"), ("theta.vel", "base"), ("head_pan", "neck"), ("r_ring", "right_hand"), ("motor_7", ""), ("state_3", ""), ("", ""), ("7", "")])
def test_a_name_says_which_part(name, part): assert part_of(name) == part


def test_a_part_that_comes_again_gets_a_number():
    assert runs(["arm", "arm", "gripper", "arm"]) == {"arm": slice(0, 2), "gripper": slice(2, 3), "arm_2": slice(3, 4)}
    assert runs([]) == {}


def test_names_are_asked_before_movement(tmp_path):
    p = propose(brought(tmp_path / "d", waves(7, switch=[2]), [f"joint_{i}" for i in range(6)] + ["gripper"]))
    assert p.said_by == {"state": "names", "action": "names"} and p.modality.action == p.modality.state == {"arm": slice(0, 6), "gripper": slice(6, 7)}
    assert whats(p) == ["action 2 take two values only, but are in no gripper or hand"]


def test_movement_is_asked_where_names_say_nothing(tmp_path):
    p = propose(brought(tmp_path / "d", waves(24, still=[*range(7, 13), 15, *range(20, 24)], switch=[18, 19])))
    assert p.said_by["action"] == "movement"
    assert p.modality.action == {"body": slice(0, 7), "still": slice(7, 13), "body_2": slice(13, 18), "hand": slice(18, 20), "still_2": slice(20, 24)}     # one joint at rest parts no arm


def test_where_nobody_knows_the_vectors_stay_whole(tmp_path):
    p = propose(brought(tmp_path / "d", waves(4)))
    assert p.said_by["state"] == "nobody" and p.modality.state == {"state": slice(0, 4)} and p.modality.action == {"action": slice(0, 4)}
    assert any("neither names nor movement" in w for w in whats(p)) and "no part of the action is a gripper or a hand" in whats(p)


def test_its_own_table_is_believed_and_you_before_it(tmp_path):
    d = brought(tmp_path / "d", waves(5), [f"joint_{i}" for i in range(4)] + ["gripper"], Modality({"left_arm": slice(0, 5)}, {"left_arm": slice(0, 4), "gripper": slice(4, 5)}))
    assert propose(d).said_by == {"state": "modality.json", "action": "modality.json"} and propose(d, table=False).said_by["action"] == "names"
    told = propose(d, "action.claw=3:5")
    assert told.said_by == {"state": "modality.json", "action": "you"} and told.modality.action == {"claw": slice(3, 5)}
    assert "action 0, 1, 2 belong to no part, and are not learned" in whats(told)
    assert "action 1 belong to two parts" in whats(propose(d, "action.arm=0:2,action.wrist=1:5"))
    with pytest.raises(CookbookError, match="0:9.*5 numbers"): propose(d, "arm=0:9")


@pytest.mark.parametrize("text", ["arm", "arm=0-6", "arm=0:6 gripper=6:7", "head.arm=0:6", "=0:1", "arm=-1:6"])
def test_parts_are_read_strictly(text):
    with pytest.raises(CookbookError, match="cannot read"): read_parts(text)


def test_a_gripper_that_never_moves_is_doubted(tmp_path):
    assert any(w.startswith("gripper (2:3) never moves") for w in whats(propose(brought(tmp_path / "d", waves(3, still=[2]), ["joint_0", "joint_1", "gripper"]))))


def test_what_does_not_fit_is_left_out_and_said(tmp_path):
    wide = Modality({"all": slice(0, 40)}, {"leg": slice(0, 12), "left_arm": slice(12, 26), "left_hand": slice(26, 32), "right_arm": slice(32, 40)})
    assert choose_driven(wide, "new_embodiment") == ["left_arm", "left_hand", "right_arm"]
    p = propose(brought(tmp_path / "d", waves(40), modality=wide))
    assert any("40 numbers a policy takes 32: leg are left out" in w for w in whats(p))


def test_joints_may_be_sensed_and_a_hand_be_driven(tmp_path):
    "As on DROID: the state is joints, the action a pose of the hand."
    p = propose(brought(tmp_path / "d", waves(7, switch=[6]), {"observation.state": [f"joint_{i}" for i in range(6)] + ["gripper"], "action": [*"xyz", "roll", "pitch", "yaw", "gripper"]}))
    assert list(p.modality.action) == p.driven == ["tip", "gripper"] and p.sensed == ["arm", "gripper"] and not p.findings
    assert '["state.arm", "state.gripper"]' in data_config(p, "new_embodiment")


def test_columns_that_stay_behind_are_named(tmp_path):
    d = brought(tmp_path / "d", waves(3), ["joint_0", "joint_1", "gripper"])
    info = json.loads((d.path / "meta" / "info.json").read_text())
    info["features"]["observation.effort"] = {"dtype": "float32", "shape": [3], "names": None}
    (d.path / "meta" / "info.json").write_text(json.dumps(info))
    assert "columns observation.effort are not carried over" in whats(propose(Dataset(d.path)))


def test_the_data_configuration_reads_what_was_proposed(tmp_path):
    p = propose(brought(tmp_path / "d", waves(3), ["joint_0", "joint_1", "gripper"]))
    tree = ast.parse(data_config(p, "new_embodiment"))
    (config,) = [n for n in tree.body if isinstance(n, ast.ClassDef)]
    told = {n.targets[0].id: ast.literal_eval(n.value) for n in config.body if isinstance(n, ast.Assign) and not isinstance(n.value, ast.Call)}
    assert told["video_keys"] == ["video.front"] and told["state_keys"] == ["state.arm", "state.gripper"] and told["action_keys"] == ["action.arm", "action.gripper"]
    assert told["language_keys"] == ["annotation.human.task_description"]


def test_a_gr1_keeps_its_sines_and_cosines(tmp_path):
    "Its slot has learned them; LeRobot, which scales every state, is sent to a slot that has learned nothing."
    p = propose(brought(tmp_path / "d", waves(3), ["joint_0", "joint_1", "gripper"]))
    assert "StateActionSinCosTransform(apply_to=self.state_keys)" in data_config(p, "gr1") and "SinCos" not in data_config(p, "new_embodiment")
    ast.parse(data_config(p, "gr1"))
    parts = {"left_arm": slice(0, 7), "left_hand": slice(7, 13), "right_arm": slice(13, 20), "right_hand": slice(20, 26), "waist": slice(26, 29)}
    learned = ["left_arm", "right_arm", "left_hand", "right_hand"]                            # in this order, whatever the table's is
    assert choose_driven(Modality(parts, parts), "gr1") == learned != choose_driven(Modality(parts, parts), "new_embodiment")
    assert type(p)(Modality(parts, parts), p.said_by, learned, []).sensed == learned
    assert "--embodiment-tag gr1" in how_to_train("gr1") and "--policy.embodiment_tag=new_embodiment" in how_to_train("gr1")


def test_a_camera_with_a_quote_in_its_name_does_not_become_code(tmp_path):
    p = propose(brought(tmp_path / "d", waves(2), ["joint_0", "gripper"]))
    odd = type(p)(Modality(p.modality.state, p.modality.action, 'x"]; import os; ["', "observation.images.x"), p.said_by, p.driven, [])
    (config,) = [n for n in ast.parse(data_config(odd, "new_embodiment")).body if isinstance(n, ast.ClassDef)]
    assert not [n for n in ast.walk(config) if isinstance(n, ast.Import)]


# --- the chapter ------------------------------------------------------------------------------------------------

def test_the_runner_knows_it_and_the_spine_goes_without(tmp_path):
    assert chapters.pick(chapters.chapters(), "20").name == chapters.pick(chapters.chapters(), "your_robot").name == STAGE
    assert [c.name for c in runner.prepare(out=tmp_path).selected] == list(core.STAGES)
    assert [c.name for c in runner.prepare(out=tmp_path, only=["20"]).selected] == [STAGE]


def test_a_dataset_is_named_once_for_every_chapter_that_takes_one(tmp_path):
    d = brought(tmp_path / "mine", waves(3), ["joint_0", "joint_1", "gripper"])
    run = runner.prepare(only=["20"], dataset=d.path)
    assert run.params[STAGE]["dataset"] == run.params["01_episodes"]["dataset"] == str(d.path.resolve()) and run.out.name == "smoke-mine"


def check(out, source, robot, width, tag):
    "What a finished chapter holds, whoever's robot it was."
    made = out / STAGE
    assert Manifest.read(out, STAGE).inputs == {}
    groot, lerobot = Dataset(made / "groot", views=True), Dataset(made / "lerobot", views=True)
    assert (groot.layout.version, lerobot.layout.version, groot.robot_type) == ("v2.1", "v3.0", robot)
    assert not [f for d in (groot, lerobot) for f in validate(d.path) if f.severity == "error"]
    if source:
        for i in range(len(source)):
            for d in (groot, lerobot): np.testing.assert_array_equal(d.rows(i)[1], source.rows(i)[1])
    report, policy = json.loads((made / "report.json").read_text()), GrootPolicy.from_pretrained(made / "policy")
    assert set(policy.processor.embodiments) == {tag, "dreams"} and len(policy.processor.embodiments[tag].action_columns) == width
    assert set(report["open_loop"]["policy"]) == set(report["driven"]) and all(v >= 0 for v in report["open_loop"]["policy"].values())
    verdicts = json.loads((made / "verdicts.json").read_text())
    assert report["dreams"]["kept"] == sum(v["kept"] for v in verdicts) and (made / "dreams").is_dir() == any(v["kept"] for v in verdicts)
    ast.parse((made / "robot_config.py").read_text())
    assert how_to_train(tag) == (made / "train.md").read_text() and not re.search(r"/(home|root|tmp|work)/", how_to_train(tag))
    assert not list(out.glob(".your_robot*")) and (out / "report.html").is_file()
    return groot, report


@pytest.mark.slow
def test_it_runs_alone_on_a_fresh_folder(tmp_path):
    assert cli.main(["run", "--only", "20", "--out", str(tmp_path / "x"), "-p", "20.idm_steps=20", "-p", "20.dreams=1", *LONG]) == 0
    groot, report = check(tmp_path / "x", None, "somebodys_arm", 7, "new_embodiment")
    assert list(groot.modality.cameras) == ["front", "side"] and groot.fps == 20 and groot.names["action"][0] == "shoulder_pan.pos"
    assert report["said_by"] == {"state": "names", "action": "names"} and report["idm"]["from"] == "tiny-idm"
    assert sorted(p.name for p in (tmp_path / "x").iterdir() if p.is_dir()) == [STAGE, "notebooks"]


@pytest.mark.gr1
@pytest.mark.slow
def test_it_runs_on_the_gr1_sample(gr1, tmp_path):
    before = core.sha256(gr1)
    assert cli.main(["run", "--only", "20", "--dataset", str(gr1), "--out", str(tmp_path / "x"), "-p", "20.steps=20", "-p", "20.idm_steps=20", "-p", "20.dreams=1", *LONG]) == 0
    assert core.sha256(gr1) == before
    groot, report = check(tmp_path / "x", Dataset(gr1), "GR1ArmsOnly", 26, "gr1")
    assert groot.modality.action["right_hand"] == slice(29, 35) and len(report["warts"]) == 6 and report["idm"]["from"] == "nothing"
    assert report["dreams"]["kept"] == 0                     # of a kitchen, dreamed by a model that knows one table


@pytest.mark.gr1
def test_movement_finds_gr1s_arms_without_its_table(gr1):
    p = propose(Dataset(gr1), table=False)
    assert p.said_by["action"] == "movement" and p.modality.action["body"] == slice(0, 7) and p.modality.action["body_2"] == slice(22, 29)
    assert p.modality.action["hand"] == slice(29, 34)       # of 29:35: the sixth never moves in these episodes
    known = json.loads((core.data_dir() / "results" / "your_robot_gr1.json").read_text())
    assert known["without_its_table"] == repr(p) and known["with_its_table"] == repr(propose(Dataset(gr1)))
