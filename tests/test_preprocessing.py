"""Pictures and words on their way into the backbone, against the operations that upstream documents, done by other libraries.

For evaluation GR00T N1.5 cuts out the middle 95 % of each side, resizes it to 224 x 224 (bilinear, antialiased, between 0 and 1), rounds down to whole
levels, and scales by mean and deviation 0.5 (gr00t/data/transform/video.py and gr00t/experiment/data_config.py of NVIDIA/Isaac-GR00T, N1.5; the Eagle
processor's preprocessor_config.json). torchvision's own transforms are what upstream runs; PIL has nothing in common with them or with us."""
import numpy as np
import pytest
import torch
from PIL import Image

from groot_cookbook.backbone import BackboneConfig, pixels, tiny_backbone
from groot_cookbook.core import CookbookError, torchvision_ready
from groot_cookbook.episodes import Normalizer
from groot_cookbook.policy import Embodiment, Processor

SIZES = [(480, 640), (256, 256), (224, 224), (96, 96), (241, 333)]
LEVEL = 1 / 255                             # in [0, 1]; pictures are in [-1, 1] by then, so twice that


def picture(size: tuple[int, int], seed: int = 0) -> torch.Tensor: # (3, H, W, 3): a smooth scene, noise, and hard edges
    rng, (h, w) = np.random.default_rng(seed), size
    y, x = np.mgrid[:h, :w] / max(h, w)
    smooth = np.stack([128 + 120 * np.sin(7 * x + 3 * y), 255 * x, 255 * y], -1)
    edges = np.repeat((np.indices((h, w)).sum(0) // 9 % 2 * 255)[..., None], 3, -1)
    return torch.from_numpy(np.stack([smooth, rng.integers(0, 256, (h, w, 3)), edges]).clip(0, 255).astype(np.uint8))


def documented(images: torch.Tensor, size: int = 224) -> torch.Tensor:
    "Upstream's steps, by torchvision."
    torchvision_ready()
    import torchvision.transforms.v2 as T
    frames = images.float().permute(0, 3, 1, 2) / 255
    h, w = frames.shape[-2:]
    frames = T.Resize((size, size), interpolation=T.InterpolationMode.BILINEAR, antialias=True)(T.CenterCrop((int(h * .95), int(w * .95)))(frames))
    return ((frames * 255).to(torch.uint8).float() / 255 - .5) / .5


@pytest.mark.parametrize("size", SIZES)
def test_upstreams_levels_exactly_and_ours_within_one(size):
    images = picture(size)
    theirs, same, ours = documented(images), pixels(images[:, None], BackboneConfig(), upstream_compatible=True), pixels(images[:, None], BackboneConfig())
    assert (same - theirs).abs().max() < 1e-6
    over = (ours - theirs) / 2                                                # upstream only ever rounds down
    assert over.min() > -1e-6 and over.max() < LEVEL + 1e-6


@pytest.mark.parametrize("size", SIZES)
def test_against_pil(size):
    images = picture(size)
    high, wide = (int(side * .95) for side in size)
    top, left = round((size[0] - high) / 2), round((size[1] - wide) / 2)
    def channel(a): return np.asarray(Image.fromarray(a.astype(np.float32), "F").crop((left, top, left + wide, top + high)).resize((224, 224), Image.BILINEAR))
    pil = np.stack([[channel(image[..., c].numpy()) for c in range(3)] for image in images])
    assert np.abs((pixels(images[:, None], BackboneConfig()).numpy() + 1) / 2 - pil / 255).max() < LEVEL / 4


def test_a_batch_is_its_pictures_one_by_one():
    images = picture((120, 160)).reshape(1, 3, 120, 160, 3).expand(2, -1, -1, -1, -1)                # two rows of three views
    together = pixels(images, BackboneConfig())
    assert together.shape == (6, 3, 224, 224)
    assert torch.equal(together[4:5], pixels(images[1:, 1:2], BackboneConfig()))


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (256, 256)])
def test_the_tiny_backbone_sees_the_whole_picture(size):
    config, white = tiny_backbone().config, torch.full((2, 1, *size, 3), 255, dtype=torch.uint8)
    framed = white.clone()
    framed[:, :, 0], framed[:, :, :, 0] = 0, 0
    assert torch.allclose(pixels(white, config), torch.ones(())) and pixels(framed, config)[:, :, 0].mean() < .9
    with pytest.raises(CookbookError, match="uint8"): pixels(white.float(), config)


def test_a_configuration_from_before_the_crop_had_a_name():
    config = tiny_backbone().config
    older = config.to_upstream()
    for later in ("crop", "view"): del older["eagle_cfg"][later]
    assert BackboneConfig.from_upstream(older) == config


# --- words -------------------------------------------------------------------------------------------------------

def test_what_the_language_model_reads():
    "Eagle's chat template around <image N>, the pictures in <img> and </img>; the patches of one view stand 256 in a row."
    said = BackboneConfig().prompt("pick up <IMG_CONTEXT>the cup", views=2)
    patches = "<IMG_CONTEXT>" * 256
    assert said == ("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
                    f"<image 1><img>{patches}</img><image 2><img>{patches}</img>pick up the cup<|im_end|>\n<|im_start|>assistant\n")


def processor(upstream_compatible: bool) -> Processor:
    eyes, bounds = tiny_backbone(), Normalizer("min_max", -np.ones(2), np.ones(2))
    body = Embodiment("new_embodiment", {"arm": [0, 1]}, {"arm": [0, 1]}, bounds, bounds)
    return Processor(eyes.config, eyes.tokenizer, {body.tag: body}, upstream_compatible=upstream_compatible)


def test_one_instruction_for_all_rows_only_where_upstreams_mistake_is_asked_for():
    images, texts = picture((64, 64))[:2], ["open the drawer", "close the drawer"]
    ours, theirs = (processor(c)(images, texts, np.zeros((2, 2)), "new_embodiment")["input_ids"] for c in (False, True))
    assert not torch.equal(ours[0], ours[1]) and torch.equal(theirs[0], theirs[1]) and torch.equal(ours[0], theirs[0])
