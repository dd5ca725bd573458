"What a dream must never do: run foreign weights unguarded, forget where it came from, or differ from itself."
import hashlib, json, shutil
from dataclasses import replace

import numpy as np
import torch
import pytest
from hypothesis import given, settings, strategies as st

from groot_cookbook.core import CookbookError
from groot_cookbook import dreaming
from groot_cookbook.autoencoder import decode_clip, encode_clip, tiny_vae, to_frames, to_video
from groot_cookbook.dreaming import dream, dream_all, fidelity, is_own, load_dreamer, motion, prepare, psnr, to_episode
from groot_cookbook.world_model import draw_sigma, flow_loss, save_pipeline, tiny_pipeline

SENTENCE = "pick up the red block and place it in the left bin"
PICTURE = np.random.default_rng(0).integers(0, 255, (48, 100, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A whole pipeline with random weights: one block, as wide as one head."
    pipe = tiny_pipeline(tiny_vae(base=8), "tiny-reason", width=64, blocks=1)
    generator = torch.Generator().manual_seed(0)
    for p in pipe.transformer.parameters():
        if p.ndim > 1: torch.nn.init.normal_(p, std=.05, generator=generator)        # an untrained one begins with zeros, and says nothing whatever it is shown
    return save_pipeline(pipe, tmp_path_factory.mktemp("own"), length=36, size=[32, 32], frames=9, fps=10.)


@pytest.fixture(scope="module")
def dreamer(folder): return load_dreamer(folder)


def test_same_seed_same_dream(dreamer):
    a, b, c = (dream(dreamer, PICTURE, SENTENCE, seed=s, steps=2) for s in (3, 3, 4))
    assert a.video.shape == (9, 32, 32, 3) and a.video.dtype == np.uint8
    assert (a.video == b.video).all() and (a.video != c.video).any()


def test_global_seed_does_not_matter(dreamer):
    torch.manual_seed(1); a = dream(dreamer, PICTURE, SENTENCE, seed=3, steps=1)
    torch.manual_seed(2); b = dream(dreamer, PICTURE, SENTENCE, seed=3, steps=1)
    assert (a.video == b.video).all()


def test_provenance_is_complete(dreamer, folder):
    facts = dream(dreamer, PICTURE, SENTENCE, seed=5, steps=2).provenance
    assert facts == {"kind": "dream", "prompt": SENTENCE, "generator": "Cosmos2_5_PredictBasePipeline", "checkpoint": folder.name,
                     "checkpoint_sha": dreaming.weights_sha(folder), "seed": 5, "steps": 2, "guidance": 0., "seed_image_sha": hashlib.sha256(PICTURE.tobytes()).hexdigest()}
    json.dumps(facts)


def test_episode_of_a_dream_has_no_numbers(dreamer):
    e = to_episode(dream(dreamer, PICTURE, SENTENCE, steps=1))
    assert e.state.shape == e.actions.shape == (9, 0) and e.instruction == SENTENCE and e.fps == 10.


def test_guidance_changes_the_dream(dreamer):
    a, b = (dream(dreamer, PICTURE, SENTENCE, seed=3, steps=2, guidance=g, num_frames=5) for g in (0., 3.))
    assert len(a.video) == 5 and b.guidance == 3. and a.video.shape == b.video.shape and (a.video != b.video).any()


def test_no_two_dreams_share_their_noise(dreamer):
    made = list(dream_all(dreamer, [PICTURE, PICTURE], [SENTENCE, SENTENCE], per_image=2, steps=1, num_frames=5))
    assert len({d.seed for d in made}) == 4


# --- guardrail --------------------------------------------------------------------------------------------------

@pytest.fixture
def unguarded(monkeypatch): monkeypatch.setattr(dreaming, "is_cosmos_guardrail_available", lambda: False)


def copy(folder, to): return shutil.copytree(folder, to / "copy")


def test_foreign_weights_need_the_guardrail(folder, tmp_path, unguarded):
    foreign = copy(folder, tmp_path)
    (foreign / "card.json").unlink()
    with pytest.raises(CookbookError, match="cosmos_guardrail.*pip install"): load_dreamer(foreign)


def test_hub_weights_need_the_guardrail(unguarded):
    with pytest.raises(CookbookError, match="guardrail"): load_dreamer("nvidia/Cosmos-Predict2.5-2B@diffusers/base/post-trained")


def test_a_card_beside_other_weights_does_not_help(folder, tmp_path, unguarded):
    forged = copy(folder, tmp_path)
    weights = forged / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert is_own(folder) and not is_own(forged)
    with pytest.raises(CookbookError, match="guardrail"): load_dreamer(forged)


def test_somebody_elses_card_does_not_help(folder, tmp_path, unguarded):
    other = copy(folder, tmp_path)
    (other / "card.json").write_text(json.dumps({"made_by": "somebody", "weights_sha": dreaming.weights_sha(other)}))
    with pytest.raises(CookbookError, match="guardrail"): load_dreamer(other)


def test_no_argument_switches_the_guardrail_off():
    import inspect
    assert not any("safety" in p or "guard" in p for f in (load_dreamer, dream) for p in inspect.signature(f).parameters)


def test_refused_prompt(dreamer, monkeypatch):
    monkeypatch.setattr(dreamer.pipe.safety_checker, "check_text_safety", lambda prompt: False)
    with pytest.raises(CookbookError, match="refuses the prompt"): dream(dreamer, PICTURE, SENTENCE)


def test_own_checker_is_one_that_the_pipeline_listens_to(dreamer, monkeypatch):
    "Predict2.5 shows videos only to subclasses of its own checker; a duck would be ignored."
    seen = []
    monkeypatch.setattr(dreamer.pipe.safety_checker, "check_video_safety", lambda v: seen.append(v.shape) or v)
    dream(dreamer, PICTURE, SENTENCE, steps=1, num_frames=5)
    assert seen == [(5, 32, 32, 3)]


# --- bad input --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("how, message", [
    (dict(num_frames=8), "4k\\+1"), (dict(num_frames=-3), "4k\\+1"), (dict(steps=0), "steps"), (dict(instruction=" "), "prompt"), (dict(image=PICTURE[..., :1]), "seed image"), (dict(image=PICTURE / 255.), "seed image")])
def test_bad_wishes(dreamer, how, message):
    with pytest.raises(CookbookError, match=message): dream(dreamer, **{"image": PICTURE, "instruction": SENTENCE, "steps": 1} | how)


def test_another_size_and_length_can_be_asked_for(folder):
    asked = load_dreamer(folder, size="16x48", frames=5)
    assert dream(asked, PICTURE, SENTENCE, steps=1).video.shape == (5, 16, 48, 3) and asked.tokens == 36


@pytest.mark.parametrize("size", ["480", "480p", "480x830", "0x16", "-16x16", "16x16x3", "99999x16", "16 x 16"])
def test_sizes_that_no_pipeline_takes(folder, size):
    with pytest.raises(CookbookError, match="multiples of 16"): load_dreamer(folder, size=size)


def test_not_a_pipeline(folder, tmp_path):
    broken = copy(folder, tmp_path)
    (broken / "model_index.json").unlink()
    with pytest.raises(CookbookError, match="pipeline"): load_dreamer(broken)


def test_unknown_checkpoint():
    with pytest.raises(CookbookError, match="no checkpoint called"): load_dreamer("tiny-cosmo")


# --- seed images and measures -----------------------------------------------------------------------------------

@settings(max_examples=30, deadline=None)
@given(st.integers(8, 300), st.integers(8, 300), st.sampled_from([(64, 64), (32, 64), (96, 48)]))
def test_any_photograph_fits(h, w, size):
    picture = prepare(np.full((h, w, 3), (10, 200, 30), np.uint8), size)
    assert (picture.height, picture.width) == size and (np.asarray(picture) == (10, 200, 30)).all()


def test_a_fitting_photograph_is_untouched():
    picture = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    assert (np.asarray(prepare(picture, (64, 64))) == picture).all()


def test_middle_of_a_wide_photograph():
    wide = np.zeros((64, 128, 3), np.uint8); wide[:, 32:96] = 255
    assert (np.asarray(prepare(wide, (64, 64))) == 255).all()


def test_measures():
    still = np.repeat(np.random.default_rng(0).integers(0, 255, (1, 16, 16, 3), dtype=np.uint8), 5, 0)
    moving = still.copy(); moving[2, :4, :4] = 255 - moving[2, :4, :4]
    assert motion(still) == 0 and 0 < motion(moving) <= 1 / 16
    f = fidelity(still, moving)
    assert f.psnr == f.still_psnr and f.moving_psnr < f.psnr and fidelity(moving, moving).ssim == 1.
    assert psnr(np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8)) == pytest.approx(0, abs=1e-4)
    with pytest.raises(CookbookError): fidelity(still, moving[:3])


# --- training ---------------------------------------------------------------------------------------------------

def test_whole_clip_equals_the_loop():
    vae = tiny_vae(base=8).eval()
    video = torch.rand(1, 3, 13, 32, 32) * 2 - 1
    with torch.no_grad():
        mean, _ = encode_clip(vae, video)
        assert torch.allclose(mean, vae.encode(video).latent_dist.mode(), atol=1e-4)
        assert torch.allclose(decode_clip(vae, mean).clamp(-1, 1), vae.decode(mean).sample, atol=1e-4)


def test_frames_round_trip():
    frames = np.random.default_rng(0).integers(0, 255, (2, 5, 8, 8, 3), dtype=np.uint8)
    assert (to_frames(to_video(frames)) == frames).all()


def test_given_frame_carries_no_loss_and_no_noise(dreamer):
    g = torch.Generator().manual_seed(0)
    clean, noise, text = torch.randn(1, 12, 3, 8, 8, generator=g), torch.randn(1, 12, 3, 8, 8, generator=g), torch.randn(1, 36, 512, generator=g)
    other = noise.clone(); other[:, :, 0] = 5.
    model = dreamer.pipe.transformer
    a, b = (flow_loss(model, clean, text, torch.tensor([.7]), n) for n in (noise, other))
    assert torch.equal(a, b)


def test_noise_levels_are_shifted_upward():
    s = draw_sigma(4000, torch.Generator().manual_seed(0))
    assert 0 < s.min() and s.max() < 1 and abs(float(s.median()) - 5 / 6) < .02


def test_refused_video(folder, monkeypatch):
    monkeypatch.setattr(dreaming.OwnWeightsChecker, "check_video_safety", lambda self, frames: None)
    with pytest.raises(CookbookError, match="refuses the dreamed video"): dream(load_dreamer(folder), PICTURE, SENTENCE, steps=1)


def test_a_dream_that_overflows_is_no_dream(folder):
    broken = load_dreamer(folder)
    with torch.no_grad(): next(broken.pipe.transformer.parameters()).fill_(float("nan"))
    with pytest.raises(CookbookError, match="NaN or infinite after step 1"): dream(broken, PICTURE, SENTENCE, steps=2)


@pytest.mark.parametrize("name", ["tiny-idm", "tiny-reason", "tiny-backbone"])
def test_a_checkpoint_of_another_kind(name):
    with pytest.raises(CookbookError, match="not a pipeline"): load_dreamer(name)


def test_a_sentence_that_is_too_long_is_said_to_be(dreamer):
    assert dreaming.prompt_tokens(dreamer.pipe.tokenizer, SENTENCE) <= dreamer.tokens == 36
    long = SENTENCE + ", then pick up the green block and place it in the right bin"
    with pytest.warns(UserWarning, match="was given .* more"): cut = dream(dreamer, PICTURE, long, seed=3, steps=1)
    assert cut.cut == dreaming.prompt_tokens(dreamer.pipe.tokenizer, long) - 36 == cut.provenance["cut"]
    assert "cut" not in dream(dreamer, PICTURE, SENTENCE, steps=1).provenance


def test_a_dream_has_the_shape_of_its_photograph_unless_told_otherwise(folder):
    "Whatever is cut from the photograph, the inverse dynamics model and the policy never see; and with as many pixels it costs no more."
    own, told = load_dreamer(folder), load_dreamer(folder, size="96x64")
    photo = lambda h, w: np.zeros((h, w, 3), np.uint8)
    free = replace(own, facts={k: v for k, v in own.facts.items() if k != "size"})
    height, width = free.size
    assert own.size_for(photo(48, 64)) == own.size and told.size_for(photo(256, 256)) == (96, 64)       # trained at one size, or asked for
    for h, w in ((256, 256), (480, 640), (640, 480), (180, 320)):
        got = free.size_for(photo(h, w))
        assert got[0] % 16 == got[1] % 16 == 0 and abs(got[1] / got[0] / (w / h) - 1) < .12 and abs(got[0] * got[1] / (height * width) - 1) < .12


def test_the_checker_that_loads_nothing_stands_in_a_pipeline_with_nvidias_package_too():
    "There its base is a torch module whose type is looked up in weights that are not there."
    class Theirs(torch.nn.Module):
        @property
        def dtype(self): return self.text_guardrail.dtype
        @property
        def device(self): return self.text_guardrail.device
    own = type("Own", (Theirs,), {k: v for k, v in vars(dreaming.OwnWeightsChecker).items() if k not in ("__dict__", "__weakref__")})()
    assert list(own.modules()) == [own] and own.dtype == torch.float32 and own.to("cpu", torch.bfloat16) is own and own.check_text_safety("anything")


def test_what_was_dreamed_is_not_dreamed_again(folder, tmp_path, monkeypatch):
    "Stopped between two dreams and begun anew: the first is as it was, to the last bit and word; another seed, sentence or sampling is another dream."
    dreamer, how = load_dreamer(folder), dict(steps=1, num_frames=5)
    whole = list(dream_all(dreamer, [PICTURE] * 2, [SENTENCE] * 2, **how))
    first = next(dream_all(dreamer, [PICTURE] * 2, [SENTENCE] * 2, work=tmp_path / "w", **how))
    made, real = [], dreaming.dream
    monkeypatch.setattr(dreaming, "dream", lambda *a, **k: made.append(a[3]) or real(*a, **k))
    again = list(dream_all(dreamer, [PICTURE] * 2, [SENTENCE] * 2, work=tmp_path / "w", **how))
    assert made == [1] and [a.provenance for a in again] == [w.provenance for w in whole]
    for a, w in zip(again, whole): assert np.array_equal(a.video, w.video) and np.array_equal(a.seed_image, w.seed_image)
    assert np.array_equal(first.video, again[0].video) and repr(first) == repr(again[0]) and len(list((tmp_path / "w").iterdir())) == 2
    for other in (dict(seed=1), dict(steps=2), dict(instructions=["wave"])): next(dream_all(**{**dict(dreamer=dreamer, images=[PICTURE], instructions=[SENTENCE], work=tmp_path / "w"), **how, **other}))
    assert len(made) == 4
