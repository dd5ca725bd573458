"""The headline's arithmetic, without a training."""
import json
import re
from dataclasses import replace
from types import SimpleNamespace as Some

import headline
import numpy as np
import pytest
from bench import ROOT

from groot_cookbook.core import CookbookError


def rows(condition, placed, seed=0):
    return {"condition": condition, "seed": seed, "workspaces": "held out", "outcomes": ", ".join("placed" if p else "wrong block" for p in placed)}


def test_a_gain_is_paired_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    base, ours = rng.random((3, 60)) < .3, rng.random((3, 60)) < .8
    found = headline.summary([r for s in range(3) for r in (rows("teleop only", base[s], s), rows("filtered dreams", ours[s], s))])
    first, second = found
    assert "gain" not in first and first["rate"]["mean"] == pytest.approx(base.mean(), abs=1e-4)
    gain = second["gain"]
    assert gain["mean"] == pytest.approx(ours.mean() - base.mean(), abs=1e-4) and 0 < gain["low"] < gain["mean"] < gain["high"]


def test_seeds_of_one_workspace_are_no_new_workspaces():
    same = [True] * 10 + [False] * 10
    one, three = (headline.summary([rows("teleop only", same, s) for s in range(n)])[0]["rate"] for n in (1, 3))
    assert three["high"] - three["low"] > .9 * (one["high"] - one["low"])


def test_an_interval_covers_what_it_says():
    "Three trainings that differ and sixty tables that differ: drawn a thousand times, the truth lies within about as often as 95 in 100, and more where trainings do not differ."
    rng = np.random.default_rng(0)
    def covered(between):
        chance = lambda: (np.clip(.5 + between * rng.standard_normal((3, 1)) + .2 * rng.standard_normal((1, 60)), 0, 1) > rng.random((3, 60))).astype(float)
        return np.mean([(i := headline.interval(chance()))["low"] <= .5 <= i["high"] for _ in range(1000)])
    assert .92 < covered(.08) <= 1 and covered(0.) > .95
    assert headline.interval(np.ones((3, 50)))["low"] < 1 and headline.interval(np.zeros((3, 50)), -1.)["low"] < 0


def test_what_a_condition_adds_is_told_against_others():
    found = headline.summary([rows("teleop only", [False] * 8), rows("unfiltered dreams", [True, False] * 4), rows("filtered dreams", [True] * 6 + [False] * 2)])
    assert found[2]["over"]["unfiltered dreams"]["mean"] == .25 == -found[1]["over"]["filtered dreams"]["mean"] and found[2]["gain"]["mean"] == .75 == found[2]["over"]["teleop only"]["mean"]


def test_other_dreams_are_compared_training_by_training(tmp_path):
    ours = [rows("filtered dreams", [True] * 3 + [False], 0), rows("filtered dreams", [True, False, True, False], 1), rows("unfiltered dreams", [True] * 4, 0)]
    theirs = [rows("filtered dreams", [True, False, True, False], 1), rows("filtered dreams", [False] * 4, 2), rows("teleop only", [True] * 4, 0)]
    (found,) = headline.gains(ours, theirs)
    assert (found["condition"], found["seeds"], found["gain"]["mean"]) == ("filtered dreams", [1], 0.)
    setting = {"recipe": {"steps": 5}, "episodes": 4, "workspaces": {}}
    (path := tmp_path / "other.json").write_text(json.dumps({**setting, "material": ["others"], "rows": theirs}))
    assert headline.of_other_dreams(path, setting) == theirs
    with pytest.raises(CookbookError, match="differ in episodes"): headline.of_other_dreams(path, {**setting, "episodes": 5})


def test_rows_of_another_experiment_are_refused(tmp_path):
    out, setting = tmp_path / "headline.json", {"episodes": 100, "workspaces": {"held out": {"shift": 1., "first_seed": 7}}, "recipe": {"betas": [.9, .95]}}
    assert headline.standing(out, setting) == []
    out.write_text(json.dumps({**setting, "rows": [rows("teleop only", [True])]}))
    assert headline.standing(out, setting) == [rows("teleop only", [True])]
    with pytest.raises(CookbookError, match="differ in workspaces"): headline.standing(out, {**setting, "workspaces": {"held out": {"shift": .5, "first_seed": 7}}})
    assert json.loads(out.read_text())["rows"], "nothing of what stood there may be lost"


def test_dropped_dreams_are_paid_for_and_a_workspace_is_demonstrated_once():
    class Films(list): fps = 10.
    m = Some(labelled=Films([Some(length=60)] * 6), scenes=[Some(seed=s) for s in (1, 1, 2, 2, 3, 3)])
    dreamt, shown = (headline.price(m, name, .2) for name in ("filtered dreams", "real demonstrations"))
    assert dreamt["usd"] == pytest.approx(6 * 6 / 3600 * headline.PRICES["dreams"], abs=1e-3)
    assert shown["usd"] == pytest.approx(3 * 6 / 3600 * headline.PRICES["demonstrations"], abs=1e-3) and shown["usd_a_point"] == pytest.approx(shown["usd"] / 20, abs=1e-4)
    assert headline.price(m, "teleop, augmented", .2)["usd"] == 0 and headline.price(m, "filtered dreams", -.1)["usd_a_point"] is None


def test_every_condition_says_what_it_is_and_changes_what_a_recipe_has():
    every = headline.CONDITIONS | headline.SWEEP
    assert len(every) == len(headline.CONDITIONS) + len(headline.SWEEP) and all(c.words.strip() for c in every.values())
    changed = [replace(headline.Recipe(), **c.changes) for c in every.values()]
    assert len({str(r) for r in changed}) == 1 + sum(bool(c.changes) for c in headline.SWEEP.values())


@pytest.mark.parametrize("name", ["headline", "headline_two_steps"])
def test_a_stored_table_is_what_its_rows_say(name):
    known = json.loads((headline.OUT.parent / f"{name}.json").read_text())
    told = [{k: v for k, v in s.items() if not k.startswith("usd")} for s in known["summary"]]
    assert told == json.loads(json.dumps(headline.summary(known["rows"])))


def test_the_same_trainings_without_dreams_are_the_same_beside_other_dreams():
    known, again = (json.loads((headline.OUT.parent / f"{name}.json").read_text()) for name in ("headline", "headline_two_steps"))
    assert again["gains"] == json.loads(json.dumps(headline.gains(again["rows"], known["rows"]))) and again["beside"] == headline.OUT.name
    alone = [{(r["workspaces"], r["seed"]): r["outcomes"] for r in of["rows"] if r["condition"] == "teleop only" and "drawn" not in r["workspaces"]} for of in (known, again)]
    assert len(alone[1]) == 2 and alone[1].items() <= alone[0].items()


def test_readme_says_what_was_found():
    known = json.loads(headline.OUT.read_text())
    rate = {(s["condition"], s["workspaces"]): s["rate"] for s in known["summary"]}
    table = re.search(r"## What dreams add.*?(?=^## )", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)[0]
    said = [tuple(map(int, x)) for x in re.findall(r"(\d+) % \[(\d+), (\d+)\]\W", table)][:2 * len(headline.CONDITIONS)]
    order = ("teleop only", "teleop, augmented", "unfiltered dreams", "filtered dreams", "filtered dreams and video", "dreams that replay", "true films, read", "real, as dreams", "real demonstrations")
    trainings = {s["condition"]: len(s["seeds"]) for s in known["summary"]}
    assert list(map(int, re.findall(r"\| (\d+) \|$", table, re.M))) == [trainings[name] for name in order]
    for (name, place), found in zip(((n, p) for n in order for p in ("held out", "nominal")), said, strict=True):
        assert found == pytest.approx([100 * rate[name, place][k] for k in ("mean", "low", "high")], abs=.51), (name, place)


def test_readme_says_the_rest_of_it_too():
    known, text = json.loads(headline.OUT.read_text()), (ROOT / "README.md").read_text(encoding="utf-8")
    found = {(s["condition"], s["workspaces"]): s for s in known["summary"]}
    points = lambda x: tuple(round(100 * x[k]) for k in ("mean", "low", "high"))
    rate = lambda name, place="held out": points(found[name, place]["rate"])
    over = lambda name, base: points(found[name, "held out"]["over"][base])
    one = lambda pattern: tuple(map(int, re.search(pattern, text).groups()))
    three = r"(-?\d+) points \[(-?\d+), (-?\d+)\]"
    assert one(r"from \[(\d+) to (\d+) % of blocks placed\]") == (rate("teleop only")[0], rate("filtered dreams")[0])
    assert one(f"a gain of {three}") == points(found["filtered dreams", "held out"]["gain"])
    assert one(f"the kept dreams make {three} more than all") == over("filtered dreams", "unfiltered dreams")
    assert one(f"a difference of {three}") == over("lambda 0.0", "filtered dreams") and one(f"it makes one of {three}") == over("filtered dreams and video", "filtered dreams")
    assert one(r"with 30 % they make (\d+) % \[.*?\], with 15 % (\d+) % \[.*?\]\. Every other kept dream makes (\d+) %") == tuple(rate(n)[0] for n in ("blend 30%", "blend 15%", "half the dreams"))
    assert one(r"same policies place (\d+) % with the kept dreams and (\d+) % with real") == tuple(rate(n, "held out, plans drawn")[0] for n in ("filtered dreams", "real demonstrations"))
    again = json.loads((headline.OUT.parent / "headline_two_steps.json").read_text())
    better = {k: next(x[k] for x in again[of] if (x["condition"], x["workspaces"]) == ("filtered dreams", "held out")) for of, k in (("summary", "rate"), ("gains", "gain"))}
    assert one(r"of the same (\d+) made in two .* six (\d+) replay instead of (\d+)") == (again["dreams"], again["replayed"], known["replayed"])
    assert one(rf"critic keeps make (\d+) % \[(\d+), (\d+)\], {three} more in the same") == points(better["rate"]) + points(better["gain"])
    beside = lambda name: points(next(x["over"]["filtered dreams"] for x in again["summary"] if (x["condition"], x["workspaces"]) == (name, "held out")))
    mean, low, high = beside("surest half")
    assert one(r"surest costs (\d+) points \[(\d+), (\d+)\]") == (-mean, -high, -low)
    for words, name in ((r"as its target, ", "FLARE target patches"), (r"action-aware one, ", "FLARE target action_aware"), (r"after block 4, ", "FLARE after block 4")):
        assert one(words + r"(-?\d+)(?: points?)? \[(-?\d+), (-?\d+)\]") == beside(name)
    read, given, real = (found[name, "held out"]["rate"]["mean"] for name in ("true films, read", "real, as dreams", "real demonstrations"))
    lacks = -found["filtered dreams", "held out"]["over"]["real demonstrations"]["mean"]
    assert one(r"dreams lack (\d+) points to real demonstrations: (\d+) lie in the dreamed films, (\d+) in the reading of true ones, and (\d+) in the form") == tuple(round(100 * x) for x in (lacks, lacks - (real - read), given - read, real - given))
    asis, further = ({r["steps"]: r["replayed"] for r in json.loads((headline.OUT.parent / "further_fitting.json").read_text())["rows"]}[n] for n in (0, 200))
    assert one(r"of eighty, (\d+) replayed then, (\d+) as it is") == (further, asis)
    told = known["told_apart"]
    assert one(r"Of the (\d+) dreams above (\d+) follow.*and (\d+) replay in the simulator\. The critic kept (\d+), of which (\d+) follow and (\d+) replay") == (
        known["dreams"], told["followed"]["dreams"], told["replayed"]["dreams"], known["kept"], told["followed"]["kept"], told["replayed"]["kept"])
    assert float(re.search(r"ROC-AUC of (0\.\d+) \(.*?\); on the forty", text)[1]) == pytest.approx(told["all three"]["auc"], abs=.005)
