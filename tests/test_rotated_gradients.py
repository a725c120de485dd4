"""Derivatives of `crop_rotated`, `crop_quad` and `warp` by everything that is real, to third order."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from diffcrop import crop_quad, crop_rotated, rotated_to_matrix, warp
from diffcrop._options import WARP_MODES, WARP_PADDING_MODES
from helpers import options, rand
from test_placement import some_boxes, some_quads
from test_rotated import IMPLEMENTATIONS, ramps, same

f64 = torch.float64
SHAPE, SIZE = (6, 7), (3, 4)
MODES = [(m, a) for m in WARP_MODES if m != "nearest" for a in (True, False) if a or m != "area"]
GRID = list(itertools.product(MODES, WARP_PADDING_MODES, (False, True)))
FUNCTIONS = (crop_rotated, crop_quad, warp)


@pytest.fixture(params=IMPLEMENTATIONS)
def impl(request):
    return request.param


def example(function, generator, which, mode="bicubic", antialias=True, padding_mode="zeros", align_corners=False):
    """A function of images and where, two images and three places, in coordinates that take turns."""
    (coords, scale) = [("pixel", 1.0), ("unit", 0.1), ("normalized", 0.2)][which % 3]
    images, index = rand(2, 2, *SHAPE, generator=generator), torch.tensor([1, 0, 1])
    keywords = options(mode, antialias, padding_mode, align_corners=align_corners, coords=coords, batch_index=index)
    if function is crop_rotated:
        keywords |= {"clockwise": which % 2 == 0, "angle_unit": ("degrees", "radians")[which % 4 // 2]}
        place = some_boxes(3, generator) * torch.tensor([0.5, 0.6, 0.5, 0.5, 1])
        place[:, 2:4] += place[:, 2:4].sign()
        place = torch.cat([place[:, :4] * scale, place[:, 4:]], 1)
        if keywords["angle_unit"] == "radians":
            place[:, 4] *= math.pi / 180
    elif function is crop_quad:
        # Filters reach over three outputs beyond a crop, which here is nearly its size: not as far as the horizon.
        place = some_quads(3, generator, 1) * 0.5 * scale
    else:
        place = rotated_to_matrix(some_boxes(3, generator) * 0.5, SIZE)
        if coords != "pixel":
            place = (rand(3, 2, 3, generator=generator) - 0.5) * torch.tensor([2.0, 2.0, 1.0])
        if which % 2:
            bottom = torch.tensor([[0.02, -0.03, 1.0]], dtype=f64) + 0.01 * rand(3, 1, 3, generator=generator)
            place = torch.cat([place, bottom], 1)
    return lambda i, p, **more: function(i, p, SIZE, **keywords, **more), images, place


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("filter_", "padding_mode", "align_corners"), GRID)
def test_gradcheck(impl, function, filter_, padding_mode, align_corners, generator):
    which = GRID.index((filter_, padding_mode, align_corners))
    call, images, place = example(function, generator, which, *filter_, padding_mode, align_corners)
    inputs = images.requires_grad_(), place.requires_grad_()
    # Degrees are small steps, and matrices of unit coordinates large ones.
    assert gradcheck(lambda i, p: call(i, p, impl=impl), inputs, fast_mode=True, eps=1e-7, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("filter_", "padding_mode", "align_corners"), GRID[::7])
def test_gradgradcheck(impl, function, filter_, padding_mode, align_corners, generator):
    which = GRID.index((filter_, padding_mode, align_corners))
    call, images, place = example(function, generator, which, *filter_, padding_mode, align_corners)
    inputs = images.requires_grad_(), place.requires_grad_()
    assert gradgradcheck(lambda i, p: call(i, p, impl=impl), inputs, fast_mode=True, eps=1e-7, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_forward_mode(impl, function, generator):
    """Antialiased, along with the values: the number of samples is not differentiated."""
    call, images, place = example(function, generator, 0)
    inputs = images.requires_grad_(), place.requires_grad_()
    modes = {"check_forward_ad": True, "check_backward_ad": False}
    assert gradcheck(lambda i, p: call(i, p, impl=impl), inputs, fast_mode=True, atol=1e-5, **modes)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_transforms_agree(impl, function, generator):
    """Jacobians forward and backward, a Hessian by finite differences of a gradient, and maps over both arguments."""
    # In a transform no values are looked at, and all reductions and numbers of samples are made: minutes of them.
    call, images, place = example(function, generator, 1, antialias=False)

    def by_place(p):
        return call(images, p, impl=impl)

    backward, forward = jacrev(by_place)(place), jacfwd(by_place)(place)
    assert (backward != 0).any()
    same(forward, backward, atol=1e-10)
    weight = rand(*backward.shape[:4], generator=generator)

    def total(p):
        return (weight * by_place(p)).square().sum()

    direction, step = rand(*place.shape, generator=generator) * 0.1, 1e-6
    above, below = (grad(total)(place + sign * step * direction) for sign in (1, -1))
    expected = (above - below) / (2 * step)
    second = torch.tensordot(hessian(total)(place), direction, dims=place.ndim)
    same(second, expected, atol=1e-5)
    same(jvp(grad(total), (place,), (direction,))[1], second, atol=1e-9)
    third = jvp(lambda p: jvp(grad(total), (p,), (direction,))[1], (place,), (direction,))[1]
    assert third.isfinite().all()
    same(vmap(by_place)(torch.stack([place, place + 0.01])),
         torch.stack([by_place(place), by_place(place + 0.01)]), atol=1e-12)  # fmt: skip
    same(vmap(lambda i: call(i, place, impl=impl))(torch.stack([images, 2 * images])),
         torch.stack([by_place(place), 2 * by_place(place)]), atol=1e-12)  # fmt: skip


def test_the_derivative_by_each_number_is_what_it_means(impl):
    """Of a picture whose value is x, at a box that is turned by 30 degrees."""
    image = ramps((40, 40))
    box = torch.tensor([20.0, 18.0, 10.0, 6.0, 30.0], dtype=f64)
    jacobian = jacfwd(lambda b: crop_rotated(image, b, (3, 5), antialias=False, impl=impl))(box)
    cos, sin = math.cos(math.radians(30)), math.sin(math.radians(30))
    s = ((torch.arange(5, dtype=f64) + 0.5) / 5 - 0.5).expand(3, 5)
    t = ((torch.arange(3, dtype=f64) + 0.5) / 3 - 0.5)[:, None].expand(3, 5)
    turn = math.pi / 180
    x = torch.stack([torch.ones(3, 5), torch.zeros(3, 5), s * cos, t * sin, (-s * 10 * sin + t * 6 * cos) * turn], -1)
    y = torch.stack([torch.zeros(3, 5), torch.ones(3, 5), -s * sin, t * cos, (-s * 10 * cos - t * 6 * sin) * turn], -1)
    same(jacobian[0], x.double())
    same(jacobian[1], y.double())


def test_an_angle_is_found_by_descent(impl):
    """The gradient turns a box back, antialiased and at a reduction of 4."""
    torch.manual_seed(0)
    image = torch.nn.functional.interpolate(torch.rand(1, 1, 8, 8), (128, 128), mode="bicubic")[0]
    truth = torch.tensor([64.0, 60.0, 64.0, 48.0, 25.0])
    target = crop_rotated(image, truth, (12, 16), impl=impl)
    box = (truth + torch.tensor([3.0, -2.0, 5.0, -4.0, 10.0])).requires_grad_()
    optimizer = torch.optim.Adam([box], lr=0.5)
    for _ in range(80):
        optimizer.zero_grad()
        (crop_rotated(image, box, (12, 16), impl=impl) - target).square().mean().backward()
        optimizer.step()
    assert (box - truth).abs().max() < 0.5


@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradients_repeat(impl, function, generator):
    """To the bit, with one thread and with two."""
    call, images, place = example(function, generator, 0)
    images, place = images.float().requires_grad_(), place.requires_grad_()
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            value = call(images, place, impl=impl)
            results.append([value.detach(), *torch.autograd.grad(value.square().sum(), (images, place))])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_a_module_that_predicts_boxes_is_differentiated_per_sample(impl, generator):
    model = torch.nn.Linear(4, 5).double()
    with torch.no_grad():
        model.bias.copy_(torch.tensor([3.0, 3.0, 4.0, 4.0, 20.0]))
    parameters, picture = dict(model.named_parameters()), rand(1, *SHAPE, generator=generator)
    inputs = rand(3, 4, generator=generator)

    def loss(parameters, x):
        box = functional_call(model, parameters, x)
        return crop_rotated(picture, box, SIZE, antialias=False, impl=impl).square().sum()

    found = vmap(grad(loss), (None, 0))(parameters, inputs)
    for i, x in enumerate(inputs):
        model.zero_grad()
        loss(parameters, x).backward()
        for name, parameter in model.named_parameters():
            same(found[name][i], parameter.grad)
