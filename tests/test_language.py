"The benchmark of language following: what is asked, and what is made of the answers."
import json

import language
import pytest

from groot_cookbook.core import CookbookError
from groot_cookbook.evaluation import other_block
from groot_cookbook.workspace import sample_scene, seeds


def test_every_table_can_be_asked_three_things():
    scenes = language.tables(6)
    assert len(scenes) == 6 and all(len(s.blocks) == 2 for s in scenes)
    for scene in scenes:
        asked = [other(scene) for other in language.ASKED.values()]
        assert len({a.instruction for a in asked}) == 3 and all((a.blocks, a.bins, a.seed) == (scene.blocks, scene.bins, scene.seed) for a in asked)


def test_a_lonely_block_has_no_other():
    lonely = next(s for s in map(sample_scene, seeds("evaluation", 40)) if len(s.blocks) == 1)
    with pytest.raises(CookbookError, match="one block only"): other_block(lonely)


def row(name: str, seed: int, *ends: str) -> dict: return {"condition": name, "seed": seed, "outcomes": {asked: ", ".join([end] * 12) for asked, end in zip(language.ASKED, ends)}}


def test_who_does_not_listen_lifts_the_wrong_block():
    rows = [row(name, s, *ends) for s in range(2) for name, ends in (("listens", ("placed", "placed", "dropped")), ("deaf", ("placed", "missed", "wrong block")))]
    listens, deaf = language.summary(rows)
    assert (listens["lifted"], listens["wrong_block"], listens["trials"]) == (72, 0, 72) and (never := listens["wrong_block_a_trial"])["mean"] == never["low"] == 0 < never["high"] < .25
    assert (deaf["lifted"], deaf["wrong_block"]) == (48, 24) and deaf["placed"]["mean"] == round(1 / 3, 4) and deaf["the other bin"]["mean"] == 0 and deaf["seeds"] == [0, 1]


def test_the_interval_knows_of_trainings_that_differ():
    rate = language.summary([row("luck", s, *["placed" if s < 2 else "missed"] * 3) for s in range(4)])[0]["placed"]
    assert rate["mean"] == .5 and rate["low"] < .2 and rate["high"] > .8


def test_the_stored_table_is_what_its_rows_say():
    known = json.loads(language.OUT.read_text())
    assert json.loads(json.dumps(language.summary(known["rows"]))) == known["summary"] and {len(o.split(", ")) for r in known["rows"] for o in r["outcomes"].values()} == {known["scenes"]}
