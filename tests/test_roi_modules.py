"""`nn.RoIAlign`, and `nn.MultiScaleRoIAlign`: levels, scales, order and gradients."""

from __future__ import annotations

import math
import re

import pytest
import torch

from diffcrop import roi_align
from diffcrop.nn import MultiScaleRoIAlign, RoIAlign

SHAPES = [(512, 640), (500, 600)]


def pyramid(generator, count=4):
    return {
        f"p{level}": torch.rand(2, 3, 512 >> level, 640 >> level, generator=generator, dtype=torch.float64)
        for level in range(2, 2 + count)
    }


def square(side, x=10.0, y=20.0):
    return [x, y, x + side, y + side]


def test_the_module_is_the_function(generator):
    images = torch.rand(2, 3, 9, 9, generator=generator)
    boxes = torch.tensor([[1, 2.0, 3, 30, 20]])
    for arguments, keywords in (((5, 0.25, 2, True), {}), (((2, 3), 0.5), {"mode": "exact", "impl": "reference"})):
        module = RoIAlign(*arguments, **keywords)
        assert torch.equal(module(images, boxes), roi_align(images, boxes, *arguments, **keywords))
    assert "mode='exact', impl='reference'" in repr(module)
    assert not module.state_dict()
    assert RoIAlign((2, 2, 3))(torch.rand(1, 1, 4, 4, 4), torch.rand(1, 7) * 0).shape == (1, 1, 2, 2, 3)
    with pytest.raises(ValueError, match="sampling_ratio belongs to"):
        RoIAlign(3, 1.0, 2, mode="exact")
    with pytest.raises(ValueError, match="output_size"):
        RoIAlign(0)


def test_levels_written_down():
    """A side of 224 reads level 4, one of 223.9 level 3, twice that 5; clamped at both ends."""
    pool = MultiScaleRoIAlign(["a"], 7, 2)
    sides = [1.0, 111.9, 112, 223.9, 224, 447.9, 448, 895, 896, 5000]
    boxes = torch.tensor([square(side) for side in sides], dtype=torch.float64)
    assert pool.levels(boxes, 2, 5).tolist() == [2, 2, 3, 3, 4, 4, 5, 5, 5, 5]
    assert pool.levels(torch.tensor([[0.0, 0, 448, 112], [0, 0, 100, 100]]), 2, 5).tolist() == [4, 2]
    odd = torch.tensor([[0.0, 0, 0, 9], [5, 5, 1, 9], [math.nan, 0, 1, 1], [0, 0, math.inf, 1]])
    assert pool.levels(odd, 2, 5).tolist() == [2, 2, 2, 5]
    other = MultiScaleRoIAlign(["a"], 7, 2, canonical_scale=100, canonical_level=3)
    assert other.levels(boxes, 2, 5).tolist() == [2, 3, 3, 4, 4, 5, 5, 5, 5, 5]


def test_scales_are_powers_of_two():
    pool = MultiScaleRoIAlign(["a"], 7, 2)
    maps = [torch.zeros(1, 1, n, 9) for n in (200, 100, 51, 24)]
    assert pool.scales(maps, [(799, 1066), (640, 900)]) == [1 / 4, 1 / 8, 1 / 16, 1 / 32]


@pytest.mark.parametrize("options", [{}, {"aligned": True, "mode": "exact", "impl": "reference"}])
def test_each_box_reads_its_level_in_order(options, generator):
    maps = pyramid(generator)
    maps["other"] = torch.zeros(2, 3, 5, 5)
    boxes = [
        torch.tensor([square(s) for s in sides], dtype=torch.float64, requires_grad=True)
        for sides in ((300, 40, 130, 470), (20, 250))
    ]
    ratio = -1 if "mode" in options else 2
    pool = MultiScaleRoIAlign(["p2", "p3", "p4", "p5"], (4, 5), ratio, **options)
    found = pool(maps, boxes, SHAPES)
    assert found.shape == (6, 3, 4, 5)
    rows = [(0, 0, 4), (0, 1, 2), (0, 2, 3), (0, 3, 5), (1, 0, 2), (1, 1, 4)]
    for row, (image, k, level) in enumerate(rows):
        aligned = options.get("aligned", False)
        more = {name: options[name] for name in ("mode", "impl") if name in options}
        feature = maps[f"p{level}"][image : image + 1]
        right = roi_align(feature, [boxes[image][k : k + 1]], (4, 5), 2.0**-level, ratio, aligned, **more)
        torch.testing.assert_close(found[row : row + 1], right, rtol=0, atol=1e-12)
        # Moving a box changes its own features, by its own level's slope.
        mine, other = (
            torch.autograd.grad(v.sin().sum(), boxes[image], retain_graph=True)[0] for v in (found[row], right)
        )
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)
        assert (mine[k] != 0).all()


def test_none_and_one(generator):
    maps = pyramid(generator)
    pool = MultiScaleRoIAlign(["p2", "p3"], 7, 2)
    none = [torch.zeros(0, 4, dtype=torch.float64)] * 2
    assert pool(maps, none, SHAPES).shape == (0, 3, 7, 7)
    boxes = [torch.tensor([square(50.0)], dtype=torch.float64)] * 2
    one = MultiScaleRoIAlign(["p3"], 7, 2)(maps, boxes, SHAPES)
    assert torch.equal(one, roi_align(maps["p3"], boxes, 7, 1 / 8, 2))
    broken = [boxes[0] * math.nan, boxes[1]]
    found = pool(maps, broken, SHAPES)
    assert found[0].isnan().all()
    assert found[1].isfinite().all()


def test_the_pyramid_module_shows_its_arguments():
    assert repr(MultiScaleRoIAlign(["a"], 7, 2)) == (
        "MultiScaleRoIAlign(featmap_names=['a'], output_size=7, sampling_ratio=2)"
    )
    options = {"canonical_scale": 100.0, "canonical_level": 3, "aligned": True, "mode": "exact", "impl": "reference"}
    assert repr(MultiScaleRoIAlign(["a"], (7, 8), **options)) == (
        "MultiScaleRoIAlign(featmap_names=['a'], output_size=(7, 8), sampling_ratio=-1, canonical_scale=100.0, "
        "canonical_level=3, aligned=True, mode='exact', impl='reference')"
    )


@pytest.mark.parametrize("mode", ["sample", "exact"])
def test_sampling_ratio_may_be_left_out(mode, generator):
    maps = pyramid(generator)
    boxes = [torch.tensor([square(50.0), square(200.0)], dtype=torch.float64)] * 2
    without = MultiScaleRoIAlign(["p2", "p3"], 3, mode=mode)(maps, boxes, SHAPES)
    assert without.ne(0).any()
    assert torch.equal(without, MultiScaleRoIAlign(["p2", "p3"], 3, -1, mode=mode)(maps, boxes, SHAPES))


MAPS, BOXES = {"a": torch.zeros(1, 1, 16, 16), "b": torch.zeros(1, 1, 8, 8)}, [torch.zeros(1, 4)]


@pytest.mark.parametrize(("made", "given", "kind", "text"), [
    ({"featmap_names": "a"}, {}, TypeError, "featmap_names must be a list of names"),
    ({"featmap_names": []}, {}, ValueError, "featmap_names must name at least one"),
    ({"output_size": 0}, {}, ValueError, "output_size must be at least 1"),
    ({"sampling_ratio": 0.5}, {}, TypeError, "sampling_ratio must be an int"),
    ({"mode": "exact"}, {}, ValueError, "sampling_ratio=2 with mode='exact', which averages the whole bin; pass -1 or"),
    ({"canonical_scale": 0}, {}, ValueError, "canonical_scale must be finite and more than 0"),
    ({"canonical_scale": "s"}, {}, TypeError, "canonical_scale must be a number"),
    ({"canonical_level": 4.5}, {}, TypeError, "canonical_level must be an int"),
    ({}, {"x": [MAPS["a"]]}, TypeError, "x must be a mapping"),
    ({}, {"x": {"a": MAPS["a"]}}, ValueError, "x must hold the feature maps ['a', 'b'], got ['a']"),
    ({}, {"x": {"b": MAPS["b"], "a": MAPS["a"]}}, ValueError, "from the finest to the coarsest"),
    ({}, {"boxes": BOXES[0]}, TypeError, "boxes must be a list"),
    ({}, {"image_shapes": []}, ValueError, "image_shapes must have (h, w)"),
    ({}, {"image_shapes": [(0, 5)]}, ValueError, "image_shapes must be at least 1"),
    ({}, {"image_shapes": torch.tensor([[64, 64]])}, TypeError, "pass image_shapes.tolist()"),
    ({}, {"image_shapes": (64, 64)}, TypeError, "image_shapes must hold (h, w) of each image"),
    ({}, {"image_shapes": [64]}, TypeError, "image_shapes must hold (h, w) of each image, got [64]"),
    ({}, {"image_shapes": [(64, 64)] * 2}, ValueError, "each of the 1 images that there are boxes of, got 2"),
    ({}, {"image_shapes": None}, TypeError, "image_shapes must hold (h, w) of each image, got None"),
    ({}, {"image_shapes": [("64", 64)]}, TypeError, "image_shapes must hold (h, w) of each image"),
    ({}, {"image_shapes": [(64, 0)]}, ValueError, "image_shapes must be at least 1"),
    ({}, {"boxes": []}, ValueError, "boxes must be a list of one tensor (K, 4) per image, got none for 1 images"),
    ({}, {"boxes": [BOXES[0]] * 2}, ValueError, "one tensor per image, got 2 for 1 images"),
    ({}, {"boxes": None}, TypeError, "boxes must be a list of one tensor (K, 4) per image, got None"),
    ({}, {"boxes": [BOXES[0].to("meta")]}, ValueError, "x and boxes[0] must be on the same device"),
    ({}, {"x": {**MAPS, "b": MAPS["b"].double()}}, ValueError, "agree in images, channels, dtype and device"),
    ({"featmap_names": None}, {}, TypeError, "featmap_names must be a list of names, got None"),
    ({}, {"boxes": [torch.zeros(1, 5)]}, ValueError, "an index in front is no part of a box: pass boxes[0]["),
    ({}, {"boxes": [[0, 0, 1, 1]]}, TypeError, "got [[0, 0, 1, 1]] (list); convert it with torch.as_tensor(boxes"),
    ({}, {"boxes": BOXES[0]}, TypeError, "pass [boxes] for one image"),
    ({}, {"x": {**MAPS, "b": torch.zeros(1, 1, 0, 8)}}, TypeError, "tensor of shape (1, 1, 0, 8) for x['b']"),
])  # fmt: skip
def test_errors(made, given, kind, text):
    def use():
        module = MultiScaleRoIAlign(**{"featmap_names": ["a", "b"], "output_size": 3, "sampling_ratio": 2, **made})
        module(**{"x": MAPS, "boxes": BOXES, "image_shapes": [(64, 64)], **given})

    with pytest.raises(kind, match=re.escape(text)):
        use()
