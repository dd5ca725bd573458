"The fast path says what the policy says: in all slots, with padding, several views, fewer and more steps, and whatever upstream left out."
import copy
from dataclasses import replace

import gpu_policy
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from groot_cookbook.backbone import pixels
from groot_cookbook.core import CookbookError
from groot_cookbook.inference import FP8, Chunk, ChunkEngine, Cost, Linear8, held, to_fp8
from groot_cookbook.policy import GrootPolicy, PolicyConfig


@pytest.fixture(scope="module")
def policy() -> GrootPolicy: return gpu_policy.random_policy("tiny", torch.device("cpu"))


def asked(policy: GrootPolicy, rows: int, views: int, padded: int, seed: int = 0) -> list[torch.Tensor]:
    "Inputs of `Chunk.watch` with the picture's tokens somewhere among the words and padding on the left of the first row."
    dice, backbone = torch.Generator().manual_seed(seed), policy.config.backbone
    patches = views * backbone.tokens_per_view
    ids = torch.randint(2, 500, (rows, patches + 12), generator=dice)
    ids[:, 6: 6 + patches] = backbone.image_token_index
    mask = torch.ones_like(ids)
    mask[0, :padded] = 0
    images = torch.randint(0, 256, (rows, views, 48, 56, 3), generator=dice).to(torch.uint8)
    return [images, ids, mask, torch.randn(rows, 64, generator=dice), torch.randn(rows, 16, 32, generator=dice)]


@torch.no_grad()
def plainly(policy: GrootPolicy, x: list[torch.Tensor], slot: int) -> torch.Tensor:
    features = policy.encode(pixels(x[0], policy.config.backbone), x[1], x[2])
    return policy.act(features, x[2], x[3], torch.full((len(x[1]),), slot), x[4], policy.patches(x[1]))


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 5), st.sampled_from([0, 17, 24, 31]), st.integers(0, 9))
def test_the_chunk_is_the_policys(policy, rows, views, padded, slot, seed):
    x = asked(policy, rows, views, padded, seed)
    with torch.no_grad(): got = Chunk(policy, slot).watch(*x)
    torch.testing.assert_close(got, plainly(policy, x, slot), atol=2e-5, rtol=1e-5)


def test_a_slot_is_not_another(policy):
    x = asked(policy, 1, 1, 0)
    with torch.no_grad(): assert (Chunk(policy, 24).watch(*x) - Chunk(policy, 31).watch(*x)).abs().max() > .01


def test_as_many_steps_as_asked_for(policy):
    x, eight = asked(policy, 1, 1, 0), copy.deepcopy(policy)
    eight.config = PolicyConfig(policy.config.backbone, replace(policy.config.action_head, num_inference_timesteps=8))
    eight.action_head.config = eight.config.action_head
    with torch.no_grad(): torch.testing.assert_close(Chunk(policy, 0, steps=8).watch(*x), plainly(eight, x, 0), atol=2e-5, rtol=1e-5)


def test_upstreams_blindness_to_padding_is_kept_where_it_is_asked_for(policy):
    x, same = asked(policy, 2, 1, 4), copy.deepcopy(policy)
    same.action_head.upstream_compatible = True
    with torch.no_grad(): got, careful = Chunk(same, 0).watch(*x), Chunk(policy, 0).watch(*x)
    torch.testing.assert_close(got, plainly(same, x, 0), atol=2e-5, rtol=1e-5)
    assert (got - careful)[0].abs().max() > 1e-3 and torch.allclose(got[1], careful[1], atol=1e-5)


@pytest.mark.parametrize("compatible", [False, True])
def test_the_engine_prepares_pictures_as_the_policy_does(policy, compatible):
    "At a size that has to be resized, where upstream's whole levels of colour and ours differ; and all rows hear the first, which is upstream's too."
    same, rng = copy.deepcopy(policy), np.random.default_rng(0)
    same.processor.upstream_compatible = same.action_head.upstream_compatible = compatible
    images, state, said = rng.integers(0, 256, (2, 2, 47, 61, 3), np.uint8), rng.uniform(-1, 1, (2, 26)), ["pick up the red block", "put it in the left bin, and then the blue one"]
    got, want = (predict(images, said, state, *more, torch.Generator().manual_seed(3)) for predict, more in ((ChunkEngine(same, gpu_policy.TAG, "fp32", compiled=False).predict, ()), (same.predict, (gpu_policy.TAG,))))
    np.testing.assert_allclose(got, want, atol=2e-5)
    other = policy.predict(images, said, state, gpu_policy.TAG, torch.Generator().manual_seed(3))
    assert (np.abs(want - other).max() > 1e-3) == compatible


def alternating(policy: GrootPolicy, every: int, adapter: bool = False) -> GrootPolicy:
    "N1.6's head on the same eyes: no future tokens, no adapter (N1.7 may have one), 8 blocks of which the even look at words and pictures in turn."
    head = policy.config.action_head
    n16 = replace(head, num_target_vision_tokens=0, vl_self_attention_cfg=head.vl_self_attention_cfg if adapter else None, use_alternate_vl_dit=True, attend_text_every_n_blocks=every,
                  diffusion_model_cfg=head.diffusion_model_cfg | {"num_layers": 8})
    torch.manual_seed(0)
    return GrootPolicy(PolicyConfig(policy.config.backbone, n16), policy.processor).eval()


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 2), st.integers(1, 2), st.integers(0, 5), st.integers(1, 3), st.booleans(), st.booleans())
def test_the_chunk_of_n16_is_its_policys(policy, rows, views, padded, every, adapter, compatible):
    n16, x = alternating(policy, every, adapter), asked(policy, rows, views, padded)
    n16.action_head.upstream_compatible = compatible
    with torch.no_grad(): got = Chunk(n16, 24).watch(*x)
    torch.testing.assert_close(got, plainly(n16, x, 24), atol=2e-5, rtol=1e-5)


def test_n16_looks_at_words_and_at_pictures(policy):
    n16, x = alternating(policy, 2), asked(policy, 1, 1, 0)
    dark, other = [torch.zeros_like(x[0]), *x[1:]], [x[0], torch.where(x[1] == policy.config.backbone.image_token_index, x[1], 7), *x[2:]]
    with torch.no_grad():
        seen, blind, misread = (Chunk(n16, 24).watch(*y) for y in (x, dark, other))
    assert (seen - blind).abs().max() > 1e-3 and (seen - misread).abs().max() > 1e-3


def test_the_policy_is_left_as_it_was(policy):
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    x = asked(policy, 1, 1, 0)
    with torch.no_grad(): to_fp8(Chunk(policy, 0, precision=torch.bfloat16), [x]).watch(*x)
    assert all(torch.equal(v, before[k]) and v.dtype == before[k].dtype for k, v in policy.state_dict().items())


def test_fp8_holds_the_wide_layers_and_no_others(policy):
    x = asked(policy, 1, 1, 0)
    low = to_fp8(Chunk(policy, 0, precision=torch.bfloat16), [x])
    eight = {n for n, m in low.named_modules() if isinstance(m, Linear8)}
    assert {"sight.layers.0.qkv", "reading.layers.0.widen", "looking.keys_values", "acting.layers.1.narrow"} <= eight and not {"sight.connector", "acting.answer2", "state1"} & eight
    assert all(m.weight8.dtype == FP8 for m in low.modules() if isinstance(m, Linear8))


def test_a_compiled_engine_predicts_what_the_policy_predicts(policy):
    engine, (images, said, state) = ChunkEngine(policy, gpu_policy.TAG, "fp32"), gpu_policy.given(policy, 2)
    dice = lambda: torch.Generator().manual_seed(3)
    want = policy.predict(images, said, state, gpu_policy.TAG, dice())
    for _ in range(2): np.testing.assert_allclose(engine.predict(images, said, state, dice()), want, atol=2e-5)
    np.testing.assert_allclose(engine.predict(images, said, state, temperature=0.), policy.predict(images, said, state, gpu_policy.TAG, temperature=0.), atol=2e-5)


def test_longer_words_make_a_new_graph_and_shorter_ones_do_not(policy):
    engine, (images, _, state) = ChunkEngine(policy, gpu_policy.TAG, "fp32", compiled=False), gpu_policy.given(policy)
    for words, graphs in (("pick up the red block", 1), ("pick up the blue block", 1), ("pick up the red block and place it in the left bin " * 4, 2), ("pick up the red block", 2)):
        want = policy.predict(images, [words], state, gpu_policy.TAG, torch.Generator().manual_seed(0))
        np.testing.assert_allclose(engine.predict(images, [words], state, torch.Generator().manual_seed(0)), want, atol=2e-5)
        assert len(engine.graphs) == graphs


@pytest.mark.parametrize("rows, views", [(1, 1), (2, 2)])
def test_an_engine_made_ready_compiles_and_captures_nothing_more(policy, rows, views):
    from torch._dynamo.utils import counters
    engine, (images, said, state), before = ChunkEngine(policy, gpu_policy.TAG, "fp32"), gpu_policy.given(policy, rows, views), torch.get_rng_state()
    engine.ready(said, images.shape[2:4], views)
    assert torch.equal(torch.get_rng_state(), before)                       # the robot's dice are its own
    made, compiled = len(engine.graphs), counters["stats"]["unique_graphs"]
    for words in (said, ["pick up the red block"] * rows):
        want = policy.predict(images, words, state, gpu_policy.TAG, torch.Generator().manual_seed(0))
        np.testing.assert_allclose(engine.predict(images, words, state, torch.Generator().manual_seed(0)), want, atol=2e-5)
    assert made == len(engine.graphs) == 1 and 0 < compiled == counters["stats"]["unique_graphs"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("size", ["tiny", "tiny_n16"])
@pytest.mark.parametrize("precision, compiled, least", [("fp32", False, .99999), ("bf16", False, .999), ("bf16", True, .999), ("fp8", False, .95), ("fp8", True, .95)])
def test_the_captured_graph_reads_every_new_picture(size, precision, compiled, least):
    policy = gpu_policy.random_policy(size, torch.device("cuda"))
    engine = ChunkEngine(policy, gpu_policy.TAG, precision, compiled)
    engine.calibrate([gpu_policy.given(policy, seed=s) for s in range(4)])
    for seed in range(3):
        x = [y.cuda() for y in asked(policy, 1, 1, 0, seed)]
        got, want = (y - x[-1] for y in (engine.run(*x), Chunk(policy, gpu_policy.SLOT).watch(*x)))
        assert torch.nn.functional.cosine_similarity(got.flatten(), want.flatten(), 0) > least


def test_fp8_without_observations_is_an_error_and_with_them_is_near(policy):
    engine, (images, said, state) = ChunkEngine(policy, gpu_policy.TAG, "fp8", compiled=False), gpu_policy.given(policy, 2)
    with pytest.raises(CookbookError, match="calibrate"): engine.predict(images, said, state)
    engine.calibrate([gpu_policy.given(policy, 1, seed=s) for s in range(4)])
    got, want = engine.predict(images, said, state, torch.Generator().manual_seed(0)), policy.predict(images, said, state, gpu_policy.TAG, torch.Generator().manual_seed(0))
    assert np.corrcoef(got.ravel(), want.ravel())[0, 1] > .99


@torch.no_grad()
def test_the_cost_of_a_layer_is_its_products_its_weights_and_its_launches():
    model = torch.nn.Sequential(torch.nn.Embedding(100, 8), torch.nn.Linear(8, 4))
    with Cost(model) as asked: model(torch.tensor([3, 4, 5])).T
    assert (asked.flop, asked.read, asked.launches) == (2 * 3 * 8 * 4, 4 * (3 * 8 + 8 * 4 + 4), 2)             # three rows of the table, not a hundred; turning is free


@torch.no_grad()
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_is_counted_wherever_it_runs(device):
    q, k = torch.zeros(1, 4, 10, 64, device=device), torch.zeros(1, 4, 20, 64, device=device)
    for mask in (None, torch.ones(1, 1, 10, 20, dtype=torch.bool, device=device)):
        with Cost(torch.nn.Module()) as asked: torch.nn.functional.scaled_dot_product_attention(q, k, k, attn_mask=mask)
        assert asked.flop == 2 * 2 * 4 * 10 * 20 * 64


@torch.no_grad()
def test_a_chunk_reads_its_steps_weights_in_every_step_and_all_others_once(policy):
    x = asked(policy, 1, 1, 0)
    costs = {}
    for steps in (2, 4, 8):
        chunk = Chunk(policy, 0, steps=steps)
        with Cost(chunk) as costs[steps]: chunk.watch(*x)
    step = (costs[8].read - costs[4].read) / 4
    told = sum(v.nbytes for v in chunk.times[0].values())
    assert step == (costs[4].read - costs[2].read) / 2 == held(chunk.acting) + told
    once = held(chunk) - held(chunk.acting) - chunk.reading.words.weight.nbytes
    assert .8 * once < costs[4].read - 4 * step < 1.2 * once


def test_too_few_instructions_are_an_error_as_they_are_to_the_policy(policy):
    engine, (images, said, state) = ChunkEngine(policy, gpu_policy.TAG, "fp32", compiled=False), gpu_policy.given(policy, 2)
    for wrong in (said[:1], said[0]):
        with pytest.raises(CookbookError, match="one instruction per row"): engine.predict(images, wrong, state)


def test_late_words_stand_where_they_stand_in_sixteen_bits_too(policy):
    exact, rotary = policy.backbone.eagle_model.language_model.model.rotary_emb, Chunk(policy, 31, precision=torch.bfloat16).reading.rotary
    assert rotary.inv_freq.dtype == torch.float32 and torch.equal(rotary.inv_freq, exact.inv_freq)
    places, x = torch.tensor([[319]]), torch.zeros(1, dtype=torch.float32)
    for ours, theirs in zip(rotary(x, places), exact(x, places)): torch.testing.assert_close(ours, theirs)


def test_fp8_measured_on_nothing_is_an_error(policy):
    with pytest.raises(CookbookError, match="nothing to measure"): ChunkEngine(policy, gpu_policy.TAG, "fp8", compiled=False).calibrate([])
