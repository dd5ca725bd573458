"Mistakes that would train on in silence; the lessons are in chapter 06."
import copy, json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from safetensors import safe_open

from groot_cookbook.backbone import pixels, tiny_backbone
from groot_cookbook.core import CookbookError
from groot_cookbook.episodes import Dataset, Episode, Normalizer, write_dataset
from groot_cookbook.action_head import ActionHead, ActionHeadConfig, flow_loss
from groot_cookbook.finetuning import Cache, Recipe, Student, action_error, cache_features, chunks, finetune, joined, kept_frames, stride_that_fits
from groot_cookbook.flare import TARGETS, alignment_loss, cells, effective_rank, make_target
from groot_cookbook.optimizer import optimizers
from groot_cookbook.policy import Embodiment, build_policy

WIDTH = 4


@pytest.fixture(scope="module")
def policy():
    bounds = Normalizer("min_max", -np.ones(WIDTH), np.ones(WIDTH))
    columns = {"arm": list(range(WIDTH))}
    return build_policy(tiny_backbone(0), Embodiment("new_embodiment", columns, columns, bounds, bounds), width=32, layers=2)


def fake_cache(policy, n=24, slot=31, seed=0) -> Cache:
    g = torch.Generator().manual_seed(seed)
    known = (torch.arange(32) < WIDTH).float().expand(n, 16, 32)
    return Cache(torch.randn(n, 68, 128, generator=g).half(), torch.ones(n, 68, dtype=torch.bool), (torch.arange(68) < 64).expand(n, 68), torch.rand(n, 64, generator=g),
                 torch.rand(n, 16, 32, generator=g) * known, known, torch.full((n,), slot), (torch.arange(n) + 8).clamp(max=n - 1), 64)


@pytest.fixture(scope="module")
def teleop(policy): return fake_cache(policy)
@pytest.fixture(scope="module")
def dreams(policy): return replace(fake_cache(policy, 10, 30, 1), state=torch.zeros(10, 64))


def losses_of(policy, batch, flare=0.2, layer=2, grad=False, target="pooled"):
    student = Student(copy.deepcopy(policy.action_head), layer, target)
    n, g = len(batch["state"]), torch.Generator().manual_seed(0)
    out = student(batch, torch.randn(n, 16, 32, generator=g), torch.rand(n, generator=g), flare)
    if grad: out["total"].backward()
    return out, student


# --- alignment --------------------------------------------------------------------------------------------------

def test_cosine_is_over_features():
    g = torch.Generator().manual_seed(0)
    target, noise = torch.randn(3, 32, 16, generator=g), torch.randn(3, 32, 16, generator=g)
    guess = target + noise
    scaled = guess * torch.rand(3, 32, 1, generator=g).mul(10).add(0.1)
    assert torch.allclose(alignment_loss(guess, target), alignment_loss(scaled, target), atol=1e-6)
    assert alignment_loss(target, target).abs() < 1e-6 and abs(alignment_loss(-target, target) - 2) < 1e-6
    assert not torch.allclose((1 - F.cosine_similarity(guess, target)).mean(), (1 - F.cosine_similarity(scaled, target)).mean(), atol=1e-2)


@pytest.mark.parametrize("name", TARGETS)
def test_no_gradient_through_the_target(policy, name):
    target, seen = make_target(name, policy.config.action_head, 64), torch.randn(2, 64, 128, requires_grad=True)
    wanted = target(seen)
    guess = torch.randn(wanted.shape, requires_grad=True)
    alignment_loss(guess, wanted).backward()
    assert guess.grad.abs().sum() > 0 and seen.grad is None and all(p.grad is None for p in target.parameters())


def test_the_action_aware_target_follows_its_queries_and_nothing_else(policy, teleop):
    out, student = losses_of(policy, teleop.rows([0, 1, 2]), grad=True, target="action_aware")
    target = student.target
    assert target.online.query_embedding.grad.abs().sum() > 0 and all(p.grad is None and not p.requires_grad for p in target.running.parameters())
    own = target.learn(teleop.rows([0, 1, 2])).item()
    assert abs(out["total"].item() - (out["flow"] + .2 * out["align"]).item() - own) < 1e-5
    with torch.no_grad(): target.online.query_embedding.add_(1.)
    before = target.running.query_embedding.clone()
    target.follow()
    assert torch.allclose(target.running.query_embedding - before, (1 - target.rho) * (target.online.query_embedding - before), atol=1e-6)
    silent = teleop.rows([0, 1]) | {"action_mask": torch.zeros(2, 16, 32)}
    def foretold(actions):
        torch.manual_seed(0)                                           # of the projector
        return losses_of(policy, silent | {"actions": actions})[0]["align"].item()
    assert len({foretold(silent["actions"] * k) for k in (0, 1, 5)}) == 1                                     # what stands where actions would stand is noise, whatever was recorded
    assert target.learn(silent) == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5), st.integers(0, 4))
def test_cells_hold_every_token_once(fold, tokens):
    side, tokens = 2 ** fold, 2 ** tokens
    seen = torch.arange(float(side * side)).view(1, -1, 1)
    if tokens > side * side:
        with pytest.raises(CookbookError, match="cannot be cut"): cells(seen, tokens)
        return
    cut = cells(seen, tokens)
    assert cut.shape == (1, tokens, side * side // tokens, 1) and sorted(cut.flatten().tolist()) == list(range(side * side))
    places = torch.stack((cut[0, :, :, 0] // side, cut[0, :, :, 0] % side))
    assert ((places.amax(2) - places.amin(2) + 1).prod(0) == side * side // tokens).all()        # neighbours, in a rectangle


def test_a_head_without_future_tokens_foretells_nothing(policy, teleop):
    config = replace(policy.config.action_head, num_target_vision_tokens=0, vl_self_attention_cfg=None)
    for name in TARGETS:
        with pytest.raises(CookbookError, match="no future tokens"): make_target(name, config, 64)
    n1 = copy.deepcopy(policy)
    n1.action_head = ActionHead(config)
    tuned = finetune(n1, teleop, None, Recipe(steps=2, batch=4, flare=0.)).policy
    assert tuned.action_head.future_tokens is None
    with pytest.raises(CookbookError, match="no future tokens"): finetune(n1, teleop, None, Recipe(steps=2, batch=4, flare_layer=2))


def test_published_sizes():
    "The 3B model's own: 256 image tokens, 32 future tokens, 2,048 features."
    with torch.device("meta"): aware = make_target("action_aware", ActionHeadConfig(), 256)
    assert make_target("patches", ActionHeadConfig(), 256).parts == 8 and aware(torch.zeros(1, 256, 2048, device="meta")).shape == (1, 32, 1, 2048)


def test_collapse_shows_in_the_effective_rank(policy, teleop):
    g = torch.Generator().manual_seed(0)
    one, many = torch.randn(1, 16, generator=g) + 1e-3 * torch.randn(32, 16, generator=g), torch.randn(32, 16, generator=g)
    assert 1 <= effective_rank(one) < 1.1 and 10 < effective_rank(many) <= 16
    student, batch = Student(policy.action_head, 1), teleop.rows(list(range(16)))
    noise, t = torch.randn(16, 16, 32, generator=g), torch.rand(16, generator=g)
    alive = effective_rank(student(batch, noise, t, .2)["foretold"])
    student.projector[0].weight.data *= 1e-4                                       # says nearly the same whatever it sees: the loss stays finite
    out = student(batch, noise, t, .2)
    assert torch.isfinite(out["align"]) and effective_rank(out["foretold"]) < min(1.1, alive)


def test_shapes_that_differ_are_an_error_not_a_zero():
    with pytest.raises(CookbookError, match="foretold"): alignment_loss(torch.zeros(2, 32, 8), torch.zeros(2, 32, 16))
    with pytest.raises(CookbookError, match="foretold"): alignment_loss(torch.zeros(2, 16, 8), torch.zeros(2, 32, 8))
    with pytest.raises(CookbookError, match="cannot be cut"): cells(torch.zeros(1, 60, 8), 32)


@pytest.mark.parametrize("name", ["pooled", "patches"])
def test_target_keeps_place(policy, name):
    "What stands in one corner of the picture moves one token only."
    target, seen = make_target(name, policy.config.action_head, 64), torch.randn(1, 64, 16)
    moved = seen.clone(); moved[0, 0, 3] += 10
    changed = (target(seen) - target(moved)).abs().amax((-1, -2))[0] > 1e-4
    assert changed.tolist() == [True] + [False] * 31


def test_flare_reaches_the_dit_and_is_not_zero(policy, teleop):
    batch = teleop.rows(list(range(8)))
    silent = {**batch, "action_mask": torch.zeros_like(batch["action_mask"])}
    out, student = losses_of(policy, silent, grad=True)
    assert out["flow"] == 0 and 0.5 < out["align"] < 1.5
    for p in (student.head.future_tokens.weight, student.head.model.transformer_blocks[1].attn1.to_q.weight, student.head.vl_self_attention.transformer_blocks[0].attn1.to_q.weight):
        assert p.grad.abs().sum() > 0
    assert student.head.action_decoder.layer2.W.grad is None or not student.head.action_decoder.layer2.W.grad.any()


def test_flare_can_be_switched_off(policy, teleop):
    out, student = losses_of(policy, teleop.rows([0, 1]), flare=0.0, grad=True)
    assert torch.equal(out["total"], out["flow"]) and all(p.grad is None for p in student.projector.parameters())


def test_wrong_layer(policy):
    for layer in (0, 3, -1):
        with pytest.raises(CookbookError, match="FLARE at layer"): Student(policy.action_head, layer)


# --- imitation --------------------------------------------------------------------------------------------------

def test_padded_dimensions_do_not_count(policy, teleop):
    batch = teleop.rows([0, 1, 2])
    other = {**batch, "actions": batch["actions"] + 100 * (1 - batch["action_mask"])}
    velocity = torch.zeros_like(batch["actions"])
    assert torch.equal(flow_loss(velocity, batch["actions"], batch["action_mask"]), flow_loss(velocity, other["actions"], other["action_mask"]))
    assert torch.allclose(flow_loss(velocity, batch["actions"], batch["action_mask"]), batch["actions"][..., :WIDTH].square().mean())


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60), st.integers(1, 7), st.integers(1, 20))
def test_chunks_follow_their_frame(length, stride, horizon):
    actions, at = np.arange(length, dtype=np.float32)[:, None], kept_frames(length, stride)
    c = chunks(actions, at, horizon)[..., 0]
    assert c.shape == (len(at), horizon) and (c[:, 0] == at).all()
    assert (c == np.minimum(np.array(at)[:, None] + np.arange(horizon), length - 1)).all()


# --- the cache --------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("data")
    def episode(text, states, acts):
        frames = rng.integers(0, 256, (21, 64, 64, 3), dtype=np.uint8)
        return Episode(frames, rng.uniform(-1, 1, (21, states)), rng.uniform(-1, 1, (21, acts)), text, 10.0)
    write_dataset([episode("pick up the red block", WIDTH, WIDTH), episode("open it", WIDTH, WIDTH)], root / "teleop")
    write_dataset([episode("pick up the blue block and leave", WIDTH, WIDTH)], root / "dreams")
    write_dataset([episode("a hand takes a cup", 0, 0)], root / "films")
    return root


def test_cache_is_the_plain_path(policy, datasets):
    data = Dataset(datasets / "teleop")
    cache, e = cache_features(policy, data, "new_embodiment", stride=4), data[1]
    at = kept_frames(21, 4)
    assert len(cache) == 2 * len(at) and cache.robot.unique().tolist() == [31]
    row = len(at) + 2                                    # frame 8 of the second episode
    x = policy.processor(e.frames[8:9], ["open it"], e.state[8:9], "new_embodiment")
    with torch.no_grad(): features = policy.encode(x["pixel_values"], x["input_ids"], x["attention_mask"])
    n = features.shape[1]
    assert torch.allclose(cache.features[row, :n].float(), features[0], atol=5e-3) and cache.mask[row].sum() == n
    assert torch.allclose(cache.state[row], x["state"][0])
    assert torch.allclose(cache.actions[row], policy.processor.target(e.actions[np.minimum(np.arange(8, 24), 20)][None], "new_embodiment")[0][0])
    assert [int(f) - len(at) for f in cache.future[len(at):]] == [at.index(min(t + 16, 20)) for t in at]      # stays inside its episode


def test_dreams_leak_no_state(policy, datasets):
    cache = cache_features(policy, Dataset(datasets / "dreams"), "dreams", stride=4)
    assert not cache.state.any() and cache.robot.unique().tolist() == [30] and cache.action_mask.any()


def test_films_without_actions(policy, datasets, teleop):
    films = cache_features(policy, Dataset(datasets / "films"), "dreams", stride=4)
    assert not films.action_mask.any() and not films.state.any()
    out, _ = losses_of(policy, films.rows([0, 1]))
    assert out["flow"] == 0 and out["align"] > 0
    trained = finetune(policy, teleop, films, Recipe(steps=2, batch=4, dream_ratio=0.5, flare_layer=2))
    assert all(np.isfinite(c["total"]) for c in trained.curve)


def test_fewer_frames_where_the_memory_is_small(policy, datasets, monkeypatch):
    "The features that are cached stay within the share that was asked for."
    data = Dataset(datasets / "teleop")
    every_second = cache_features(policy, data, "new_embodiment").features.nbytes / 1e9
    for gigabytes, stride in ((1e3, 2), (every_second * 2, 2), (every_second * .99, 4), (every_second * .49, 8)):
        monkeypatch.setattr("groot_cookbook.finetuning.memory_gb", lambda: 4 * gigabytes)
        assert stride_that_fits(policy, data) == stride
    monkeypatch.setattr("groot_cookbook.finetuning.memory_gb", lambda: every_second / 100)
    with pytest.raises(CookbookError, match="Take fewer episodes"): stride_that_fits(policy, data)


def test_joined_keeps_rows_and_futures(teleop, dreams):
    short = replace(dreams, features=dreams.features[:, :66], mask=dreams.mask[:, :66])
    both = joined([teleop, short])
    assert torch.equal(both.features[24:, :66], short.features) and not both.mask[24:, 66:].any()
    assert torch.equal(both.rows([24 + 3])["seen"], dreams.rows([3])["seen"])
    later = int(dreams.future[3])
    assert later > 3 and torch.equal(dreams.rows([3])["seen"][0], dreams.features[later, :dreams.n_image_tokens].float())      # what FLARE foretells is later, not now
    with pytest.raises(CookbookError, match="different backbones"): joined([teleop, replace(dreams, n_image_tokens=16)])


# --- training ---------------------------------------------------------------------------------------------------

def test_ratio_is_exact(policy, teleop, dreams, monkeypatch):
    drawn = []
    def record(accelerator, student, steppers, data, rows, r, step):
        drawn.append(sum(i >= len(teleop) for i in rows)); return dict(total=torch.zeros(()), flow=torch.zeros(()), align=torch.zeros(()))
    monkeypatch.setattr("groot_cookbook.finetuning.one_step", record)
    finetune(policy, teleop, dreams, Recipe(steps=100, batch=8, dream_ratio=0.3, flare_layer=2))
    assert sum(drawn) == 240 and set(drawn) == {2, 3}


@pytest.mark.parametrize("precision, target", [("fp32", "action_aware"), ("bf16", "pooled"), ("bf16", "patches")])
def test_resumed_is_uninterrupted(policy, teleop, dreams, tmp_path, precision, target):
    recipe = Recipe(steps=6, batch=4, save_every=2, flare_layer=2, precision=precision, target=target)
    whole = finetune(policy, teleop, dreams, recipe)
    finetune(policy, teleop, dreams, recipe, tmp_path, stop=5)
    with safe_open(tmp_path / "state.safetensors", "pt") as f: assert json.loads(f.metadata()["note"])["step"] == 4
    again = finetune(policy, teleop, dreams, recipe, tmp_path)
    assert whole.curve == again.curve
    for (name, a), b in zip(whole.policy.state_dict().items(), again.policy.state_dict().values()): assert torch.equal(a, b), name
    with pytest.raises(CookbookError, match=r"another training \(lr\)"): finetune(policy, teleop, dreams, replace(recipe, lr=1.0), tmp_path)
    with pytest.raises(CookbookError, match=r"another training \(data\)"): finetune(policy, teleop, None, recipe, tmp_path)


def test_training_learns_and_leaves_the_rest_alone(policy, teleop):
    one = replace(teleop, actions=teleop.action_mask * 0.5)
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    trained = finetune(policy, one, None, Recipe(steps=60, batch=12, lr=4e-3, flare_layer=2, ema=0.9)).policy
    assert action_error(trained, one) < 0.6 * action_error(policy, one)
    assert all(torch.equal(v, before[k]) for k, v in policy.state_dict().items())
    for key, value in trained.state_dict().items():
        if key.startswith("backbone."): assert torch.equal(value, before[key])
        if key.endswith(".W"): assert torch.equal(value[:24], before[key][:24]), f"{key}: an unused slot moved"


def test_weight_decay_spares_slots(policy):
    outer, inner = optimizers(Student(policy.action_head, 2), weight_decay=0.1)
    held = {id(p) for group in inner.param_groups for p in group["params"]}
    assert id(policy.action_head.action_encoder.W1.W) not in held and id(policy.action_head.vlln.weight) not in held
    assert id(policy.action_head.model.transformer_blocks[0].attn1.to_q.weight) in held
    assert inner.param_groups[0]["weight_decay"] == 0.1 and outer.param_groups[0]["weight_decay"] == 0


def test_rate():
    r = Recipe(steps=100, warmup=0.1)
    rates = [r.rate(i) for i in range(100)]
    assert rates[0] == 0.1 and max(rates) == rates[9] == 1 and rates[-1] < 1e-3 and sorted(rates[10:], reverse=True) == rates[10:]


# --- a backbone that learns ------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def watched(policy) -> Cache:
    "Drawn pictures and words, and what the frozen backbone says of them."
    g, rows = torch.Generator().manual_seed(0), 12
    pictures, ids = torch.randint(0, 256, (rows, 1, 64, 64, 3), generator=g).to(torch.uint8), torch.randint(70, 300, (rows, 68), generator=g)
    ids[:, :64] = policy.config.backbone.image_token_index
    fake = fake_cache(policy, rows)
    with torch.no_grad(): seen = policy.encode(pixels(pictures, policy.config.backbone), ids, fake.mask)
    return replace(fake, features=seen.half(), images=policy.patches(ids), pictures=pictures, ids=ids)


def test_frozen_is_frozen_and_learning_learns(policy, watched):
    "Nothing of the backbone moves unless it is asked to; then all of it does that the loss can reach, and the policy's own weights stay."
    before = {k: v.clone() for k, v in policy.backbone.state_dict().items()}
    recipe = Recipe(steps=3, batch=4, flare=0.2, flare_layer=2, ema=0)
    still, moved = (finetune(policy, watched, recipe=replace(recipe, tune_backbone=share)).policy.backbone.state_dict() for share in (0, .1))
    assert all(torch.equal(still[k], v) and torch.equal(policy.backbone.state_dict()[k], v) for k, v in before.items())
    changed = {k for k, v in before.items() if not torch.equal(moved[k], v)}
    assert {"eagle_model.mlp1.0.weight", "eagle_model.language_model.model.embed_tokens.weight", "eagle_model.language_model.model.layers.0.self_attn.q_proj.weight"} <= changed


def test_eyes_that_learn_at_no_rate_see_what_was_cached(policy, watched):
    "The live path computes the features that the cache holds: with the backbone's rates at next to nothing, both trainings are one."
    recipe = Recipe(steps=4, batch=4, flare=0.2, flare_layer=2, ema=0)
    cached, live = (finetune(policy, watched, recipe=replace(recipe, tune_backbone=share)) for share in (0, 1e-12))
    for a, b in zip(cached.curve, live.curve): assert abs(a["flow"] - b["flow"]) < 2e-3 and abs(a["align"] - b["align"]) < 2e-3


def test_a_learning_backbone_goes_on_bit_for_bit(policy, watched, tmp_path):
    recipe = Recipe(steps=6, batch=4, flare=0.2, flare_layer=2, save_every=3, tune_backbone=.3)
    whole = finetune(policy, watched, recipe=recipe)
    finetune(policy, watched, recipe=recipe, work=tmp_path, stop=3)
    again = finetune(policy, watched, recipe=recipe, work=tmp_path)
    assert all(torch.equal(v, again.policy.state_dict()[k]) for k, v in whole.policy.state_dict().items()) and whole.curve == again.curve


def test_a_backbone_cannot_learn_from_a_cache_alone(policy, teleop):
    with pytest.raises(CookbookError, match="pictures=True"): finetune(policy, teleop, recipe=Recipe(steps=1, tune_backbone=.1))


def test_pictures_and_words_are_joined_with_the_rest(watched):
    both = joined([watched, replace(watched, ids=watched.ids[:, :66], mask=watched.mask[:, :66], images=watched.images[:, :66], features=watched.features[:, :66])])
    assert both.pictures.shape == (24, 1, 64, 64, 3) and both.ids.shape == (24, 68) and not both.mask[12:, 66:].any() and joined([watched, replace(watched, pictures=None, ids=None)]).pictures is None


def test_what_is_forgotten_at_random_is_the_same_after_a_stop(policy, teleop, tmp_path):
    "N1.5's own head has a dropout of 0.2, which draws from the global generator."
    forgetful = copy.deepcopy(policy)
    for module in forgetful.action_head.modules():
        if isinstance(module, torch.nn.Dropout): module.p = .2
    recipe = Recipe(steps=6, batch=4, save_every=2, flare_layer=2)
    torch.manual_seed(1)
    whole = finetune(forgetful, teleop, recipe=recipe)
    torch.manual_seed(2)
    finetune(forgetful, teleop, recipe=recipe, work=tmp_path, stop=4)
    resumed = finetune(forgetful, teleop, recipe=recipe, work=tmp_path)
    pairs = list(zip(whole.policy.action_head.parameters(), resumed.policy.action_head.parameters()))
    assert all(torch.equal(a, b) for a, b in pairs)
    steady = finetune(policy, teleop, recipe=recipe)
    assert not all(torch.equal(a, b) for a, b in zip(whole.policy.action_head.parameters(), steady.policy.action_head.parameters()))


def test_looking_leaves_the_policy_able_to_learn(policy, tmp_path):
    frames = np.zeros((4, 64, 64, 3), np.uint8)
    bare = Dataset(write_dataset([Episode(frames, np.zeros((4, WIDTH)), np.zeros((4, WIDTH)), "lift", 10.)], tmp_path / "d"))
    looked = cache_features(policy, bare, "new_embodiment")
    assert not looked.features.is_inference() and not any(p.is_inference() for p in policy.parameters())
