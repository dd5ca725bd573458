"The benchmark of language following: what is asked, and what is made of the answers."
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


def row(name: str, seed: int, **placed: list[bool]) -> dict:
    return {"condition": name, "seed": seed, "outcomes": {asked: ", ".join("placed" if p else "wrong bin" for p in won) for asked, won in zip(language.ASKED, placed.values())}}


def test_who_does_not_listen_loses_what_listening_is_worth():
    always, never = [True] * 12, [False] * 12
    found = {s["condition"]: s for s in language.summary([row(n, s, drawn=always, bin=then, block=then) for n, then in (("listens", always), ("deaf", never)) for s in range(2)])}
    assert found["listens"]["misheard"]["mean"] == 0 and found["deaf"]["misheard"]["mean"] == 1 and found["listens"]["lost"]["mean"] == 0 and found["deaf"]["lost"] == {"mean": 1, "low": 1, "high": 1} and found["deaf"]["seeds"] == [0, 1]


def test_the_interval_knows_of_trainings_that_differ():
    mixed = [row("luck", s, drawn=[s < 2] * 12, bin=[s < 2] * 12, block=[s < 2] * 12) for s in range(4)]
    rate = language.summary(mixed)[0]["as drawn"]
    assert rate["mean"] == .5 and rate["low"] < .2 and rate["high"] > .8
