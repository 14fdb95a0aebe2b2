"""The scripts in examples/ run as somebody would run them, on random weights where they ask for weights."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from forked import Forked, script

import hash3d_cuda

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run_example(name: str, *arguments: str, folder: Path) -> str:
    """What the script prints; it runs in ``folder``, which is empty."""
    printed = folder.with_name(f"{folder.name} printed")
    printed.mkdir()
    status, output, errors = Forked(script(EXAMPLES / name, *arguments), folder, printed).end()
    assert status == 0, errors
    return output


@pytest.mark.parametrize("name", ["table", "hook"])
def test_ten_lines_are_ten(name):
    """Imports, blank lines, comments and the docstring do not count."""
    _, code = (EXAMPLES / f"{name}_in_ten_lines.py").read_text().split('"""')[1:]
    lines = [line.strip() for line in code.splitlines()]
    counted = [line for line in lines if line and not line.startswith(("#", "import ", "from "))]
    assert len(counted) <= 10


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_only_what_the_package_offers_is_used(path):
    """A part of the package that another test imported would be there too, but not in an interpreter of its own."""
    tree = ast.parse(path.read_text())
    names = {alias.asname for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
             if alias.name == "hash3d_cuda"}  # fmt: skip
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name) and node.value.id in names}  # fmt: skip
    assert used <= set(hash3d_cuda.__all__) and (used or not names)


def test_table_in_ten_lines(tmp_path):
    printed = run_example("table_in_ten_lines.py", folder=tmp_path)
    assert "[True, False, True, True]" in printed
    assert "4 appended, 0 rejected, 4 queries: 3 hits, 1 misses" in printed


def test_hook_in_ten_lines(tmp_path, random_pipeline):
    printed = run_example("hook_in_ten_lines.py", str(random_pipeline), folder=tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 4
    assert printed.count("azimuth") == 4


def test_sds_loop(tmp_path):
    from PIL import Image

    printed = run_example("sds_loop.py", "teddy bear", "3", folder=tmp_path)
    assert Image.open(tmp_path / "sds_loop.png").size == (8 * 64, 64)
    assert "3 forwards" in printed


@pytest.fixture(scope="module")
def random_pipeline(tmp_path_factory) -> Path:
    """A Stable Diffusion pipeline's folder, tiny and untrained."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=2, norm_num_groups=8, cross_attention_dim=16,
        attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(16, 16), down_block_types=("DownEncoderBlock2D",) * 2,
                        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=8)  # fmt: skip
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "bear</w>": 3, "teddy</w>": 4}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(vocab_size=5, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                       bos_token_id=0, eos_token_id=1, projection_dim=16)
    )  # fmt: skip
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder
