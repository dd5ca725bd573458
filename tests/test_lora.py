"""Post-training somebody else's world model by LoRA (notebook 91), and dreaming with what comes out (chapter 02): the adapters learn and nothing else does, a stopped training
ends as one that was not, and no card takes the guardrail off weights that this project did not train."""
import json, os, shutil, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.utils import is_peft_available
from safetensors.torch import load_file, save_file
from test_real_profile import GUARD, REAL, bare, on_the_hub

from groot_cookbook import core, dreaming
from groot_cookbook.autoencoder import Clips, read_clips, tiny_vae, to_latents, write_card
from groot_cookbook.core import CookbookError
from groot_cookbook.dreaming import dream, load_dreamer, weights_sha
from groot_cookbook.optimizer import averaged, resume
from groot_cookbook.world_model import LORA_LR, adapter_trainer, add_adapters, base_from, embed, film_latents, flow_step, load_base, save_adapters, save_pipeline, tiny_pipeline

ROOT = Path(core.__file__).parent.parent
SENTENCE = "pick up the red block and place it in the left bin"
FILMS = np.random.default_rng(0).integers(0, 255, (2, 9, 32, 32, 3), dtype=np.uint8)
needs_peft = pytest.mark.skipif(not is_peft_available(), reason="peft is not installed (extras `real` and `dev`)")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    "A pipeline of this project's own with random weights, one block deep."
    pipe, generator = tiny_pipeline(tiny_vae(base=8), "tiny-reason", width=64, blocks=1), torch.Generator().manual_seed(0)
    for p in pipe.transformer.parameters():
        if p.ndim > 1: torch.nn.init.normal_(p, std=.05, generator=generator)
    return save_pipeline(pipe, tmp_path_factory.mktemp("lora") / "base", length=36, size=[32, 32], frames=9, fps=10.)


def begun(base: Path, state: Path, lr: float = .05):
    "A dreamer whose transformer has adapters, their trainer, and what they are shown."
    mine = load_dreamer(base, "cpu")              # where backward passes are the same to the bit
    shown = film_latents(mine.pipe.vae, FILMS), [SENTENCE] * 2, embed(mine.pipe, [SENTENCE], mine.tokens)
    add_adapters(mine.pipe.transformer)
    return mine, adapter_trainer(mine.pipe.transformer, state, lr=lr), shown


def go_on(trainer, shown, until: int, steps: int = 6):
    while trainer.step < until: flow_step(trainer, *shown, steps, batch=1)
    return trainer


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    "Six steps, saved beside the base: the folder, and the dreamer that was trained."
    mine, trainer, shown = begun(base, tmp_path_factory.mktemp("state") / "state.safetensors")
    averaged(go_on(trainer, shown, 6))
    return save_adapters(mine.pipe, base.parent / "lora", base=base_from(str(base), base.parent / "lora"), base_sha=mine.weights_sha, size=[32, 32], frames=5, fps=20.), mine


@needs_peft
def test_adapters_change_nothing_before_the_first_step_and_nothing_else_learns(base, tmp_path):
    plain = load_dreamer(base)
    was = {k: v.clone() for k, v in plain.pipe.transformer.state_dict().items()}
    mine, trainer, shown = begun(base, tmp_path / "state")
    first = dream(mine, FILMS[0, 0], SENTENCE, steps=2).video
    assert np.array_equal(first, dream(plain, FILMS[0, 0], SENTENCE, steps=2).video)
    assert len(trainer.named) == 2 * (4 + 4 + 2) and all("lora_" in name for name in trainer.named), "two for each projection of both attentions and the feed-forward layers"
    go_on(trainer, shown, 6)
    now = mine.pipe.transformer.state_dict()
    assert all(torch.equal(v, was[k.replace(".base_layer", "")]) for k, v in now.items() if "lora_" not in k)
    assert all(v.abs().max() > 0 for k, v in now.items() if "lora_B" in k)
    held = trainer.state.held
    assert sum(v.numel() for v in held.values()) == 2 * sum(p.numel() for p in trainer.params), "the state holds the adapters and their mean"


@needs_peft
def test_a_training_that_was_killed_ends_as_one_that_was_not(base, tmp_path):
    whole = go_on(begun(base, tmp_path / "whole")[1], (shown := begun(base, tmp_path / "x")[2]), 6)
    killed = go_on(begun(base, tmp_path / "killed")[1], shown, 3)
    killed.save()
    again = go_on(resume(begun(base, tmp_path / "killed")[1]), shown, 6)
    assert all(torch.equal(a, b) for a, b in zip(whole.params + whole.mean, again.params + again.mean)) and whole.log == again.log
    assert isinstance(again.steppers[0], torch.optim.AdamW) and len(again.steppers) == 1
    with pytest.raises(CookbookError, match="another training"): resume(begun(base, tmp_path / "killed", lr=LORA_LR)[1])


@needs_peft
def test_what_is_loaded_back_dreams_what_was_trained(base, trained):
    folder, mine = trained
    back, plain, how = load_dreamer(folder), load_dreamer(base), dict(steps=2, num_frames=9)
    films = [dream(d, FILMS[0, 0], SENTENCE, **how).video for d in (mine, back, plain)]
    assert np.array_equal(films[0], films[1]) and (films[1] != films[2]).any()
    assert (back.size, back.frames, back.facts["fps"], back.tokens) == ((32, 32), 5, 20., 36), "the clips' length and pace, the base's words"
    assert len({back.weights_sha, plain.weights_sha, weights_sha(folder)}) == 3
    assert sorted(p.name for p in folder.iterdir()) == ["card.json", dreaming.ADAPTERS] and core.card(folder)["base"] == "../base"


@needs_peft
def test_adapters_on_other_weights_are_refused(base, trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "lora")
    pipe = tiny_pipeline(tiny_vae(base=8, seed=1), "tiny-reason", width=64, blocks=1)
    save_pipeline(pipe, tmp_path / "base", length=36, size=[32, 32], frames=9, fps=10.)
    with pytest.raises(CookbookError, match="other weights"): load_dreamer(tmp_path / "lora")


@needs_peft
def test_adapters_under_other_names_are_refused_and_not_left_out(trained, tmp_path):
    "diffusers loads none of them, without an error, and the base would dream under their hash."
    for name in ("base", "lora"): shutil.copytree(trained[0].parent / name, tmp_path / name)
    named = load_file(tmp_path / "lora" / dreaming.ADAPTERS)
    save_file({f"text_encoder.{k.removeprefix('transformer.')}": v for k, v in named.items()}, tmp_path / "lora" / dreaming.ADAPTERS)
    core.write_json(tmp_path / "lora" / "card.json", core.card(tmp_path / "lora") | {"weights_sha": weights_sha(tmp_path / "lora")})
    with pytest.raises(CookbookError, match="fit nothing"): load_dreamer(tmp_path / "lora")


def test_clips_of_two_rates_are_refused(tmp_path):
    for name, told in (("a", {}), ("b", {"fps": 10.}), ("c", {"fps": 20.})): np.savez(tmp_path / f"{name}.npz", frames=FILMS, instructions=np.array([SENTENCE] * 2), **told)
    assert read_clips(tmp_path, 4).fps == 10.
    with pytest.raises(CookbookError, match="10 and 20 frames a second"): read_clips(tmp_path)


def test_adapters_name_a_base_that_can_be_carried_with_them(tmp_path):
    for name in ("base", "far/away/base", "whole"): (tmp_path / name).mkdir(parents=True)
    assert base_from(str(tmp_path / "base"), tmp_path / "lora") == "../base" and base_from("nvidia/some", tmp_path / "lora") == "nvidia/some"
    with pytest.raises(CookbookError, match="lies elsewhere"): base_from(str(tmp_path / "base"), tmp_path / "far" / "away" / "lora")
    (tmp_path / "whole" / "model_index.json").write_text("{}")
    with pytest.raises(CookbookError, match="whole pipeline lies"): base_from("nvidia/some", tmp_path / "whole")


@needs_peft
@pytest.mark.parametrize("stranger", ["base", "lora"])
def test_a_card_beside_adapters_takes_no_guardrail_off(trained, tmp_path, monkeypatch, stranger):
    "Neither ours on somebody's weights nor somebody's on ours; the other card vouches for itself alone."
    monkeypatch.setattr(dreaming, "is_cosmos_guardrail_available", lambda: False)
    for name in ("base", "lora"): shutil.copytree(trained[0].parent / name, tmp_path / name)
    load_dreamer(tmp_path / "lora")
    said = core.card(tmp_path / stranger)
    core.write_json(tmp_path / stranger / "card.json", said | {"made_by": "somebody"})
    with pytest.raises(CookbookError, match="guardrail"): load_dreamer(tmp_path / "lora")


@needs_peft
def test_adapters_of_half_precision_weights_learn_in_full(base, tmp_path):
    mine = load_dreamer(base, dtype=torch.bfloat16)
    add_adapters(mine.pipe.transformer)
    trainer = adapter_trainer(mine.pipe.transformer, tmp_path / "state", lr=.05)
    assert {p.dtype for p in trainer.params} == {torch.float32} and mine.pipe.transformer.dtype == torch.bfloat16
    if core.has_bf16("cpu"): go_on(trainer, (film_latents(mine.pipe.vae, FILMS), [SENTENCE] * 2, embed(mine.pipe, [SENTENCE], 36)), 2)
    assert np.isfinite(dream(mine, FILMS[0, 0], SENTENCE, steps=1).video).all()


@needs_peft
def test_what_cannot_be_post_trained(base, trained):
    clips = lambda t, h: Clips(np.zeros((1, t, h, 32, 3), np.uint8), [SENTENCE])
    for odd in (clips(8, 32), clips(9, 24)):
        with pytest.raises(CookbookError, match="Cut them to 4k\\+1 frames"): load_base(str(base), odd)
    with pytest.raises(CookbookError, match="adapters, and not a pipeline"): load_base(str(trained[0]), clips(9, 32))
    assert load_base(str(base), clips(13, 48)).size == (48, 32)


def test_films_piece_by_piece_are_the_same_latents(base):
    vae = load_dreamer(base, "cpu").pipe.vae
    assert torch.allclose(film_latents(vae, FILMS), to_latents(vae, FILMS), atol=1e-4)


def test_without_peft_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(dreaming, "is_peft_available", lambda: False)
    (tmp_path / dreaming.ADAPTERS).write_bytes(b"")
    with pytest.raises(CookbookError, match="without a card that names their base"): load_dreamer(tmp_path)
    write_card(tmp_path, base="tiny-cosmos")
    with pytest.raises(CookbookError, match="`peft`.*pip install"): load_dreamer(tmp_path)
    with pytest.raises(CookbookError, match="`peft`.*pip install"): load_base("nvidia/Cosmos-Predict2.5-2B", Clips(FILMS, [SENTENCE] * 2))


DREAM = '''
import json, sys
import numpy as np
from groot_cookbook.dreaming import dream, load_dreamer
name, base = sys.argv[1:]
picture = np.random.default_rng(1).integers(0, 255, (32, 32, 3), dtype=np.uint8)
a, b = load_dreamer(name), load_dreamer(base, size="32x48", frames=9)
films = [dream(d, picture, "wave", 0, 4).video for d in (a, b)]
print(json.dumps({"apart": int((films[0] != films[1]).sum()), "shape": films[0].shape, "fps": a.facts["fps"], "checker": type(a.pipe.safety_checker).__module__, "shas": [a.weights_sha, b.weights_sha]}))
'''


@needs_peft
@pytest.mark.slow
def test_the_notebook_post_trains_by_name(tmp_path):
    "Under the real name, in the hub's layout, with a stand-in of the guardrail; clips of another size, length and pace than the workspace's."
    real = REAL["02_dreaming"]["checkpoint_name"]
    on_the_hub(tmp_path / "hub", real, bare("tiny-cosmos", tmp_path / "cosmos"))
    for part, text in (("cosmos_guardrail/__init__.py", GUARD), ("cosmos_guardrail-0.0.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: cosmos-guardrail\nVersion: 0.0.0\n")):
        (at := tmp_path / "guard" / part).parent.mkdir(parents=True)
        at.write_text(text)
    (tmp_path / "clips").mkdir()
    np.savez(tmp_path / "clips" / "mine.npz", frames=np.random.default_rng(0).integers(0, 255, (4, 9, 32, 48, 3), dtype=np.uint8), instructions=np.array(["wave", "wave", "nod", "wave"]), fps=20.)
    env = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "GUARD_LOG": str(tmp_path / "guard.log"), "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1",
                        "PYTHONPATH": os.pathsep.join([str(tmp_path / "guard"), str(ROOT), os.environ.get("PYTHONPATH", "")])}
    told = dict(clips=tmp_path / "clips", n_clips=4, start=real, out=tmp_path / "mine", steps=12)
    ran = subprocess.run([sys.executable, "-m", "papermill", ROOT / "nbs" / "train" / "91_tiny_cosmos.ipynb", tmp_path / "out.ipynb", "-k", "python3", "--cwd", tmp_path, "--no-progress-bar",
                          *[str(word) for item in told.items() for word in ("-p", *item)]], env=env, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stderr[-3000:]
    said = core.card(tmp_path / "mine")
    assert said["base"] == real and said["kind"] == "adapters" and (said["size"], said["frames"], said["fps"], said["steps"]) == ([32, 48], 9, 20., 12)
    assert set(said["figures"]["loss_unseen"]) == {"with", "without"} and str(tmp_path) not in json.dumps(said)
    assert sum(p.stat().st_size for p in (tmp_path / "mine").iterdir()) < 8e6 and sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["card.json", dreaming.ADAPTERS]
    done = subprocess.run([sys.executable, "-c", DREAM, str(tmp_path / "mine"), real], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["apart"] > 0 and found["shape"] == [9, 32, 48, 3]
    assert found["checker"] == "cosmos_guardrail" and found["fps"] == 20. and len(set(found["shas"])) == 2
    assert "prompt wave" in (tmp_path / "guard.log").read_text() and "video 9 32 48 3" in (tmp_path / "guard.log").read_text()
