"""The benchmark suite: its cases and targets, what its gate lets pass, and the bytes it counts."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from benchmarks import gate, problem, traffic
from benchmarks.cases import COPY, OURS, PASSES, TABLE
from benchmarks.peers import PEERS
from benchmarks.peers.sampling import RECIPE
from benchmarks.suites import CASES, GROWTH, SUITES, shrunk
from diffcrop import _axis
from diffcrop._options import Options

ROOT = Path(__file__).resolve().parents[1]
# They take seconds to compile.
COMPILERS = ("compiled", "jax")
EVERYTHING = (*SUITES["full"], *SUITES["axes"])


def entrants(case, names):
    for name in (OURS, *names):
        peer = PEERS[name]
        if peer.missing() is None and peer.refuses(case) is None:
            yield peer


def verdicts(case, peer, passes=PASSES):
    made = problem.make(shrunk(case))
    wanted = gate.expected(made, peer.meaning(made))
    for pass_ in case.passes:
        if pass_ in peer.passes and pass_ in passes:
            prepared = peer.prepare(made, pass_)
            yield pass_, gate.compare(made, peer, pass_, prepared.outcome(prepared.call()), wanted)


# --- data -------------------------------------------------------------------------------------------------------------


def test_names_are_unique():
    everything = [*EVERYTHING, *SUITES["warp"], *SUITES["roi"], *SUITES["paste"], *GROWTH]
    assert len({case.name for case in everything}) == len(everything) == len(CASES)
    assert set(TABLE) <= set(SUITES["full"])


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_a_case_names_peers_that_exist_and_targets_that_can_be_measured(case):
    assert set(case.peers) <= set(PEERS)
    assert set(case.rivals()) <= set(case.peers)
    for target in case.targets:
        assert target.pass_ in case.passes
        if target.against != COPY:
            assert (target.against_pass or target.pass_) in PEERS[target.against].passes
            assert PEERS[target.against].refuses(case) is None


def test_the_targets_are_complete():
    """The promises, row by row: (pass, peer, least), but for the threads."""
    promised = {
        **{name: {("forward", "recipe"), ("boxes", "recipe"), ("both", "recipe")} for name in "ABCDE"},
        "F": {("forward", "packed"), ("boxes", "packed"), ("both", "packed")},
        **{f"G-{c}-{m}": {("forward", "slices"), ("both", "slices")} for c in "ABCD" for m in ("bilinear", "bicubic")},
        "H-D-bilinear": {("forward", "pillow")},
        "H-4096-bilinear": {("forward", "pillow")},
        "H-D-area": {("forward", "opencv area")},
        "H-4096-area": {("forward", "opencv area")},
        **{f"I-A-{how}": {("forward", "plain")} for how in ("channels_last", "uint8", "bfloat16")},
        "I-C-channels_last": {("forward", "plain")},
    }  # fmt: skip
    found = {case.name: {(t.pass_, t.against) for t in case.targets if t.against != COPY} for case in TABLE}
    assert found == promised
    shares = {case.name for case in TABLE if any(t.against == COPY for t in case.targets)}
    assert shares == {"A", "D", "H-D-bilinear", "H-D-area", "H-4096-bilinear", "H-4096-area"}


def test_a_case_is_the_same_every_time_and_its_boxes_fit():
    for case in map(shrunk, EVERYTHING):
        made, again = problem.make(case), problem.make(case)
        assert torch.equal(made.images, again.images)
        assert torch.equal(made.boxes, again.boxes)
        lo, hi = made.boxes.split(case.axes, 1)
        assert bool((lo >= 0).all())
        assert bool((hi <= torch.tensor(case.images[:1:-1])).all())
        sides = hi - lo
        if case.pixels is None:  # moved off the kinks by less than a pixel
            assert bool((sides / case.images[-1] >= case.share[0] - 1 / case.images[-1]).all())
        assert case.is_whole() or len(set(map(tuple, made.boxes.tolist()))) == len(made.boxes)


def test_boxes_keep_off_kinks():
    """Otherwise the box gradient of a peer in float32 would be that of the other side of some."""
    for name in ("A", "B", "D", "G-D-bilinear", "H-4096-bilinear", "H-D-area"):
        case = dataclasses.replace(CASES[name], images=(1, 1, *CASES[name].images[2:]))
        for lo, hi, n in ((0, 2, 1), (1, 3, 0)):
            boxes = problem.make(case).boxes.double()
            distance = problem._kink_distance(boxes[:, lo], boxes[:, hi], case.size[n], case)
            assert float(distance.min()) >= problem.MARGIN


# --- the gate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [*EVERYTHING, *SUITES["warp"], *SUITES["paste"]], ids=lambda case: case.name)
def test_the_gate_is_green_for_every_peer(case):
    for peer in entrants(case, [name for name in case.peers if name not in COMPILERS]):
        for pass_, verdict in verdicts(case, peer):
            assert verdict.green, f"{peer.name}, {pass_}: {verdict}"


@pytest.mark.parametrize("case", [c for c in SUITES["warp"] if "warp kornia" in c.peers], ids=lambda case: case.name)
def test_peers_of_warps_agree_in_float64(case):
    """In float32 some of their positions fall on the other side of a kink, which hides what else may be wrong."""
    case = dataclasses.replace(case, dtype="float64")
    _, *peers = entrants(case, ["warp recipe", "warp kornia"])
    assert peers
    for peer in peers:
        for pass_, verdict in verdicts(case, peer):
            assert verdict.green, f"{peer.name}, {pass_}: {verdict}"
            assert max(verdict.tolerances.values()) < 1e-10


@pytest.mark.parametrize("case", ["A", "G-A-bicubic"])
def test_the_gate_is_green_for_jax(case):
    if PEERS["jax"].missing():
        pytest.skip(f"{PEERS['jax'].missing()}")
    assert all(verdict.green for _, verdict in verdicts(CASES[case], PEERS["jax"], ("both",)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "case"),
    [(n, c.name) for c in EVERYTHING for n in COMPILERS if n in c.peers and PEERS[n].refuses(c) is None],
)
def test_the_gate_is_green_for_those_that_compile(name, case):
    if PEERS[name].missing():
        pytest.skip(f"{PEERS[name].missing()}")
    for pass_, verdict in verdicts(CASES[case], PEERS[name]):
        assert verdict.green, f"{pass_}: {verdict}"


def reads_inside(made):
    """Whether every position lies between pixels of the image, so that paddings make no difference."""
    lo, hi = made.boxes.split(made.case.axes, 1)
    half = (hi - lo) / torch.tensor(made.case.size[::-1]) / 2
    return bool(((lo + half >= 0.5) & (hi - half <= torch.tensor(made.case.images[:1:-1]) - 0.5)).all())


@pytest.mark.parametrize("case", EVERYTHING, ids=lambda case: case.name)
def test_every_peer_is_asked_for_the_same_crop(case):
    """The gate holds a peer to its own terms; those must be the case's, but for slices, which are of whole pixels."""
    made = problem.make(shrunk(case))
    ours = gate.expected(made, PEERS[OURS].meaning(made)).outcome.value
    for peer in entrants(case, case.peers):
        meaning = peer.meaning(made)
        if meaning.sliced:
            assert float((meaning.boxes - made.boxes).abs().max()) <= 0.5
        elif meaning.options["padding_mode"] == case.padding_mode or reads_inside(made):
            theirs = gate.expected(made, meaning).outcome.value
            assert float((theirs - ours).abs().max()) <= 1e-4 * float(ours.abs().max()), peer.name


def spoiled(**changes):
    """The recipe with its outcome changed: functions of a tensor by field."""

    def prepare(made, pass_):
        prepared = RECIPE.prepare(made, pass_)

        def outcome(result):
            right = prepared.outcome(result)
            return dataclasses.replace(
                right, **{name: change(getattr(right, name)) for name, change in changes.items()}
            )

        return problem.Prepared(prepared.call, outcome)

    return dataclasses.replace(RECIPE, name="spoiled", prepare=prepare)


def shifted(made, pass_):
    """The recipe half a pixel off, as a wrong convention would make it."""
    return RECIPE.prepare(dataclasses.replace(made, boxes=made.boxes + 0.5), pass_)


@pytest.mark.parametrize("name", ["A", "F", "float64"])
def test_the_gate_is_red_half_a_pixel_off(name):
    for pass_, verdict in verdicts(CASES[name], dataclasses.replace(RECIPE, prepare=shifted)):
        assert not verdict.green, pass_
        assert all(verdict.errors[part] > 10 * verdict.tolerances[part] for part in verdict.errors)


@pytest.mark.parametrize(("changes", "said"), [
    ({"boxes": lambda t: -t}, "boxes"),
    ({"boxes": lambda t: t * torch.tensor([1.0, 1, 1, 1.01])}, "boxes"),
    ({"images": lambda t: t.roll(1, -1)}, "images"),
    ({"images": lambda t: t[:, :1]}, r"images: \(3, 1, 24, 24\)"),
    ({"value": lambda t: t + 0.01}, "value"),
    ({"value": lambda t: torch.where(t == t[1, 0, 0, 0], torch.nan, t)}, "not finite"),
])  # fmt: skip
def test_the_gate_is_red_for_one_wrong_part(changes, said):
    ((_, verdict),) = verdicts(CASES["A"], spoiled(**changes), ("both",))
    assert not verdict.green
    wrong = [name for name, error in verdict.errors.items() if not error <= verdict.tolerances[name]]
    assert said in wrong or re.search(said, verdict.problem or "")


def test_tolerances_follow_the_precision():
    assert gate._precision(torch.float32) == (1.0, 0.0)
    assert gate._precision(torch.bfloat16) == (1.0, 2**-7)
    assert gate._precision(torch.float64) == (2**-29, 0.0)


# --- bytes that must move ---------------------------------------------------------------------------------------------

FILTERS = [(mode, antialias) for mode in ("bilinear", "bicubic", "lanczos3", "area") for antialias in (True, False)]


@pytest.mark.parametrize("padding_mode", ["zeros", "border", "renormalize"])
@pytest.mark.parametrize(("mode", "antialias"), [pair for pair in FILTERS if pair != ("area", False)])
def test_taps_are_the_weights_of_the_reference(mode, antialias, padding_mode):
    generator = torch.Generator().manual_seed(0)
    options = Options(mode=mode, antialias=antialias, padding_mode=padding_mode)
    fewer = 0
    for pixels, n in ((40, 3), (40, 7), (9, 12), (64, 64), (1, 2)):
        for _ in range(30):
            lo, hi = ((torch.rand(2, generator=generator, dtype=torch.float64) * 1.4 - 0.2) * pixels).sort().values
            want = (_axis.weights(lo, hi, n, pixels, options) != 0).any(0).numpy()
            got = traffic.taps(lo.item(), hi.item(), n, pixels, mode, antialias, padding_mode)
            assert (got == want).all(), (lo, hi, n, pixels)
            fewer += want.any() and not got[want.argmax() : pixels - want[::-1].argmax()].all()
    assert (fewer > 0) == (not antialias)  # without antialiasing a reduction leaves rows out


def test_taps_at_whole_pixels():
    """Where positions lie on pixels the neighbours have no weight."""
    assert traffic.taps(2, 5, 3, 8, "bilinear", False, "zeros").nonzero()[0].tolist() == [2, 3, 4]
    assert traffic.taps(2, 6, 2, 8, "area", True, "border").nonzero()[0].tolist() == [2, 3, 4, 5]
    assert traffic.taps(0, 8, 2, 8, "bilinear", False, "zeros").nonzero()[0].tolist() == [1, 2, 5, 6]


@pytest.mark.parametrize(
    "case",
    [
        dataclasses.replace(CASES["F"], images=(1, 3, 70, 50), boxes=4, share=(0.3, 0.6), size=(4, 5)),
        dataclasses.replace(CASES["I-A-channels_last"], images=(2, 5, 21, 33), size=(6, 3)),
        dataclasses.replace(CASES["I-A-uint8"], images=(2, 2, 40, 200), size=(6, 3)),
        dataclasses.replace(CASES["float64"], images=(2, 1, 20, 19), size=(2, 3), antialias=True),
    ],
    ids=lambda case: case.name,
)
def test_touched_bytes_line_by_line(case):
    made = problem.make(case)
    _, channels, height, width = case.images
    item = made.images.element_size()
    options = Options(**made.options())
    lines = set()
    for (x0, y0, x1, y1), image in zip(made.boxes.double(), made.owner.tolist(), strict=True):
        rows = (_axis.weights(y0, y1, case.size[0], height, options) != 0).any(0).nonzero().flatten().tolist()
        columns = (_axis.weights(x0, x1, case.size[1], width, options) != 0).any(0).nonzero().flatten().tolist()
        for row in rows:
            for column in columns:
                for channel in range(channels):
                    plane, within = (0, column * channels + channel) if case.channels_last else (channel, column)
                    lines.add((image, plane, row, within * item // traffic.LINE))
    length = width * item * (channels if case.channels_last else 1)
    want = sum(min(traffic.LINE, length - line * traffic.LINE) for _, _, _, line in lines)
    assert traffic.touched_bytes(made) == want
    assert want < made.images.nbytes


def test_touched_bytes_of_volumes_and_signals():
    """A signal is an image of one row; each plane of a volume that is read is an image."""
    made = problem.make(dataclasses.replace(CASES["signals"], images=(2, 3, 200), size=(7,)))
    boxes = torch.stack([made.boxes[:, 0], 0 * made.boxes[:, 0], made.boxes[:, 1], 0 * made.boxes[:, 0] + 1], 1)
    as_image = dataclasses.replace(made.case, images=(2, 3, 1, 200), size=(1, 7))
    lifted = dataclasses.replace(made, case=as_image, images=made.images[:, :, None], boxes=boxes)
    assert traffic.touched_bytes(made) == traffic.touched_bytes(lifted) < made.images.nbytes
    made = problem.make(dataclasses.replace(CASES["volume"], images=(1, 2, 9, 30, 50), size=(2, 3, 4)))
    x0, y0, z0, x1, y1, z1 = made.boxes[0].tolist()
    planes = int(traffic.taps(z0, z1, 2, 9, "bilinear", False, "zeros").sum())
    plane = dataclasses.replace(made.case, images=(1, 2, 30, 50), size=(3, 4))
    boxes = torch.tensor([[x0, y0, x1, y1]])
    flat = dataclasses.replace(made, case=plane, images=made.images[:, :, 0], boxes=boxes)
    assert traffic.touched_bytes(made) == planes * traffic.touched_bytes(flat)
    assert 1 < planes < 9


def test_bytes_of_a_pass():
    made = problem.make(shrunk(CASES["A"]))
    moved, crops = traffic.bytes_moved(made), made.cotangent.nbytes
    touched = traffic.touched_bytes(made)
    assert moved["forward"] == touched + crops
    assert moved["boxes"] == touched + 2 * crops + made.boxes.nbytes
    assert moved["images"] == touched + 2 * crops + made.images.nbytes
    assert moved["both"] == moved["images"] + made.boxes.nbytes
