"The optimizers of every training: who gets what, and a training that can be killed at any step."
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from groot_cookbook.core import CookbookError
from groot_cookbook.optimizer import Muon, Trainer, averaged, fingerprint, is_inner, resume


class LateSecond(nn.Module):
    "A model whose second layer joins after five steps, as the steps in time of a video autoencoder do."
    def __init__(self):
        super().__init__()
        self.first, self.second, self.embed = nn.Linear(16, 16), nn.Linear(16, 16), nn.Embedding(4, 16)

    def forward(self, x, step): return self.second(self.first(x)) if step >= 5 else self.first(x)


def trainer(folder, **how) -> Trainer:
    torch.manual_seed(0)
    return Trainer(LateSecond(), folder / "state.safetensors", **how)


def train(t: Trainer, until: int) -> Trainer:
    while t.step < until:
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(t.step))
        t.update((t.model(x, t.step) - 1).square().mean(), 1.)
    return t


@pytest.mark.parametrize("killed_at", [3, 5, 7])
def test_a_resumed_training_is_the_undisturbed_one(tmp_path, killed_at):
    whole = train(trainer(tmp_path / "a"), 12)
    train(trainer(tmp_path / "b"), killed_at).save()
    again = train(resume(trainer(tmp_path / "b")), 12)
    assert all(torch.equal(p, q) for p, q in zip(whole.params + whole.mean, again.params + again.mean)) and whole.log == again.log
    assert all(torch.equal(p, m) for p, m in zip(averaged(again).parameters(), whole.mean))


def test_a_state_of_another_training_is_refused(tmp_path):
    train(trainer(tmp_path, recipe={"seed": 0}), 2).save()
    assert resume(trainer(tmp_path, recipe={"seed": 0})).step == 2
    with pytest.raises(CookbookError, match="another training"): resume(trainer(tmp_path, recipe={"seed": 1}))
    with pytest.raises(CookbookError, match=r"another training \(lr\)"): resume(trainer(tmp_path, lr=2e-3, recipe={"seed": 0}))
    save_file({"weight.first.weight": torch.zeros(16, 16)}, tmp_path / "state.safetensors")
    with pytest.raises(CookbookError, match="another training"): resume(trainer(tmp_path))


@pytest.mark.parametrize("change", [lambda a: [*a, torch.zeros(1)], lambda a: a[:1], lambda a: [a[0] + 1, *a[1:]], lambda a: [a[0].bfloat16(), *a[1:]], lambda a: [~a[1], a[0]]])
def test_a_fingerprint_tells_arrays_apart(change):
    arrays = [torch.arange(6.).reshape(2, 3), torch.tensor([True, False])]
    assert fingerprint(arrays) == fingerprint([a.numpy() for a in arrays]) != fingerprint(change(arrays))
    assert fingerprint([np.arange(6)[::-1]]) == fingerprint([np.arange(6)[::-1].copy()])


def test_nan_ends_the_training_and_spares_the_state(tmp_path):
    t = train(trainer(tmp_path), 3)
    t.save()
    with pytest.raises(CookbookError, match="NaN or infinite"): t.update(t.model(torch.full((8, 16), torch.nan), 0).sum(), 1.)
    assert all(torch.isfinite(p).all() for p in resume(trainer(tmp_path)).params)


def test_no_decay_means_the_weights_themselves(tmp_path):
    t = train(trainer(tmp_path, decay=0.), 3)
    assert all(torch.equal(p, m) for p, m in zip(t.params, t.mean))


def test_who_gets_muon():
    matrix = lambda *shape: nn.Parameter(torch.zeros(shape))
    assert is_inner("blocks.0.attn1.to_q.weight", matrix(64, 64))
    for name, shape in {"patch_embed.proj.weight": (64, 64), "blocks.0.norm1.linear_2.weight": (192, 32), "blocks.0.bias": (64,), "head.weight": (4, 64), "embed_tokens.weight": (64, 64)}.items():
        assert not is_inner(name, matrix(*shape)), name


def matrices(seed: int = 0) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=g)) for shape in ((32, 32), (16, 64), (64, 16))]


def after(kind: type, steps: int = 4) -> list[nn.Parameter]:
    mine = matrices()
    made = kind(mine, lr=.02, momentum=.95, weight_decay=.1)
    for i in range(steps):
        for p, g in zip(mine, matrices(i + 1)): p.grad = g.data
        made.step()
    return mine


def test_muon_is_pytorchs_where_the_hardware_has_bfloat16(monkeypatch):
    monkeypatch.setattr("groot_cookbook.optimizer.has_bf16", lambda device: True)
    for ours, theirs in zip(after(Muon), after(torch.optim.Muon)): assert torch.equal(ours, theirs)


def test_muon_in_float32_is_pytorchs_to_its_rounding(monkeypatch):
    monkeypatch.setattr("groot_cookbook.optimizer.has_bf16", lambda device: False)
    for ours, theirs, begun in zip(after(Muon), after(torch.optim.Muon), matrices()):
        assert torch.nn.functional.cosine_similarity((ours - begun).flatten(), (theirs - begun).flatten(), 0) > .999
        assert not torch.equal(ours, theirs)


def test_muon_leaves_alone_what_has_no_gradient():
    moved, still = matrices()[:2]
    before, moved.grad = still.detach().clone(), torch.ones_like(moved)
    Muon([moved, still], lr=.1).step()
    assert torch.equal(still, before) and not torch.equal(moved, matrices()[0])
