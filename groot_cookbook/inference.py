"""*A robot waits for its chunk. Here we take out of N1.5's forward pass everything that is computed twice, and replay the rest as one graph.*"""
from __future__ import annotations

from dataclasses import replace
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .action_head import Attention, Block, sinusoid, step_times
from .backbone import pixels, tokens
from .core import CookbookError
from .export import SettledLinear, settled
from .policy import GrootPolicy

Bias = Tensor | None


def one_product(*layers: nn.Linear) -> nn.Linear:
    "Layers that read the same input, as one: their outputs side by side."
    made = nn.Linear(layers[0].in_features, sum(l.out_features for l in layers), layers[0].bias is not None, device="meta")
    made.weight = nn.Parameter(torch.cat([l.weight.detach() for l in layers]))
    if made.bias is not None: made.bias = nn.Parameter(torch.cat([l.bias.detach() for l in layers]))
    return made


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Bias = None) -> Tensor: # (B, N, h * d), (B, L, h * d) twice, what is added to scores -> (B, N, h * d)
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)


class VisionLayer(nn.Module):
    "One layer of SigLIP: queries, keys and values in one product."
    def __init__(self, layer: nn.Module):
        super().__init__()
        seen, mlp = layer.self_attn, layer.mlp
        self.heads, self.norm1, self.norm2 = seen.num_heads, layer.layer_norm1, layer.layer_norm2
        self.qkv, self.out, self.widen, self.narrow = one_product(seen.q_proj, seen.k_proj, seen.v_proj), seen.out_proj, mlp.fc1, mlp.fc2

    def forward(self, x: Tensor) -> Tensor: # (B, P, D) -> (B, P, D)
        x = x + self.out(attend(*self.qkv(self.norm1(x)).chunk(3, -1), self.heads))
        return x + self.narrow(F.gelu(self.widen(self.norm2(x)), approximate="tanh"))


def rms(x: Tensor, norm: nn.Module) -> Tensor: return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)  # of Qwen


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor: # (B, L, h, d), (L, 1, d) twice: rotary positions
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class WordLayer(nn.Module):
    "One layer of Qwen3: queries, keys and values in one product, gate and width in another."
    def __init__(self, layer: nn.Module):
        super().__init__()
        seen, mlp = layer.self_attn, layer.mlp
        self.head_dim, self.norms = seen.head_dim, nn.ModuleList([layer.input_layernorm, layer.post_attention_layernorm, seen.q_norm, seen.k_norm])
        self.qkv, self.out = one_product(seen.q_proj, seen.k_proj, seen.v_proj), seen.o_proj
        self.widen, self.narrow = one_product(mlp.gate_proj, mlp.up_proj), mlp.down_proj
        self.widths = [p.out_features for p in (seen.q_proj, seen.k_proj, seen.v_proj)]

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> Tensor: # (B, L, D), (L, 1, d) twice, (B, 1, L, L) -> (B, L, D)
        first, second, of_q, of_k = self.norms
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)) for y in self.qkv(rms(x, first)).split(self.widths, -1))
        q, k = turn(rms(q, of_q), cos, sin), turn(rms(k, of_k), cos, sin)
        k, v = (y.repeat_interleave(q.shape[2] // k.shape[2], 2) for y in (k, v))
        x = x + self.out(attend(q.flatten(2), k.flatten(2), v.flatten(2), q.shape[2], bias))
        gate, width = self.widen(rms(x, second)).chunk(2, -1)
        return x + self.narrow(F.silu(gate) * width)


class HeadLayer(nn.Module):
    "A block of the adapter, or of the DiT; a cross-attending one is given its keys and values."
    def __init__(self, block: Block, crosses: bool = False):
        super().__init__()
        seen: Attention = block.attn1
        self.heads, self.crosses, self.out, self.widen, self.narrow = seen.heads, crosses, seen.to_out[0], block.ff.net[0].proj, block.ff.net[2]
        self.q = seen.to_q if crosses else one_product(seen.to_q, seen.to_k, seen.to_v)
        self.norm1, self.norm3 = block.norm1 if isinstance(block.norm1, nn.LayerNorm) else None, block.norm3

    def forward(self, x: Tensor, k: Tensor | None = None, v: Tensor | None = None, bias: Bias = None, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        calm = self.norm1(x) if scale is None else F.layer_norm(x, x.shape[-1:], eps=1e-5) * scale + shift
        q, k, v = (self.q(calm), k, v) if self.crosses else self.q(calm).chunk(3, -1)
        x = x + self.out(attend(q, k, v, self.heads, bias))
        return x + self.narrow(F.gelu(self.widen(self.norm3(x)), approximate="tanh"))


def folded(first: Tensor, bias: Tensor | None, second: Tensor, then: Tensor) -> tuple[Tensor, Tensor]: # (I, J), (J,), (J, K), (K,) -> (I, K), (K,)
    "Two linear maps with nothing between them are one; multiplied out in float64, once."
    a, b = first.double(), second.double()
    return (a @ b).to(first.dtype), ((0 if bias is None else bias.double() @ b) + then.double()).to(first.dtype)


class Chunk(nn.Module):
    "Pixels, words, state and noise to a chunk of normalised actions: N1.5 for one robot, nothing computed twice."
    def __init__(self, policy: GrootPolicy, slot: int, steps: int | None = None, precision: torch.dtype = torch.float32):
        super().__init__()
        if policy.config.action_head.use_alternate_vl_dit: raise CookbookError("N1.6 looks at words and pictures in turn, which this path does not do", "ChunkEngine", "Use policy.predict")
        one = settled(policy, slot).float()
        eagle, head, self.config = one.backbone.eagle_model, one.action_head, policy.config
        vision, language = eagle.vision_model["vision_model"], eagle.language_model.model
        vision = getattr(vision, "vision_model", vision)
        self.embeddings, self.vision_norm, self.connector = vision.embeddings, vision.post_layernorm, eagle.mlp1[0]
        self.vision = nn.ModuleList(VisionLayer(l) for l in vision.encoder.layers)
        self.words, self.word_norm, self.rotary = language.embed_tokens, language.norm, language.rotary_emb
        self.language = nn.ModuleList(WordLayer(l) for l in language.layers)
        self.project, self.vlln = one.backbone.eagle_linear, head.vlln
        self.adapter = nn.ModuleList(HeadLayer(b) for b in (head.vl_self_attention.transformer_blocks if head.vl_self_attention else []))
        dit = head.model
        self.blocks = nn.ModuleList(HeadLayer(b, crosses) for b, crosses in zip(dit.transformer_blocks, dit.crosses))
        cross = [b.attn1 for b, crosses in zip(dit.transformer_blocks, dit.crosses) if crosses]
        self.keys_values = one_product(*[l for a in cross for l in (a.to_k, a.to_v)])
        self.state1, self.state2 = (linear(l) for l in (head.state_encoder.layer1, head.state_encoder.layer2))
        self.settle_time(head, step_times(policy.config.action_head, steps))
        self.upstream_compatible = head.upstream_compatible
        self.to(precision)

    @torch.no_grad()
    def settle_time(self, head, times: list[int]) -> None:
        "All that depends on the flow's time alone, once and for good; and maps with nothing between them, multiplied out."
        every, encoder, decoder = head.model.modulations(torch.tensor(times, device=head.action_encoder.W1.W.device)), head.action_encoder, head.action_decoder
        width = encoder.W1.W.shape[1]
        codes = torch.stack([sinusoid(torch.tensor(float(t), device=encoder.W1.W.device), width) for t in times])
        weight, bias = folded(encoder.W1.W, encoder.W1.b, encoder.W2.W[:width], encoder.W2.b)
        out_weight, out_bias = folded(head.model.proj_out_2.weight.T, head.model.proj_out_2.bias, decoder.layer1.W, decoder.layer1.b)
        fixed = [] if head.future_tokens is None else [head.future_tokens.weight]
        held = {"scale": torch.stack([1 + m.chunk(2, -1)[0] for m in every[:-1]])[:, :, 0], "shift": torch.stack([m.chunk(2, -1)[1] for m in every[:-1]])[:, :, 0],
                "out_scale": 1 + every[-1].chunk(2, -1)[0][:, 0], "out_shift": every[-1].chunk(2, -1)[1][:, 0],
                "code": codes @ encoder.W2.W[width:] + bias, "future": torch.cat(fixed) if fixed else torch.zeros(0, width, device=codes.device),
                "place": head.position_embedding.weight[: self.config.action_head.action_horizon] if head.position_embedding else torch.zeros(1, width, device=codes.device)}
        for name, value in held.items(): self.register_buffer(name, value.detach().clone(), persistent=False)
        self.action1, self.action2, self.answer1, self.answer2 = plain(weight.T), linear(encoder.W3), plain(out_weight.T, out_bias), linear(decoder.layer2)

    def see(self, pixel_values: Tensor) -> Tensor: # (B * V, 3, S, S) -> (B * V, P, D)
        x = self.embeddings(pixel_values)
        for layer in self.vision: x = layer(x)
        return self.connector(self.vision_norm(x))

    def read(self, patches: Tensor, input_ids: Tensor, mask: Tensor) -> Tensor: # (B, V * P, D), (B, L) twice -> (B, L, D)
        is_patch, words = input_ids == self.config.backbone.image_token_index, self.words(input_ids)
        nth = (is_patch.long().cumsum(1) - 1).clamp(0, patches.shape[1] - 1)
        x = torch.where(is_patch[..., None], patches.gather(1, nth[..., None].expand(-1, -1, patches.shape[-1])), words)
        length = input_ids.shape[1]
        place = torch.arange(length, device=x.device)
        allowed = ((place[:, None] >= place) & mask.bool()[:, None, None]) | (place[:, None] == place)
        bias = torch.zeros_like(allowed, dtype=x.dtype).masked_fill(~allowed, float("-inf"))
        cos, sin = (y[0, :, None].to(x.dtype) for y in self.rotary(x, place[None]))
        for layer in self.language: x = layer(x, cos, sin, bias)
        return self.project(rms(x, self.word_norm))

    def look(self, features: Tensor, bias: Bias) -> Tensor: # (B, L, D), (B, 1, 1, L) -> (B, L, 2 * D' * crossing blocks)
        x = self.vlln(features)
        for layer in self.adapter: x = layer(x, bias=bias)
        return self.keys_values(x)

    def step(self, x: Tensor, stay: Tensor, context: Tensor, bias: Bias, code: Tensor, scale: Tensor, shift: Tensor, out_scale: Tensor, out_shift: Tensor) -> Tensor: # noised actions (B, H, A), state and future tokens (B, 1 + M, D)
        made = self.action2(F.silu(self.action1(x) + code)) + self.place
        h, kv = torch.cat((stay, made), 1), iter(context.chunk(2 * sum(b.crosses for b in self.blocks), -1))
        for i, block in enumerate(self.blocks):
            k, v, see = (next(kv), next(kv), bias) if block.crosses else (None, None, None)
            h = block(h, k, v, see, scale[i], shift[i])
        h = F.layer_norm(h[:, -x.shape[1]:], h.shape[-1:], eps=1e-6) * out_scale + out_shift
        return x + self.answer2(F.relu(self.answer1(h))) / len(self.code)

    def forward(self, images: Tensor, input_ids: Tensor, mask: Tensor, state: Tensor, noise: Tensor) -> Tensor: # (B, V, H, W, 3) uint8, (B, L) twice, (B, S), (B, H, A) -> (B, H, A)
        dtype = self.future.dtype
        patches = self.see(pixels(images, self.config.backbone).to(dtype))
        features = self.read(patches.reshape(len(input_ids), -1, patches.shape[-1]), input_ids, mask)
        bias = None if self.upstream_compatible else torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask.bool(), float("-inf"))[:, None, None]
        context = self.look(features, bias)
        told = self.state2(F.relu(self.state1(state[:, None].to(dtype))))
        stay, x = torch.cat((told, self.future.expand(len(told), -1, -1)), 1), noise.to(dtype)
        for i in range(len(self.code)): x = self.step(x, stay, context, bias, self.code[i], self.scale[:, i], self.shift[:, i], self.out_scale[i], self.out_shift[i])
        return x.float()


def plain(weight: Tensor, bias: Tensor | None = None) -> nn.Linear: # (out, in)
    made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach().contiguous())
    if bias is not None: made.bias = nn.Parameter(bias.detach())
    return made


def linear(layer: SettledLinear) -> nn.Linear: return plain(layer.W.T, layer.b)  # weights the other way round


FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max


class Linear8(nn.Module):
    "A linear layer in FP8, added up in float32: one scale for all inputs where calibrating saw how `largest` they are, else one for each row, found anew."
    def __init__(self, layer: nn.Linear, largest: Tensor | None = None): # () of the inputs' absolute values
        super().__init__()
        weight, self.settled = layer.weight.detach().float(), largest is not None
        scale = (weight.abs().amax(None if self.settled else (1,), keepdim=not self.settled) / LARGEST).clamp(min=1e-12)
        self.register_buffer("weight8", (weight / scale).clamp(-LARGEST, LARGEST).to(FP8))
        self.register_buffer("weight_scale", scale if self.settled else scale.T.contiguous())
        self.register_buffer("input_scale", None if largest is None else (largest.float() / LARGEST).clamp(min=1e-12))
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach())

    def forward(self, x: Tensor) -> Tensor: # (..., in) -> (..., out)
        flat = x.flatten(0, -2)
        scale = self.input_scale if self.settled else (flat.abs().amax(1, keepdim=True).float() / LARGEST).clamp(min=1e-12)
        flat8 = (flat.float() / scale).clamp(-LARGEST, LARGEST).to(FP8)
        out = torch._scaled_mm(flat8, self.weight8.t(), scale, self.weight_scale, bias=self.bias, out_dtype=x.dtype, use_fast_accum=True)
        return out.unflatten(0, x.shape[:-1])


WIDE = ("vision.", "language.", "adapter.", "blocks.", "keys_values")     # what is in FP8; embeddings, connector, encoders and decoder stay as they are


def replace_linear(model: nn.Module, wanted: Callable[[str, nn.Linear], bool], made: Callable[[str, nn.Linear], nn.Module]) -> nn.Module:
    "Every linear layer that is `wanted`, by another."
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and wanted(n, m)]:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, made(name, layer))
    return model


@torch.no_grad()
def to_fp8(chunk: Chunk, given: list[tuple[Tensor, ...]]) -> Chunk:
    "Measure every wide layer's inputs on what a robot sees (`given`: inputs of `forward`), then put the layers into FP8."
    largest: dict[str, Tensor] = {}
    def watch(name: str) -> Callable:
        def see(module: nn.Module, x: tuple[Tensor, ...]) -> None:
            largest[name] = torch.maximum(largest.get(name, x[0].new_zeros(())), x[0].abs().amax())
        return see
    hooks = [m.register_forward_pre_hook(watch(n)) for n, m in chunk.named_modules() if isinstance(m, nn.Linear) and n.startswith(WIDE)]
    for x in given: chunk(*x)
    for h in hooks: h.remove()
    return cast(Chunk, replace_linear(chunk, lambda name, layer: name in largest, lambda name, layer: Linear8(layer, largest[name])))


def captured(call: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[..., Tensor]:
    "One CUDA graph for the whole chunk: inputs are copied to where it reads them, and it is replayed."
    held, side = [x.clone() for x in inputs], torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3): call(*held)                       # whatever is chosen or allocated at first use is, before the capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph): out = call(*held)

    def replay(*inputs: Tensor) -> Tensor:
        for there, x in zip(held, inputs): there.copy_(x, non_blocking=True)
        graph.replay()
        return out

    return replay


STAGES = ("see", "read", "look", "step")


class ChunkEngine:
    "`policy.predict` for one robot, made fast: in bf16 or FP8, compiled, and on a GPU captured as one graph for each shape of what comes in."
    def __init__(self, policy: GrootPolicy, tag: str, precision: str = "bf16", compiled: bool = True, length: int | None = None, steps: int | None = None):
        self.processor = replace(policy.processor, length=length)
        self.tag, self.device, self.compiled, self.fp8 = tag, policy.device, compiled, precision == "fp8"
        self.shape = policy.config.action_head.action_horizon, policy.config.action_head.action_dim
        dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.bfloat16}
        if precision not in dtypes: raise CookbookError(f"no precision called {precision!r}", "ChunkEngine", f"Choose among {', '.join(dtypes)}")
        self.chunk = Chunk(policy, self.processor.embodiment(tag).slot, steps, dtypes[precision])
        self.graphs: dict[tuple, Callable] = {}
        self.said: dict[tuple, tuple[Tensor, Tensor]] = {}

    def words(self, instructions: tuple[str, ...], views: int) -> tuple[Tensor, Tensor]: # ids and mask (B, L) on the device, kept for as long as nobody says something else
        p = self.processor
        if (instructions, views) not in self.said:
            if p.length is None: p.length = -(-tokens(p.tokenizer, list(instructions), views, p.backbone)[0].shape[1] // 16) * 16
            ids, mask = tokens(p.tokenizer, list(instructions), views, p.backbone, p.length)
            self.said = {(instructions, views): (ids.to(self.device), mask.to(self.device))}
        return self.said[instructions, views]

    @torch.no_grad()
    def run(self, *inputs: Tensor) -> Tensor: # of `Chunk.forward` -> (B, H, 32) normalised, which the next call overwrites
        "The first call with new shapes takes its time: it calibrates, compiles and captures."
        shapes = tuple(x.shape for x in inputs)
        if shapes not in self.graphs:
            if self.fp8 and not self.graphs: to_fp8(self.chunk, [inputs])
            if self.compiled and not self.graphs:
                for stage in STAGES: setattr(self.chunk, stage, torch.compile(getattr(self.chunk, stage), dynamic=False, mode="max-autotune-no-cudagraphs" if self.device.type == "cuda" else None))
            self.graphs[shapes] = captured(self.chunk, list(inputs)) if self.device.type == "cuda" else self.chunk
        return self.graphs[shapes](*inputs)

    def predict(self, images, instructions: list[str], state, generator: torch.Generator | None = None) -> np.ndarray:
        "Raw observations, as `policy.predict` takes them, to a chunk (B, H, A) in the robot's units."
        images = torch.as_tensor(np.asarray(images))
        images = images[:, None] if images.ndim == 4 else images
        ids, mask = self.words(tuple(instructions), images.shape[1])
        noise = torch.randn(len(images), *self.shape, generator=generator)
        told = self.processor.state(state, self.tag, len(images))
        chunk = self.run(*(x.to(self.device, non_blocking=True) for x in (images, ids, mask, told, noise)))
        return self.processor.actions(chunk, self.tag, state)
