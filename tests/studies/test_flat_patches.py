"""Merging flat patches: exact where they carry the same position, and no further."""

import timm
import torch
from PIL import Image

from dynavit.models import prune
from dynavit.selectors import create_selector
from studies.flat_patches import flat_patches, letterboxed


def test_bars_are_flat() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(1, 255, (80, 80, 3), generator=generator, dtype=torch.uint8)
    image = letterboxed(Image.fromarray(noise.numpy()), 64)
    assert image.shape == (3, 64, 64)
    assert not image[:, :16].any()
    flat = flat_patches(image, 8).reshape(8, 8)
    assert flat[:2].all()
    assert flat[-2:].all()
    assert not flat[2:-2].any()
    image[0, 1, 1] = 1  # one pixel of one channel
    assert not flat_patches(image, 8)[0]


def test_equal_tokens_merge_exactly_and_others_do_not() -> None:
    torch.manual_seed(0)
    backbone = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=5
    )
    backbone = backbone.double().eval()
    image = torch.rand(1, 3, 64, 64, dtype=torch.double)
    image[:, :, :16] = image[:, :, -16:] = 0.5
    keep = ~flat_patches(image[0], 8)
    keep[0] = True
    model = prune(backbone, stages=(0,), selector="fixed", reducer="merge_nearest").eval()
    model.selector = create_selector("fixed", decisions=[keep[None]]).eval()
    with torch.no_grad():
        assert (model(image, keep_counts=[int(keep.sum())]) - backbone(image)).abs().max() > 1e-6
        backbone.pos_embed.zero_()
        torch.testing.assert_close(model(image, keep_counts=[int(keep.sum())]), backbone(image), rtol=0, atol=1e-12)
