"The benchmark of full-size dreams, its code path at a tiny size on a CPU; its speed there means nothing."
import json, subprocess, sys

import gpu_dreams
import pytest
import torch


def test_every_way_dreams_nearly_the_same_film(tmp_path):
    args = ["--size", "tiny", "--device", "cpu", "--films", "32x48x9", "--steps", "2", "--ways", "stock", "cuDNN attention", "guidance batched", "half guided", "--out", str(tmp_path)]
    assert gpu_dreams.main(args) == 0
    (film,) = json.loads((tmp_path / "dream_throughput.json").read_text())["films"]
    rows = {r["backend"]: r for r in film["rows"]}
    assert (film["height"], film["width"], film["frames"]) == (32, 48, 9) and rows["stock"]["relative_difference"] == 0
    assert rows["cuDNN attention"]["relative_difference"] < 1e-5 and rows["guidance batched"]["relative_difference"] < 1e-5 and rows["half guided"]["relative_difference"] > 1e-3
    assert all(len(r["seconds"]) == 1 for r in film["rows"]) and film["decode_s"]["stock"] > 0 < film["decode_s"]["tiled"]


def test_guidance_at_once_asks_the_model_once():
    "A step with guidance is one pass of two films, one without is one of one; afterwards the pipeline is as it was."
    pipe, films = gpu_dreams.drawn_pipeline("tiny", torch.device("cpu"), torch.float32), []
    said, unsaid = torch.randn(2, 1, 8, 128, generator=torch.Generator().manual_seed(0))
    pipe.transformer.transformer_blocks[0].register_forward_pre_hook(lambda block, args: films.append(len(args[0])))
    dreamed = lambda: pipe(image=gpu_dreams.Image.new("RGB", (48, 32)), prompt_embeds=said, negative_prompt_embeds=unsaid, height=32, width=48, num_frames=9, num_inference_steps=2, guidance_scale=7.,
                           output_type="latent", generator=torch.Generator().manual_seed(1), callback_on_step_end=gpu_dreams.unguided_after(.5, 2)).frames
    plain = dreamed()
    with gpu_dreams.guided_at_once(pipe, unsaid): torch.testing.assert_close(dreamed(), plain, rtol=0, atol=1e-4)
    dreamed()
    assert films == [1, 1, 1, 2, 1, 1, 1, 1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_without_a_gpu_it_says_so_and_leaves(tmp_path):
    done = subprocess.run([sys.executable, gpu_dreams.__file__, "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0 and "no CUDA GPU" in done.stdout and not list(tmp_path.iterdir())
