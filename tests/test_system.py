"""What the installation says of itself: which implementations have kernels for what."""

from __future__ import annotations

import pytest
import torch

import diffcrop

IMAGE, SIGNAL, VOLUME = torch.rand(1, 3, 9, 9), torch.rand(1, 3, 9), torch.rand(1, 3, 9, 9, 9)
BOX = torch.tensor([1.0, 2.0, 7.0, 8.0])

CALLS = {
    "crop of images": [lambda impl: diffcrop.crop(IMAGE, BOX, 3, impl=impl)],
    "crop of signals and volumes": [
        lambda impl: diffcrop.crop(SIGNAL, BOX[::2], 3, impl=impl),
        lambda impl: diffcrop.crop(VOLUME, BOX[[0, 0, 0, 3, 3, 3]], 3, impl=impl),
    ],
    "normal_equations of images": [lambda impl: diffcrop.normal_equations(IMAGE, BOX, IMAGE[0, :, :3, :3], impl=impl)],
    "roi_align": [lambda impl: diffcrop.roi_align(IMAGE, [BOX[None]], 2, impl=impl)],
    "warp, crop_rotated, crop_quad": [
        lambda impl: diffcrop.warp(IMAGE, torch.eye(3), 4, impl=impl),
        lambda impl: diffcrop.crop_rotated(IMAGE, torch.tensor([4.0, 4, 3, 3, 20]), 4, impl=impl),
        lambda impl: diffcrop.crop_quad(IMAGE, torch.tensor([[1.0, 1], [7, 2], [8, 8], [1, 6]]), 4, impl=impl),
    ],
    "paste of images": [lambda impl: diffcrop.paste(IMAGE, BOX[None], 12, impl=impl)],
}


def test_every_kind_of_operation_has_a_call():
    assert set(CALLS) == set(diffcrop.kernels())


@pytest.mark.parametrize(("name", "impl"), [(name, impl) for name in CALLS for impl in ("cpu", "triton")])
def test_kernels_are_where_they_are_said_to_be(name, impl, monkeypatch):
    """What is not said to have kernels refuses to be asked for them, whether the implementation is there or not."""
    for call in CALLS[name]:
        if impl in diffcrop.kernels()[name]:
            if diffcrop.implementations()[impl] is not None:
                pytest.skip(f"{impl} is not there")
            if impl == "cpu":
                torch.testing.assert_close(call("cpu"), call("reference"), rtol=1e-4, atol=1e-5)
            continue
        with pytest.raises(ValueError, match="impl"):
            call(impl)


@pytest.mark.parametrize("name", CALLS)
def test_the_reference_serves_everything(name):
    for call in CALLS[name]:
        call("reference")
