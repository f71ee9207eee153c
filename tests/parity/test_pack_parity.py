"""The packing operator equals transformers' pack_image_features, in values and in gradients."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pack_plans import plan_of

from megatron_llava.config.image import ImageSettings
from megatron_llava.ops.visual_pack import visual_pack
from megatron_llava.vision.anyres import parse_grid_pinpoints
from megatron_llava.vision.token_layout import NEWLINE, image_layout

CASES = 250
HIDDEN = 5
SIDE = 56
NEXT = ImageSettings(
    tile_size=SIDE,
    patch_size=14,
    image_aspect_ratio="anyres",
    grid_pinpoints=tuple((SIDE * w, SIDE * h) for w, h in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))),
    mm_patch_merge_type="spatial_unpad",
    unpad_round="hf",
    resize_mode="squash",
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
)
GRID = parse_grid_pinpoints("(1x1),...,(6x6)", SIDE)
ONEVISION = replace(NEXT, image_aspect_ratio="anyres_max_9", grid_pinpoints=GRID)
MODES = {
    "next": NEXT,
    "next-6x6": replace(NEXT, grid_pinpoints=GRID),
    "onevision-max-9": ONEVISION,
    "onevision-max-2": replace(ONEVISION, image_aspect_ratio="anyres_max_2"),
}


def transformers_pack(settings, size, features, newline):
    """What transformers' pack_image_features makes of the views of one image: [R, H]."""
    from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
    from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

    vision = SimpleNamespace(image_size=settings.tile_size, patch_size=settings.patch_size)
    pinpoints = [[height, width] for width, height in settings.grid_pinpoints]
    config = SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints)
    model, image_sizes = SimpleNamespace(config=config), torch.tensor([[size[1], size[0]]])
    if settings.max_merged_views is None:
        cls, how = LlavaNextModel, {"vision_feature_select_strategy": "default"}
    else:
        cls, how = LlavaOnevisionModel, {"vision_aspect_ratio": settings.image_aspect_ratio}
    merged, _ = cls.pack_image_features(
        model, [features], image_sizes, image_newline=newline, **how
    )
    return merged[0]


def sizes(seed):
    """Sides from 1 to 1500, as many small as large."""
    logarithms = np.random.default_rng(seed).uniform(0, np.log(1500), (CASES, 2))
    return np.exp(logarithms).round().astype(int).tolist()


@pytest.mark.proves("A2", "A6")
@pytest.mark.parametrize("mode", MODES)
def test_values_and_gradients_equal_transformers(mode):
    settings = MODES[mode]
    generator = torch.Generator().manual_seed(len(mode))
    newline = torch.randn(HIDDEN, generator=generator, requires_grad=True)
    copies = 0
    for width, height in sizes(len(mode)):
        size = width, height
        layout = image_layout(size, settings)
        shape = layout.num_views, settings.tokens_per_view, HIDDEN
        features = torch.randn(shape, generator=generator, requires_grad=True)
        theirs = transformers_pack(settings, size, features, newline)
        grad = torch.randn(theirs.shape, generator=generator)
        their_gradients = torch.autograd.grad(theirs, (features, newline), grad)

        rows = features.flatten(0, 1)
        assert NEWLINE == -1
        taps = torch.tensor(np.where(layout.taps < 0, len(rows), layout.taps))
        plan = plan_of(taps, torch.tensor(layout.weights), len(rows) + 1)
        ours = visual_pack(rows, newline[None], newline.new_empty(0, HIDDEN), plan)
        gradients = torch.autograd.grad(ours, (features, newline), grad)

        assert ours.shape == theirs.shape, size
        if not layout.weights[:, 1:].any():
            copies += 1
            assert torch.equal(ours, theirs), size
            assert torch.equal(gradients[0], their_gradients[0]), size
        else:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
            torch.testing.assert_close(gradients[0], their_gradients[0], rtol=0, atol=1e-4)
        # A sum of many: its terms are the same, their order is not.
        torch.testing.assert_close(gradients[1], their_gradients[1], rtol=1e-5, atol=1e-4)
    assert copies > CASES // 4 and (copies < CASES) == ("max" in mode)
