"""Parity of warps with what others compute: `affine_grid` + `grid_sample`, OpenCV, kornia."""

from __future__ import annotations

import itertools
import warnings

import cv2
import numpy as np
import pytest
import torch
from torch.nn.functional import affine_grid, grid_sample

import diffcrop
from diffcrop import crop_quad, crop_rotated, warp, warp_points
from helpers import rand
from test_placement import centres_of, some_quads
from test_rotated import IMPLEMENTATIONS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import kornia.geometry.transform as kornia

f64 = torch.float64
SHAPE, SIZE = (12, 15), (7, 6)
FIXED_POINT = 1 / 64  # OpenCV's positions where it rounds them to 1/32 of a pixel, at most so far off


@pytest.fixture(params=IMPLEMENTATIONS)
def impl(request):
    return request.param


def same(actual, expected, atol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol * max(1.0, float(expected.abs().max())))


def some_thetas(count, generator):
    """Of the recipe: turned, sheared, mirrored, enlarged and reduced, inside and across the edges."""
    return (rand(count, 2, 3, generator=generator) - 0.5) * torch.tensor([3.0, 3.0, 1.5])


# --- the recipe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
def test_values_and_both_gradients_of_the_recipe(impl, mode, padding_mode, align_corners, generator):
    thetas = some_thetas(40, generator)
    images = rand(40, 2, *SHAPE, generator=generator)
    cotangent = rand(40, 2, *SIZE, generator=generator) - 0.5
    convention = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}

    def recipe(images, theta):
        return grid_sample(images, affine_grid(theta, (40, 2, *SIZE), align_corners), **convention)

    def ours(images, theta):
        return warp(images, theta, SIZE, coords="normalized", antialias=False, impl=impl, **convention)

    if mode == "nearest":
        assert ours(images, thetas).equal(recipe(images, thetas))
        return
    results = []
    for function in (recipe, ours):
        inputs = images.clone().requires_grad_(), thetas.clone().requires_grad_()
        value = function(*inputs)
        results.append((value.detach(), *torch.autograd.grad(value, inputs, cotangent)))
    for expected, found in zip(*results, strict=True):
        assert (expected != 0).any()
        same(found, expected)


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_recipe_with_a_homography(impl, align_corners, generator):
    """A grid of positions made by hand, and the gradient by the corners through it."""
    quads = some_quads(20, generator) + torch.tensor([2.0, 1.0])
    images = rand(20, 2, *SHAPE, generator=generator)
    cotangent = rand(20, 2, *SIZE, generator=generator) - 0.5
    extent = torch.tensor([SHAPE[1], SHAPE[0]], dtype=f64) - int(align_corners)

    def recipe(images, quads):
        matrix = diffcrop.quads_to_matrix(quads, SIZE, align_corners=align_corners)
        place = warp_points(centres_of(SIZE, align_corners), matrix).unflatten(1, SIZE)
        return grid_sample(images, 2 * place / extent - 1, align_corners=align_corners)

    def ours(images, quads):
        how = {"padding_mode": "zeros", "align_corners": align_corners, "impl": impl}
        return crop_quad(images, quads, SIZE, antialias=False, **how)

    results = []
    for function in (recipe, ours):
        inputs = images.clone().requires_grad_(), quads.clone().requires_grad_()
        value = function(*inputs)
        results.append((value.detach(), *torch.autograd.grad(value, inputs, cotangent)))
    for expected, found in zip(*results, strict=True):
        same(found, expected, atol=1e-10)


@pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid behavior has changed")
def test_one_pixel_aligned_is_that_of_affine_grid(impl, generator):
    """n = 1 is the middle, and an image of one pixel is that pixel."""
    thetas = some_thetas(10, generator)
    for shape, size in itertools.product([(1, 9), (9, 1), (1, 1), (5, 5)], [(1, 1), (1, 4), (4, 1), (3, 3)]):
        images = rand(10, 1, *shape, generator=generator)
        how = {"align_corners": True, "padding_mode": "border"}
        expected = grid_sample(images, affine_grid(thetas, (10, 1, *size), True), **how)
        same(warp(images, thetas, size, coords="normalized", antialias=False, impl=impl, **how), expected)


# --- OpenCV -----------------------------------------------------------------------------------------------------------

AFFINE = np.array([[0.8, 0.3, 2.2], [-0.25, 0.9, 7.1]])
PERSPECTIVE = np.array([[0.8, 0.3, 2.2], [-0.25, 0.9, 7.1], [0.002, -0.001, 1.0]])
MATRICES = {
    "affine": AFFINE,
    "affine across the edge": AFFINE + np.array([[0, 0, -9], [0, 0, -11]]),
    "perspective": PERSPECTIVE,
    "perspective across the edge": PERSPECTIVE + np.array([[0, 0, 21], [0, 0, 9], [0, 0, 0]]),
}
OPENCV = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC, "nearest": cv2.INTER_NEAREST}
BORDERS = {
    "zeros": cv2.BORDER_CONSTANT,
    "border": cv2.BORDER_REPLICATE,
    "reflection": cv2.BORDER_REFLECT,
    "circular": cv2.BORDER_WRAP,
}
exact_opencv = pytest.mark.skipif(
    int(cv2.__version__.split(".")[0]) < 5, reason="OpenCV interpolates between 32 places of a pixel before version 5"
)


def opencv(image, matrix, mode, padding_mode, size=(20, 30)):
    """The image (H, W) by warpAffine or warpPerspective, with the matrix as it is."""
    function = cv2.warpAffine if len(matrix) == 2 else cv2.warpPerspective
    flags = OPENCV[mode] | cv2.WARP_INVERSE_MAP
    return torch.from_numpy(
        function(image.numpy(), matrix, size[::-1], flags=flags, borderMode=BORDERS[padding_mode], borderValue=0)
    )


def of_opencv(image, matrix, mode, padding_mode, impl):
    how = {"mode": mode, "padding_mode": padding_mode, "antialias": False, "align_corners": True, "impl": impl}
    # OpenCV's BORDER_REFLECT repeats the edge's pixel, as ours does without align_corners: half a pixel further.
    if padding_mode == "reflection":
        shift = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
        full = matrix if len(matrix) == 3 else np.vstack([matrix, [0, 0, 1]])
        matrix, how["align_corners"] = shift @ full @ np.linalg.inv(shift), False
    return warp(image.double()[None], torch.from_numpy(matrix), (20, 30), **how)[0]


@exact_opencv
@pytest.mark.parametrize("padding_mode", BORDERS)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", MATRICES)
def test_opencv(impl, name, mode, padding_mode, generator):
    """float32: positions of up to 50 are rounded to 4e-6, and the image changes by up to 1 from pixel to pixel."""
    image = rand(40, 50, generator=generator).float()
    theirs = opencv(image, MATRICES[name], mode, padding_mode)
    same(of_opencv(image, MATRICES[name], mode, padding_mode, impl), theirs.double(), atol=2e-5)


@pytest.mark.parametrize("name", MATRICES)
def test_opencv_in_fixed_point(impl, name, generator):
    """Its float64 is interpolated between 32 places of a pixel in every version."""
    image = rand(40, 50, generator=generator)
    error = (of_opencv(image, MATRICES[name], "bilinear", "zeros", impl)
             - opencv(image, MATRICES[name], "bilinear", "zeros")).abs().max()  # fmt: skip
    # An image of values in [0, 1] changes by up to 1 along each axis.
    assert 1e-4 < error <= 2 * FIXED_POINT


@pytest.mark.parametrize("name", MATRICES)
def test_opencv_nearest(impl, name, generator):
    """But where a position lies on the edge of two pixels, as near as OpenCV's fixed point can tell."""
    image = rand(40, 50, generator=generator).float()
    theirs = opencv(image, MATRICES[name], "nearest", "zeros")
    ours = of_opencv(image, MATRICES[name], "nearest", "zeros", impl)
    full = MATRICES[name] if len(MATRICES[name]) == 3 else np.vstack([MATRICES[name], [0, 0, 1]])
    place = warp_points(centres_of((20, 30), True), torch.from_numpy(full)).unflatten(0, (20, 30))
    near = ((place + 0.5 - (place + 0.5).round()).abs() <= 2 * FIXED_POINT).any(-1)
    assert near.float().mean() < 0.15
    same(ours[~near], theirs[~near].double(), atol=1e-7)


@exact_opencv
@pytest.mark.parametrize("name", MATRICES)
def test_opencv_of_bytes(impl, name, generator):
    """It rounds to whole numbers, and ties its own way."""
    image = (rand(40, 50, generator=generator) * 255).round().to(torch.uint8)
    theirs = opencv(image, MATRICES[name], "bilinear", "border")
    how = {"antialias": False, "align_corners": True, "impl": impl}
    ours = warp(image[None], torch.from_numpy(MATRICES[name]), (20, 30), **how)[0]
    assert ours.dtype == torch.float32
    assert (ours - theirs).abs().max() <= 0.5 + 255 * 2e-5


def test_opencv_of_a_rotated_rectangle(impl, generator):
    """What its users write: corners by boxPoints, their homography, warpPerspective."""
    image = rand(40, 50, generator=generator).float()
    centre, sides, angle = (26.0, 19.0), (20.0, 12.0), 33.0
    corners = cv2.boxPoints((centre, sides, angle))
    # With 0 < angle < 90 these begin at the bottom left of the box and go on clockwise.
    source = np.roll(corners, -1, axis=0)
    inner = np.array([[0, 0], [30, 0], [30, 18], [0, 18]], dtype=np.float32)
    # OpenCV's pixels have their centres at integers, so that corners of boxes are half a pixel less.
    matrix = cv2.getPerspectiveTransform(source - 0.5, inner - 0.5)
    theirs = cv2.warpPerspective(image.numpy(), matrix, (30, 18), flags=cv2.INTER_LINEAR)
    box = torch.tensor([*centre, *sides, angle])
    ours = crop_rotated(image[None], box, (18, 30), clockwise=True, antialias=False, impl=impl)[0]
    assert np.abs(ours.numpy() - theirs).max() < (2e-4 if int(cv2.__version__.split(".")[0]) >= 5 else 2 * FIXED_POINT)


def test_opencv_of_a_rectangle_as_it_is_unpacked(impl, generator):
    """As the page has it: its numbers are those of centres of pixels, which is `align_corners=True`."""
    image = rand(40, 50, generator=generator).float()
    points = cv2.boxPoints(((26.3, 19.2), (20.4, 12.6), 33.0))
    found = cv2.minAreaRect(points)
    source = np.roll(cv2.boxPoints(found), -1, axis=0)
    (cx, cy), (w, h), a = found
    size = (round(h) + 1, round(w) + 1)
    inner = np.array([[0, 0], [size[1] - 1, 0], [size[1] - 1, size[0] - 1], [0, size[0] - 1]], dtype=np.float32)
    theirs = cv2.warpPerspective(image.numpy(), cv2.getPerspectiveTransform(source, inner), size[::-1])
    how = {"clockwise": True, "antialias": False, "impl": impl}
    ours, beside = (
        crop_rotated(image[None], torch.tensor([cx, cy, w, h, a]), size, align_corners=c, **how)[0].numpy()
        for c in (True, False)
    )
    assert np.abs(ours - theirs).max() < (2e-4 if int(cv2.__version__.split(".")[0]) >= 5 else 2 * FIXED_POINT)
    assert np.abs(beside - theirs).mean() > 0.05


# --- kornia -----------------------------------------------------------------------------------------------------------


def homogeneous(theta):
    return torch.cat([theta, torch.tensor([[[0.0, 0.0, 1.0]]], dtype=f64).expand(len(theta), 1, 3)], 1)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_kornia_warp_perspective(impl, mode, padding_mode, align_corners, generator):
    """Its matrices go from the image to the output, and number the centres of pixels whatever align_corners is."""
    images = rand(10, 2, *SHAPE, generator=generator)
    quads = some_quads(10, generator) + torch.tensor([2.0, 1.0])
    matrix = diffcrop.quads_to_matrix(quads, SIZE, align_corners=True)
    how = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    theirs = kornia.warp_perspective(images, torch.linalg.inv(matrix), SIZE, **how)
    if not align_corners:  # which says only where its reflection mirrors
        shift = torch.tensor([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]], dtype=f64)
        matrix = shift @ matrix @ torch.linalg.inv(shift)
    ours = warp(images, matrix, SIZE, antialias=False, impl=impl, **how)
    if mode == "nearest":
        assert (ours == theirs).float().mean() > 0.999
    else:
        same(ours, theirs, atol=1e-10)


@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
def test_kornia_warp_affine_and_its_gradients(impl, padding_mode, generator):
    images, cotangent = rand(10, 2, *SHAPE, generator=generator), rand(10, 2, *SIZE, generator=generator) - 0.5
    matrices = torch.eye(2, 3, dtype=f64) + (rand(10, 2, 3, generator=generator) - 0.5) * torch.tensor([1, 1, 8])
    results = []
    for function in (
        lambda i, m: kornia.warp_affine(i, m, SIZE, padding_mode=padding_mode),
        lambda i, m: warp(
            i, torch.linalg.inv(homogeneous(m)), SIZE, antialias=False, padding_mode=padding_mode, align_corners=True,
            impl=impl,
        ),
    ):  # fmt: skip
        inputs = images.clone().requires_grad_(), matrices.clone().requires_grad_()
        value = function(*inputs)
        results.append((value.detach(), *torch.autograd.grad(value, inputs, cotangent)))
    for expected, found in zip(*results, strict=True):
        same(found, expected, atol=1e-10)


@pytest.mark.parametrize("align_corners", [False, True])
def test_kornia_crop_and_resize(impl, align_corners, generator):
    """Its corners are the centres of the output's corner pixels whatever align_corners is."""
    images = rand(10, 2, *SHAPE, generator=generator)
    quads = some_quads(10, generator) + torch.tensor([2.0, 1.0])
    theirs = kornia.crop_and_resize(images, quads, SIZE, align_corners=align_corners)
    ours = crop_quad(images, quads, SIZE, antialias=False, padding_mode="zeros", align_corners=True, impl=impl)
    same(ours, theirs, atol=1e-9)


def test_kornia_crop_by_boxes(impl, generator):
    images = rand(10, 2, *SHAPE, generator=generator)
    quads = some_quads(10, generator) + torch.tensor([2.0, 1.0])
    h, w = SIZE
    target = torch.tensor([[0, 0], [w - 1, 0], [w - 1, h - 1], [0, h - 1]], dtype=f64).expand(10, 4, 2)
    theirs = kornia.crop_by_boxes(images, quads, target)
    ours = crop_quad(images, quads, SIZE, antialias=False, padding_mode="zeros", align_corners=True, impl=impl)
    same(ours, theirs, atol=1e-9)
