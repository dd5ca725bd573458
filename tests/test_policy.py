"Edge cases of the policy's three modules; the contracts are in chapters 05, 05a and 05b."
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from groot_cookbook.action_head import ActionHead, ActionHeadConfig, CategoryLinear, flow_time
from groot_cookbook.backbone import BackboneConfig, tiny_backbone, tiny_tokenizer
from groot_cookbook.core import CookbookError
from groot_cookbook.episodes import Dataset, Episode, Normalizer, write_dataset
from groot_cookbook.inference import ChunkEngine
from groot_cookbook.policy import Embodiment, GrootPolicy, PolicyConfig, Processor, build_policy, dreaming, first_policy

WORDS = "pick up the red block and place it in the left bin"


def robot(tag="new_embodiment", dims=7) -> Embodiment:
    parts = {"gripper": [dims - 1], "arm": list(range(dims - 1))}        # not in the order of the columns, on purpose
    bounds = Normalizer("min_max", -np.arange(1.0, dims + 1), np.arange(1.0, dims + 1))
    return Embodiment(tag, parts, parts, bounds, bounds)


@pytest.fixture(scope="module")
def policy() -> GrootPolicy: return build_policy(tiny_backbone(0), robot())


@pytest.fixture(scope="module")
def pictures() -> np.ndarray: return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


def seeded(n=0): return torch.Generator().manual_seed(n)


# --- size and names ---------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def full() -> GrootPolicy:
    "The 3B model's shapes, without storage."
    with torch.device("meta"): return GrootPolicy(PolicyConfig())


def test_full_size_counts(full):
    count = lambda *paths: sum(p.numel() for path in paths for p in full.get_submodule(path).parameters())
    assert count("action_head.model") == 550_386_688
    assert count("action_head.vl_self_attention") == 201_433_088
    assert count("action_head.state_encoder", "action_head.action_encoder", "action_head.action_decoder") == 315_360_256
    assert abs(count("backbone.eagle_model.vision_model") / 1e6 - 412.4) < 0.1
    assert abs(count("backbone.eagle_model.language_model") / 1e6 - 914.7) < 0.1


@pytest.mark.parametrize("key", """backbone.eagle_model.vision_model.vision_model.encoder.layers.26.mlp.fc1.weight
backbone.eagle_model.language_model.model.layers.11.self_attn.q_norm.weight  backbone.eagle_model.mlp1.0.weight
action_head.model.transformer_blocks.15.attn1.to_out.0.bias  action_head.model.transformer_blocks.0.norm1.linear.weight
action_head.model.transformer_blocks.3.ff.net.0.proj.weight  action_head.model.transformer_blocks.3.ff.net.2.bias
action_head.model.timestep_encoder.timestep_embedder.linear_2.weight  action_head.model.proj_out_1.weight
action_head.state_encoder.layer1.W  action_head.action_encoder.W3.b  action_head.action_decoder.layer2.b  action_head.vlln.weight
action_head.vl_self_attention.transformer_blocks.3.norm3.weight  action_head.future_tokens.weight  action_head.position_embedding.weight""".split())
def test_upstream_names(full, key): assert key in full.state_dict()


def test_interleaving(full):
    blocks = full.action_head.model.transformer_blocks
    assert [b.attn1.to_k.in_features for b in blocks] == [2048, 1536] * 8
    assert "norm3.weight" not in blocks[0].state_dict()


def test_config_round_trip(policy):
    for config in (PolicyConfig(), policy.config): assert PolicyConfig.from_upstream(json.loads(json.dumps(config.to_upstream()))) == config
    published = dict(backbone_cfg=dict(select_layer=12, project_to_dim=None, tune_llm=False, eagle_path="NVEagle/eagle"), action_head_cfg=dict(action_dim=32, tune_projector=True))
    assert PolicyConfig.from_upstream(published) == PolicyConfig()


def test_a_gr1_tells_its_state_in_sines_and_cosines():
    "Part by part, all sines before all cosines, as N1.5 learned GR-1's joints: 52 numbers for 26."
    angles = np.random.default_rng(0).uniform(-3, 3, (2, 7)).astype(np.float32)
    told = Processor(BackboneConfig(), None, {"gr1": robot("gr1")}).state(angles, "gr1").numpy()
    parts = np.split(angles[:, [6, 0, 1, 2, 3, 4, 5]], [1], 1)
    assert np.allclose(told[:, :14], np.concatenate([f(part) for part in parts for f in (np.sin, np.cos)], 1)) and not told[:, 14:].any()
    many = replace(robot("gr1", 33), action={"arm": list(range(6))})
    with pytest.raises(CookbookError, match="66 dimensions do not fit into 64"): Processor(BackboneConfig(), None, {"gr1": many}).state(np.zeros((1, 33)), "gr1")


def test_upstream_order_of_scale_and_shift(policy):
    "A block's modulation is (scale, shift), the output's is stored (shift, scale): swap one and published weights make noise."
    dit = policy.action_head.model
    t = torch.tensor([250])
    time, m = dit.timestep_encoder(t), dit.modulations(t)
    assert torch.equal(m[0][0, 0], dit.transformer_blocks[0].norm1.linear(torch.nn.functional.silu(time))[0])
    shift, scale = dit.proj_out_1(torch.nn.functional.silu(time)).chunk(2, -1)
    assert torch.allclose(m[-1][0, 0], torch.cat((scale, shift), -1)[0])


# --- backbone ---------------------------------------------------------------------------------------------------

def test_language_is_per_row(policy, pictures):
    texts = [WORDS, WORDS.replace("red", "blue"), "open the drawer"]
    run = lambda p, t: (lambda x: policy.encode(x["pixel_values"], x["input_ids"], x["attention_mask"]))(policy.processor(p, t, np.zeros((len(t), 7)), "new_embodiment"))
    with torch.no_grad():
        together = run(pictures[[0, 0, 0]], texts)
        for i, text in enumerate(texts):
            alone = run(pictures[:1], [text])
            assert torch.allclose(together[i, : alone.shape[1]], alone[0], atol=1e-4)
    assert (together[0, 64:] - together[1, 64:]).abs().max() > 0.1
    assert torch.allclose(together[0, :64], together[1, :64], atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_kept(text):
    tokenizer = tiny_tokenizer()
    for special in ("<image>", "<pad>", "<end>", "<loc"): text = text.replace(special, "")
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).strip() == text.strip()


def test_image_token_in_an_instruction(policy, pictures):
    x = policy.processor(pictures[:1], ["the <image> block"], np.zeros((1, 7)), "new_embodiment")
    assert (x["input_ids"] == policy.config.backbone.image_token_index).sum() == 64


def test_two_views(policy, pictures):
    x = policy.processor(pictures[None, :2], [WORDS], np.zeros((1, 7)), "new_embodiment")
    with torch.no_grad(): features = policy.encode(x["pixel_values"], x["input_ids"], x["attention_mask"])
    assert x["pixel_values"].shape[0] == 2 and features.shape[1] == 2 * 64 + 12


# --- head -------------------------------------------------------------------------------------------------------

def test_chunk_equals_plain_loop(policy):
    g = seeded()
    features, state, x = torch.randn(2, 70, 128, generator=g), torch.randn(2, 64, generator=g), policy.noise(2, g)
    mask, slots, plain = torch.arange(70) < torch.tensor([[70], [66]]), torch.tensor([31, 30]), None
    with torch.no_grad():
        chunk, plain = policy.act(features, mask, state, slots, x), x
        for t in (0, 250, 500, 750): plain = plain + policy.denoise_step(features, mask, state, slots, plain, torch.full((2,), t)) / 4
    assert torch.allclose(chunk, plain, atol=1e-5)


def test_padding_is_not_seen_unless_upstream_compatible(policy):
    g = seeded()
    features, state, noise = torch.randn(1, 70, 128, generator=g), torch.zeros(1, 64), policy.noise(1, g)
    mask = (torch.arange(70) < 66)[None]
    loud = torch.where(mask[..., None], features, 50 * torch.randn(features.shape, generator=g))
    head = ActionHead(policy.config.action_head, upstream_compatible=True).eval()
    head.load_state_dict(policy.action_head.state_dict())
    with torch.no_grad():
        ours = [policy.act(f, mask, state, torch.tensor([31]), noise) for f in (features, loud)]
        theirs = [head(f, mask, state, torch.tensor([31]), noise) for f in (features, loud)]
    assert torch.allclose(*ours, atol=1e-5) and not torch.allclose(*theirs, atol=1e-3)


N1D6 = dict(max_action_dim=6, max_state_dim=10, action_horizon=8, hidden_size=24, input_embedding_dim=32, backbone_embedding_dim=48, max_num_embodiments=3, max_seq_len=16,
            use_alternate_vl_dit=True, attend_text_every_n_blocks=2,
            diffusion_model_cfg=dict(num_layers=4, num_attention_heads=2, attention_head_dim=16, output_dim=24, dropout=.2, interleave_self_attention=True))


def test_words_and_pictures_in_turn():
    "N1.6's head, from a configuration in its own words: each cross-attending block sees words or patches, never both, and never padding."
    config = ActionHeadConfig.from_upstream(N1D6)
    torch.manual_seed(0)
    head, g = ActionHead(config).eval(), seeded()
    assert config.action_dim == 6 and head.future_tokens is None and head.vl_self_attention is None and head.model.transformer_blocks[0].attn1.to_k.in_features == 48
    features, state, noise = torch.randn(2, 12, 48, generator=g), torch.randn(2, 10, generator=g), torch.randn(2, 8, 6, generator=g)
    mask, images = (torch.arange(12) < 10).expand(2, 12), (torch.arange(12) < 6).expand(2, 12)
    seen = [head.masks(mask, images)[i] for i in (0, 2)]
    assert torch.equal(seen[0], mask & ~images) and torch.equal(seen[1], mask & images)
    with torch.no_grad():
        run = lambda f: head(f, mask, state, torch.tensor([0, 2]), noise, images=images)
        whole, loud = run(features), features.clone(); loud[:, 10:] = 99
        assert torch.isfinite(whole).all() and torch.equal(run(loud), whole)
        head.model.transformer_blocks[2].attn1.to_out[0].weight.zero_(); head.model.transformer_blocks[2].attn1.to_out[0].bias.zero_()      # only the block of words still looks
        other = features.clone(); other[:, :6] = 5
        assert torch.allclose(run(other), run(features), atol=1e-6)
    with pytest.raises(CookbookError, match="patches"): head(features, mask, state, torch.tensor([0, 2]), noise)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_robots_do_not_mix(slots):
    layer, x, robots = CategoryLinear(6, 3, 4), torch.randn(len(slots), 2, 3, generator=seeded(1)), torch.tensor(slots)
    wanted = torch.stack([x[i] @ layer.W[s] + layer.b[s] for i, s in enumerate(slots)])
    assert torch.allclose(layer(x, robots), wanted, atol=1e-6)


def test_flow_times():
    t = flow_time(ActionHeadConfig(), 50_000, seeded())
    assert abs(t.mean() - 0.3994) < 0.005 and t.max() <= 1 and t.min() > -0.002
    u = 0.999 * (1 - t)
    assert abs(u.quantile(0.5) - 0.5 ** (1 / 1.5)) < 0.01          # the median of Beta(1.5, 1)
    with pytest.raises(CookbookError): flow_time(ActionHeadConfig(noise_beta_beta=2.0), 1)


def test_sampler_integrates_an_exact_field(policy, monkeypatch):
    "With the velocity of a straight line, four Euler steps land on the data: sign and time run the right way."
    data, noise = torch.ones(1, 16, 32), torch.randn(1, 16, 32, generator=seeded())
    seen = []
    def field(kv, mask, state, x, t, *_, **__): seen.append(int(t[0])); return (data - x) / (1 - t[0] / 1000), None
    monkeypatch.setattr(policy.action_head, "velocity", field)
    assert torch.allclose(policy.act(torch.zeros(1, 65, 128), None, torch.zeros(1, 64), torch.tensor([31]), noise), data, atol=1e-5)
    assert seen == [0, 250, 500, 750]


# --- processor --------------------------------------------------------------------------------------------------

@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(0, 10_000))
def test_actions_round_trip(rows, seed):
    processor = Processor(BackboneConfig(), None, {"new_embodiment": robot()})
    raw = np.random.default_rng(seed).uniform(-1, 1, (rows, 16, 7)) * np.arange(1, 8)
    target, known = processor.target(raw, "new_embodiment")
    assert target.shape == (rows, 16, 32) and known.sum() == rows * 16 * 7 and not target[..., 7:].any()
    back = processor.actions(target, "new_embodiment")
    assert np.allclose(back, raw[..., [6, 0, 1, 2, 3, 4, 5]], atol=1e-5)


# --- actions told from the state, as N1.6 does ---------------------------------------------------------------------

@pytest.fixture(scope="module")
def moving(tmp_path_factory) -> Dataset:
    "Two short episodes and one too short for a chunk; the arm's commands run ahead of its state."
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("relative") / "data"
    def one(length):
        state = np.cumsum(rng.normal(size=(length, 7)), 0).astype(np.float32)
        return Episode(np.zeros((length, 16, 16, 3), np.uint8), state, state + rng.normal(size=(length, 7)).astype(np.float32), "go", 10.0)
    return Dataset(write_dataset([one(20), one(30), one(9)], path, modality=arm_and_gripper()))


def arm_and_gripper():
    from groot_cookbook.episodes import Modality
    parts = {"arm": slice(0, 6), "gripper": slice(6, 7)}
    return Modality(state=parts, action=parts)


def test_statistics_of_relative_chunks(moving):
    "Of shape (horizon, D), over whole chunks only, each step's own; an absolute part has its own range in every step."
    body = Embodiment.of(moving, relative=["arm"], horizon=16)
    told = [np.concatenate([moving.rows(i)[1][t: t + 16, :6] - moving.rows(i)[0][t, :6], moving.rows(i)[1][t: t + 16, 6:]], 1)
            for i, length in ((0, 20), (1, 30)) for t in range(length - 15)]
    assert np.allclose(body.relative_range.low, np.min(told, 0), atol=1e-5) and np.allclose(body.relative_range.high, np.max(told, 0), atol=1e-5)
    acts = np.concatenate([moving.rows(i)[1] for i in range(3)])
    assert np.allclose(body.action_range.low, acts.min(0), atol=1e-5) and np.allclose(body.action_range.high, acts.max(0), atol=1e-5)     # of what is told, not of what is measured
    with pytest.raises(CookbookError, match="no episode is 40 steps long"): Embodiment.of(moving, relative=["arm"], horizon=40)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(0, 10_000), st.sampled_from([(), ("arm",), ("gripper",), ("arm", "gripper")]))
def test_told_from_here_and_back(rows, seed, relative):
    "Whatever is relative, what comes out is what went in; what the model sees is the difference where it is relative and nothing else."
    rng, body = np.random.default_rng(seed), robot()
    if relative: body = Embodiment(body.tag, body.state, body.action, body.state_range, body.action_range, relative=relative,
                                   relative_range=Normalizer("min_max", -np.ones((16, 7)) * 3, np.arange(1, 17)[:, None] * np.ones(7)))
    processor, raw, state = Processor(BackboneConfig(), None, {body.tag: body}), rng.normal(size=(rows, 16, 7)), rng.normal(size=(rows, 7))
    target, known = processor.target(raw, body.tag, state)
    assert np.allclose(processor.actions(target, body.tag, state), raw[..., [6, 0, 1, 2, 3, 4, 5]], atol=1e-4) and known.sum() == rows * 16 * 7
    moved, _ = processor.target(raw + 1, body.tag, state + 1)                   # the whole robot elsewhere
    same = [column for column, part in zip(range(7), ["gripper"] + ["arm"] * 6) if part in relative]
    assert torch.allclose(moved[..., same], target[..., same], atol=1e-4)
    assert not (set(range(7)) - set(same)) or (moved - target)[..., sorted(set(range(7)) - set(same))].abs().min() > 1e-3


def test_relative_needs_a_state_and_the_right_horizon(moving):
    body = Embodiment.of(moving, relative=["arm"])
    processor = Processor(BackboneConfig(), None, {body.tag: body, "dreams": dreaming(body)})
    with pytest.raises(CookbookError, match="none was given"): processor.actions(torch.zeros(1, 16, 32), body.tag)
    with pytest.raises(CookbookError, match="a chunk of 8 steps, but ranges of 16"): processor.target(np.zeros((1, 8, 7)), body.tag, np.zeros((1, 7)))
    assert processor.actions(torch.zeros(1, 16, 32), "dreams").shape == (1, 16, 7)                  # a dream has no state: its slot stays absolute
    with pytest.raises(CookbookError, match="cannot be told from a state"): Embodiment.of(moving, relative=["leg"])
    with pytest.raises(CookbookError, match="go together"): Embodiment(body.tag, body.state, body.action, body.state_range, body.action_range, relative=("arm",))


BLOCKS = dict(num_layers=4, num_attention_heads=2, attention_head_dim=16, output_dim=32, dropout=0.2, final_dropout=True, interleave_self_attention=True,
              norm_type="ada_norm", positional_embeddings=None)
COMMON = dict(hidden_size=32, input_embedding_dim=32, backbone_embedding_dim=128, max_num_embodiments=32, max_seq_len=64)
SHAPES = {"N1": COMMON | dict(num_target_vision_tokens=0, use_vlln=False, diffusion_model_cfg=BLOCKS),
          "N1.5": COMMON | dict(diffusion_model_cfg=BLOCKS, vl_self_attention_cfg=dict(num_layers=1, num_attention_heads=4, attention_head_dim=32, dropout=0.2)),
          "N1.6": COMMON | dict(max_action_dim=29, max_state_dim=29, use_alternate_vl_dit=True, attend_text_every_n_blocks=2, diffusion_model_cfg=BLOCKS | {"num_layers": 8})}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_a_policy(shape, moving, pictures, tmp_path):
    "Built from upstream's words for its head, saved, loaded strictly, and driven from pictures to absolute joints."
    torch.manual_seed(0)
    eyes = tiny_backbone(0)
    body = Embodiment.of(moving, relative=["arm"] if shape == "N1.6" else [])
    config = PolicyConfig(eyes.config, ActionHeadConfig.from_upstream(SHAPES[shape]))
    processor = Processor(eyes.config, eyes.tokenizer, {body.tag: body}, config.action_head.max_state_dim, config.action_head.action_dim)
    policy = GrootPolicy(config, processor).eval()
    policy.save_pretrained(tmp_path)
    again, state = GrootPolicy.from_pretrained(tmp_path), np.arange(21.).reshape(3, 7)
    assert again.config == config and again.processor.embodiments[body.tag].relative == body.relative
    assert (again.action_head.future_tokens is None) == (shape != "N1.5") and (again.action_head.vl_self_attention is None) == (shape != "N1.5")
    act = lambda p, s=state: p.predict(pictures, [WORDS, "wave", WORDS], s, body.tag, seeded())
    assert act(policy).shape == (3, 16, 7) and np.isfinite(act(policy)).all() and np.array_equal(act(policy), act(again))
    keys = dict(policy.state_dict())
    from safetensors.torch import save_file
    for f in tmp_path.glob("model*"): f.unlink()
    save_file({k: v.clone() for k, v in keys.items() if "lm_head" not in k and k != "action_head.model.proj_out_2.bias"}, tmp_path / "model.safetensors")
    with pytest.raises(CookbookError, match="1 missing"): GrootPolicy.from_pretrained(tmp_path)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_loading_draws_nothing_and_keeps_the_precision_asked_for(policy, pictures, tmp_path, precision):
    policy.save_pretrained(tmp_path)
    before = torch.get_rng_state()
    again = GrootPolicy.from_pretrained(tmp_path, precision=precision)
    assert torch.equal(torch.get_rng_state(), before) and {p.dtype for p in again.parameters()} == {precision}
    for (name, ours), (_, theirs) in zip(policy.named_parameters(), again.named_parameters(), strict=True): assert torch.equal(ours.to(precision), theirs), name
    for (name, ours), (_, theirs) in zip(policy.named_buffers(), again.named_buffers(), strict=True): assert torch.equal(ours, theirs), name          # positions stay exact
    language = again.backbone.eagle_model.language_model
    assert language.lm_head.weight is language.model.embed_tokens.weight
    want, got = (p.predict(pictures, [WORDS] * 3, np.zeros((3, 7)), "new_embodiment", seeded()) for p in (policy, again))
    assert np.abs(got - want).max() <= (0 if precision == torch.float32 else .1 * np.abs(want).max())


def test_n1s_projection_of_features(pictures, tmp_path):
    "N1 has a linear layer of 1536 between backbone and head, `eagle_linear`; at full size its weights are where upstream has them."
    head = dict(num_target_vision_tokens=0, use_vlln=False, vl_self_attention_cfg=None, backbone_embedding_dim=1536)
    with torch.device("meta"):
        dit = ActionHeadConfig().diffusion_model_cfg | dict(cross_attention_dim=1536)
        full = GrootPolicy(PolicyConfig(BackboneConfig(project_to_dim=1536), ActionHeadConfig(**head, diffusion_model_cfg=dit))).state_dict()
    assert full["backbone.eagle_linear.weight"].shape == (1536, 2048) and full["action_head.model.transformer_blocks.0.attn1.to_k.weight"].shape == (1536, 1536)
    base = build_policy(tiny_backbone(0), robot())
    config = PolicyConfig(replace(base.config.backbone, project_to_dim=1536), replace(base.config.action_head, **head, diffusion_model_cfg=base.config.action_head.diffusion_model_cfg | dict(cross_attention_dim=1536)))
    assert PolicyConfig.from_upstream(json.loads(json.dumps(config.to_upstream()))) == config
    n1 = GrootPolicy(config, base.processor).eval()
    n1.save_pretrained(tmp_path)
    again, x = GrootPolicy.from_pretrained(tmp_path), base.processor(pictures[:1], [WORDS], np.zeros((1, 7)), "new_embodiment")
    with torch.no_grad():
        features, before = (f(x["pixel_values"], x["input_ids"], x["attention_mask"]) for f in (again.encode, again.backbone.eagle_model))
        linear = n1.backbone.eagle_linear(before)
    assert features.shape[-1] == 1536 and torch.equal(features, linear)
    want = n1.predict(pictures[:1], [WORDS], np.zeros((1, 7)), "new_embodiment", seeded())
    assert (again.predict(pictures[:1], [WORDS], np.zeros((1, 7)), "new_embodiment", seeded()) == want).all()
    np.testing.assert_allclose(ChunkEngine(n1, "new_embodiment", "fp32", compiled=False).predict(pictures[:1], [WORDS], np.zeros((1, 7)), seeded()), want, atol=1e-4)


def test_n16_sees_pictures_and_words_as_a_policy(moving, pictures):
    "Not as a head only: the policy itself tells patches from words, also in training."
    torch.manual_seed(0)
    eyes, body = tiny_backbone(0), Embodiment.of(moving, relative=["arm"])
    policy = GrootPolicy(PolicyConfig(eyes.config, ActionHeadConfig.from_upstream(SHAPES["N1.6"])), Processor(eyes.config, eyes.tokenizer, {body.tag: body}, 29, 29)).eval()
    x = policy.processor(pictures, [WORDS, "wave", WORDS], np.zeros((3, 7)), body.tag)
    images = policy.patches(x["input_ids"])
    assert images.sum(1).tolist() == [64] * 3 and not (images & (x["attention_mask"] == 0)).any()
    from groot_cookbook.finetuning import Recipe, cache_features, finetune
    cache = cache_features(policy, moving, body.tag, stride=4)
    assert torch.equal(cache.images.sum(1), torch.full((len(cache),), 64)) and cache.rows([0, 1])["seen"].shape == (2, 64, 128)
    trained = finetune(policy, cache, recipe=Recipe(steps=3, batch=4, flare=0.0)).policy
    assert not torch.equal(trained.action_head.model.proj_out_2.weight, policy.action_head.model.proj_out_2.weight)


def test_dreams_never_show_their_state():
    processor = Processor(BackboneConfig(), None, {t: robot(t) for t in ("new_embodiment", "dreams")})
    raw = np.ones((2, 7))
    assert processor.state(raw, "new_embodiment").abs().sum() > 0
    assert processor.state(raw, "dreams").abs().sum() == 0 and processor.state(None, "dreams", 2).shape == (2, 64)


@pytest.mark.parametrize("raw, said", [(np.full((1, 7), np.nan), "NaN"), (np.zeros((1, 3)), "has 3 numbers")])
def test_bad_state(policy, raw, said):
    with pytest.raises(CookbookError, match=said): policy.processor.state(raw, "new_embodiment")


def test_too_many_dimensions():
    processor = Processor(BackboneConfig(), None, {"new_embodiment": robot(dims=40)})
    with pytest.raises(CookbookError, match="40 actions do not fit into the model's 32.*modality.json"): processor.target(np.zeros((1, 16, 40)), "new_embodiment")


def test_unknown_embodiment(policy, pictures):
    with pytest.raises(CookbookError, match="does not know the embodiment 'gr1'"): policy.predict(pictures[:1], [WORDS], np.zeros((1, 7)), "gr1")
    with pytest.raises(CookbookError, match="unknown embodiment 'h1'"): robot("h1")


def test_a_gr1_whose_parts_go_by_other_names_drives_all_it_has(tmp_path):
    "A plain LeRobot export has no modality.json, so no left_arm."
    rng = np.random.default_rng(0)
    one = Episode(np.zeros((20, 16, 16, 3), np.uint8), *(rng.normal(size=(20, 7)).astype(np.float32) for _ in range(2)), "go", 10.)
    plain = Embodiment.of(Dataset(write_dataset([one], tmp_path / "plain", robot_type="GR1ArmsOnly")))
    assert plain.tag == "gr1" and len(plain.action_columns) == 7
    arm = arm_and_gripper()
    named = {k: {"left_arm": v["arm"], "gripper": v["gripper"]} for k, v in (("state", arm.state), ("action", arm.action))}
    some = Embodiment.of(Dataset(write_dataset([one], tmp_path / "some", robot_type="GR1ArmsOnly", modality=replace(arm, **named))))
    assert list(some.action) == ["left_arm", "gripper"]


@pytest.mark.parametrize("width", [32, 48, 100, 150])
def test_a_head_of_any_even_width_acts(pictures, width):
    chunk = build_policy(tiny_backbone(0), robot(), width=width, layers=2).predict(pictures[:1], [WORDS], np.zeros((1, 7)), "new_embodiment", seeded())
    assert chunk.shape == (1, 16, 7) and np.isfinite(chunk).all()


# --- disk -------------------------------------------------------------------------------------------------------

def test_round_trip(policy, pictures, tmp_path):
    policy.save_pretrained(tmp_path)
    again = GrootPolicy.from_pretrained(tmp_path)
    act = lambda p: p.predict(pictures, [WORDS] * 3, np.zeros((3, 7)), "new_embodiment", seeded())
    assert np.array_equal(act(policy), act(again))
    assert list(again.processor.embodiments["new_embodiment"].action) == ["gripper", "arm"]        # the order of the parts, not of the alphabet
    assert max(f.stat().st_size for f in tmp_path.iterdir()) < 16e6
    same = first_policy(tmp_path, robot(), seed=1)                                                 # the saved head, whatever a new one would be drawn from
    assert torch.equal(same.action_head.future_tokens.weight, policy.action_head.future_tokens.weight)


@pytest.mark.parametrize("break_it, said", [
    (lambda t: t.pop("action_head.future_tokens.weight"), "1 missing"),
    (lambda t: t.update({"action_head.extra": torch.zeros(1)}), "1 unexpected"),
    (lambda t: t.update({"action_head.vlln.bias": torch.zeros(5)}), "of another shape"),
])
def test_strict_loading(policy, tmp_path, break_it, said):
    from safetensors.torch import save_file
    policy.save_pretrained(tmp_path)
    tensors = {k: v.clone() for k, v in policy.state_dict().items() if "lm_head" not in k}
    break_it(tensors)
    for f in tmp_path.glob("model*"): f.unlink()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CookbookError, match=said): GrootPolicy.from_pretrained(tmp_path)


def test_unread_keys_are_welcome(policy, tmp_path):
    "NVIDIA's files hold an output layer and a pooling head that nothing reads."
    from safetensors.torch import save_file
    policy.save_pretrained(tmp_path)
    tensors = {k: v.clone() for k, v in policy.state_dict().items()} | {"backbone.eagle_model.vision_model.vision_model.head.probe": torch.zeros(1)}
    for f in tmp_path.glob("model*"): f.unlink()
    save_file(tensors, tmp_path / "model.safetensors")
    GrootPolicy.from_pretrained(tmp_path)


def test_damage_is_told(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    shard = sorted(tmp_path.glob("model-*"))[0]
    content = shard.read_bytes()
    shard.write_bytes(content[:1000])
    with pytest.raises(CookbookError, match="unreadable"): GrootPolicy.from_pretrained(tmp_path)
    shard.unlink()
    with pytest.raises(CookbookError, match="weights missing"): GrootPolicy.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(CookbookError, match="not a GR00T N1.5 checkpoint"): GrootPolicy.from_pretrained(tmp_path)


def test_gr1(gr1):
    body = Embodiment.of(Dataset(gr1))
    assert (body.tag, body.slot, len(body.action_columns)) == ("gr1", 24, 26)
    assert list(body.action) == ["left_arm", "right_arm", "left_hand", "right_hand"] and body.action_columns[7] == 22
    with pytest.raises(CookbookError, match="no part called tail"): Embodiment.of(Dataset(gr1), ["tail"])


@pytest.mark.parametrize("sentence", ["<IMG_<image>CONTEXT>", "<ima<image>ge> lift it<end>", "<loc12><lo<loc01>c02>"])
def test_an_instruction_is_words_and_nothing_else(policy, pictures, sentence):
    x = policy.processor(pictures[:1], [sentence], np.zeros((1, 7)), "new_embodiment")
    special = [i for mark, i in policy.processor.tokenizer.get_added_vocab().items() if mark != "<image>"]
    assert (x["input_ids"] == policy.config.backbone.image_token_index).sum() == 64 and not torch.isin(x["input_ids"], torch.tensor(special)).any()


@pytest.mark.parametrize("name, change, said", [
    ("config.json", lambda v: [], "not a GR00T N1.5 checkpoint"), ("config.json", lambda v: {**v, "backbone_cfg": None}, "no 'backbone_cfg'"),
    ("config.json", lambda v: {**v, "action_head_cfg": {**v["action_head_cfg"], "diffusion_model_cfg": {}}}, "not the configuration of a policy"),
    ("experiment.json", lambda v: {"embodiments": []}, "not a table of robots"), ("experiment.json", lambda v: {"embodiments": {"gr1": {}}}, "not a table of robots"),
    ("model.safetensors.index.json", lambda v: {}, "not an index"),
    ("model.safetensors.index.json", lambda v: {"weight_map": {"a": "../model-00001-of-00002.safetensors"}}, "outside its folder")])
def test_a_damaged_table_is_one_sentence(policy, tmp_path, name, change, said):
    policy.save_pretrained(tmp_path)
    (tmp_path / name).write_text(json.dumps(change(json.loads((tmp_path / name).read_text()))))
    with pytest.raises(CookbookError, match=said): GrootPolicy.from_pretrained(tmp_path)


def test_a_state_may_call_its_parts_by_other_names(moving):
    modality = moving.modality
    renamed = Dataset(moving.path)
    renamed.modality = replace(modality, state={f"joint_{name}": where for name, where in modality.state.items()})
    body = Embodiment.of(renamed, ["arm"], sensed=["joint_arm"])
    blind = Dataset(moving.path)
    blind.modality = replace(modality, state={})
    assert Embodiment.of(blind, ["arm"], sensed=[]).state == {}
    assert list(body.state) == ["joint_arm"] and list(body.action) == ["arm"] and body.state_columns == Embodiment.of(moving, ["arm"]).state_columns


def test_a_damaged_tokenizer_is_named(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CookbookError, match="not a tokenizer"): GrootPolicy.from_pretrained(tmp_path)
