"""Which module may import which, and that what is documented is what is there."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import diffcrop

PACKAGE = Path(diffcrop.__file__).parent
PUBLIC = [name for name in diffcrop.__all__ if callable(getattr(diffcrop, name))]
MODULES = {"diffcrop." + name: importlib.import_module("diffcrop." + name) for name in ("nn", "_api.crop")} | {
    "diffcrop": diffcrop
}

# Who may see whom: a name covers its submodules. Whoever is not named here may see no module of the package.
ARROWS = {
    "__init__": {"_api", "compat", "nn", "search"},
    "_api": {
        "_api",
        "_bounding",
        "_check",
        "_check_crop",
        "_check_normal",
        "_check_roi",
        "_boxes",
        "_normal",
        "_ops",
        "_ops_list",
        "_check_paste",
        "_ops_paste",
        "_options",
        "_sharding",
        "_context",
        "_check_warp",
        "_homography",
        "_ops_warp",
    },
    "_bounding": {"_boxes"},
    "_check": {"_boxes", "_context"},
    "_check_crop": {"_check", "_filters", "_options", "_context"},
    "_check_normal": {"_check", "_check_crop", "_normal", "_context"},
    "_check_paste": {"_check", "_check_crop", "_context"},
    "_ops_paste": {"_autograd", "_derivative", "_flops", "_impl.pasting", "_ops", "_options", "_context"},
    "_ops_list": {"_autograd", "_flops", "_ops", "_options", "_context"},
    "_check_roi": {"_check", "_check_crop", "_context"},
    "_ops": {"_autograd", "_bins", "_flops", "_impl", "_normal", "_options", "_context"},
    "_check_warp": {"_check", "_check_crop", "_filters", "_homography", "_options", "_context"},
    "_homography": {"_boxes"},
    "_ops_warp": {"_autograd", "_impl", "_ops", "_options", "_pyramid", "_context"},
    "_autograd": {"_context"},
    "_pyramid": {"_options"},
    "_impl.warp": {"_derivative", "_filters", "_options", "_context"},
    "_derivative": {"_context"},
    "_impl.reference": {"_axis", "_derivative", "_lattice", "_filters", "_normal", "_options", "_sharding", "_context"},
    "_impl.pasting": {"_axis", "_filters", "_options", "_context"},
    "_sharding": {"_context"},
    "_impl.cpu": set(),
    "_impl.triton": {"_impl.triton"},
    "_impl.triton.launch": {"_impl.triton", "_normal", "_options"},
    "_impl.triton.config": {"_filters", "_options"},
    "_impl.triton.plan": {"_impl.triton.filters", "_impl.triton.config"},
    "_impl.triton.filters": {"_filters"},
    "_impl.triton.resample": {"_impl.triton.config"},
    "_flops": {"_filters", "_normal"},
    "_axis": {"_bins", "_filters", "_lattice", "_options"},
    "_lattice": {"_filters", "_context"},
    "_bins": {"_filters"},
    "_context": set(),
    # The public API, errors, which have one wording, and how tags of boxes are read.
    "nn": {"public", "_check", "_nn_roi"},
    "_nn_roi": {"public", "_bounding", "_check", "_check_crop", "_check_roi"},
    "search": {"public", "_bounding", "_check", "search"},
    "compat": {"public", "_bounding", "_check", "_check_crop", "_check_warp", "compat"},
    "cli": {"public", "cli"},
    "__main__": {"cli"},
    # Written by the build: what it found.
    "_build_info": set(),
}
LEAVES = {"_boxes", "_context", "_filters", "_normal", "_options", "_impl", "_impl.cpu"}
# Only these may know torch's operators, and only this one the compiled library.
FACES = {"_ops", "_ops_list", "_ops_paste", "_ops_warp", "_flops", "_impl.cpu", "_sharding"}


def sources():
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def imported(tree, module, package):
    """The modules of the package that a source imports, anywhere in it, as names below `diffcrop`; "" is itself."""
    known = sources()
    found = set()

    def add(name):
        if name == "diffcrop" or name.startswith("diffcrop."):
            found.add(name[len("diffcrop") :].lstrip("."))

    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                add(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = ["diffcrop", *([] if module == "__init__" else module.split("."))]
                if not package:
                    parts.pop()
                parts = parts[: len(parts) - (node.level - 1)]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            for alias in node.names:
                below = f"{base}.{alias.name}".removeprefix("diffcrop.")
                submodule = below in known or below + ".__init__" in known
                add(f"{base}.{alias.name}" if submodule or base == "diffcrop" else base)
    return found


def allowed(module):
    """The arrows of the nearest name that has some."""
    while module not in ARROWS and "." in module:
        module = module.rpartition(".")[0]
    return ARROWS.get(module, set())


def covers(names, target):
    return any(target == name or target.startswith(name + ".") for name in names)


def forbidden(module, tree, package):
    """The imports that no arrow permits."""
    names = allowed(module)
    wrong = set()
    for target in imported(tree, module, package):
        if "public" in names and (target in ("", *diffcrop.__all__)):
            continue
        if not covers(names - {"public"}, target):
            wrong.add(target or "diffcrop")
    return wrong


@pytest.mark.parametrize("module", sorted(sources()))
def test_arrows(module):
    path = sources()[module]
    assert forbidden(module, ast.parse(path.read_text()), path.name == "__init__.py") == set()


@pytest.mark.parametrize(("module", "line", "wrong"), [
    ("_impl.reference", "from diffcrop._impl import cpu", {"_impl.cpu"}),
    ("_impl.reference", "from .cpu import load", {"_impl.cpu"}),
    ("_impl.reference", "from diffcrop import _ops", {"_ops"}),
    ("_impl.cpu", "from .._filters import get", {"_filters"}),
    ("_impl.triton.launch", "from diffcrop._impl import cpu", {"_impl.cpu"}),
    ("_impl.triton.resample", "from .plan import forward_runs", {"_impl.triton.plan"}),
    ("_filters", "from ._axis import weights", {"_axis"}),
    ("_check", "from . import _ops", {"_ops"}),
    ("_axis", "from ._impl.reference import crop", {"_impl.reference"}),
    ("nn", "from ._api.crop import crop", {"_api.crop"}),
    ("nn", "from diffcrop import _boxes", {"_boxes"}),
    ("nn", "from diffcrop import crop", set()),
    ("nn", "import diffcrop", set()),
    ("cli.crop", "from diffcrop.cli.boxes import parse_box", set()),
    ("cli.crop", "import diffcrop._ops", {"_ops"}),
    ("cli.crop", "def f():\n    from diffcrop._ops import crop", {"_ops"}),
    ("_api.crop", "from diffcrop._impl import reference", {"_impl.reference"}),
    ("_api.crop", "import diffcrop", {"diffcrop"}),
])  # fmt: skip
def test_a_forbidden_arrow_is_seen(module, line, wrong):
    assert forbidden(module, ast.parse(line), False) == wrong


def test_every_module_has_its_arrows():
    """A new module must be given its place before it can import anything; a name that is gone leaves the table."""
    known = set(sources())
    for module in known:
        assert module in LEAVES or allowed(module) or module == "_build_info", f"{module} has no place in ARROWS"
    gone = {name for name in ARROWS if name not in known and not any(k.startswith(name + ".") for k in known)}
    assert gone <= {"_build_info"}


def test_implementations_are_seen_by_the_operators_alone():
    for module, path in sources().items():
        targets = imported(ast.parse(path.read_text()), module, path.name == "__init__.py")
        if covers({"_impl"}, module):
            own = ".".join(module.split(".")[:2])  # a folder's files see one another
            assert not any(covers({"_impl"}, t) and not covers({own}, t) for t in targets), module
        elif any(covers({"_impl"}, t) for t in targets):
            assert module in ("_ops", "_ops_paste", "_ops_warp")


@pytest.mark.parametrize("module", sorted(sources()))
def test_torch_operators_have_one_face(module):
    """`torch.ops.diffcrop` and `torch.library` appear where the operators are defined and loaded, nowhere else."""
    text = sources()[module].read_text()
    assert module in FACES or not re.search(r"torch\.(ops|library)\b", text)


@pytest.mark.parametrize("module", sorted(sources()))
def test_no_asserts(module):
    """They vanish under -O: user errors are exceptions, and everything else is a test."""
    assert not [n.lineno for n in ast.walk(ast.parse(sources()[module].read_text())) if isinstance(n, ast.Assert)]


# --- what is documented -----------------------------------------------------------------------------------------------


def classes_and_methods():
    """Public callables, and the public methods that they define themselves."""
    for name in PUBLIC:
        yield name, getattr(diffcrop, name)
    for name in diffcrop.nn.__all__:
        module = getattr(diffcrop.nn, name)
        yield f"nn.{name}", module
        for method, function in vars(module).items():
            if inspect.isfunction(function) and not method.startswith("_"):
                yield f"nn.{name}.{method}", function
    for name in diffcrop.compat.__all__:
        peer = getattr(diffcrop.compat, name)
        for function in peer.__all__:
            yield f"compat.{name}.{function}", getattr(peer, function)


@pytest.mark.parametrize(("name", "thing"), list(classes_and_methods()), ids=lambda v: v if isinstance(v, str) else "")
def test_public_names_have_docstrings(name, thing):
    text = inspect.getdoc(thing)
    assert text
    assert len(text.split("\n")[0]) > 10
    # A NamedTuple would inherit one, or be given its signature.
    assert not text.startswith(name.split(".")[-1] + "(")


def test_all_is_sorted_and_there():
    assert diffcrop.__all__ == sorted(diffcrop.__all__)
    for name in diffcrop.__all__:
        assert hasattr(diffcrop, name)
    assert diffcrop.__doc__


def examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = ["diffcrop", *(f"diffcrop.{m.name}" for m in pkgutil.iter_modules(diffcrop.__path__))]
    names += [
        f"diffcrop._api.{m.name}" for m in pkgutil.iter_modules(importlib.import_module("diffcrop._api").__path__)
    ]
    for package in (diffcrop.search, diffcrop.compat):
        names += [f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__)]
    for name in names:
        if name.split(".")[-1] in ("__main__", "_C", "cli"):
            continue
        for test in finder.find(importlib.import_module(name)):
            if test.examples:
                yield pytest.param(test, id=test.name)


@pytest.mark.parametrize("example", list(examples()))
def test_examples_run(example):
    said = []
    failures, tried = doctest.DocTestRunner(optionflags=doctest.FAIL_FAST).run(example, out=said.append)
    assert tried
    assert not failures, "".join(said)


RECORDS = {"CropWithJacobian", "FittedBoxes", "Location", "NormalEquations", "Pasted", "WarpWithJacobian"}


COMPAT = [name for name, _ in classes_and_methods() if name.startswith("compat.")]


# Every function of the package that a user calls has an example, bar those that only answer a question.
@pytest.mark.parametrize("name", [n for n in PUBLIC if n not in RECORDS | {"simd_level"}] + ["nn.Crop", *COMPAT])
def test_public_functions_have_an_example(name):
    parts = [case.values[0].name.split(".")[1:] for case in examples()]
    # Which module of these packages a name is in is nobody's business.
    assert name in {".".join(p[2:] if p[:1] in (["_api"], ["search"]) else p) for p in parts}


def documented(text):
    """The names below "Args:" and what stands behind each."""
    if "Args:" not in text:
        return {}
    block = re.split(r"\n(?=\S)", inspect.cleandoc(text).split("Args:\n", 1)[1])[0]
    entries = re.split(r"\n?^ {4}(\w+): ", block, flags=re.MULTILINE)[1:]
    return dict(zip(entries[::2], entries[1::2], strict=True))


WITH_ARGUMENTS = [(name, thing) for name, thing in classes_and_methods() if "Args:" in (inspect.getdoc(thing) or "")]


@pytest.mark.parametrize(("name", "thing"), WITH_ARGUMENTS, ids=lambda v: v if isinstance(v, str) else "")
def test_arguments_are_documented(name, thing):
    """All of them, in the order of the signature, and none that is not there."""
    parameters = [p for p in inspect.signature(thing).parameters if p != "self"]
    assert list(documented(inspect.getdoc(thing))) == parameters


@pytest.mark.parametrize(("name", "thing"), WITH_ARGUMENTS, ids=lambda v: v if isinstance(v, str) else "")
def test_documented_defaults_are_those_of_the_signature(name, thing):
    """Where an argument's text says "default 0.5" or names a choice "(the default)", the signature says so too."""
    parameters = inspect.signature(thing).parameters
    for argument, text in documented(inspect.getdoc(thing)).items():
        for said in re.findall(r"[Dd]efault:? ``?([^`]+)``?|[Dd]efault ([0-9.]+[0-9])", text):
            value = ast.literal_eval(said[0] or said[1])
            default = parameters[argument].default
            assert value == default or (default is None and argument == "sigma" and value == sigma_default())


def sigma_default():
    from diffcrop._options import Options

    return Options().parameter


def test_sigma_is_one_half_everywhere():
    """The documented default, that of the options and the one that the check puts in."""
    from diffcrop import _check_crop, _filters

    assert documented(diffcrop.crop.__doc__)["sigma"].count("default 0.5") == 1
    assert sigma_default() == _filters.DEFAULT_SIGMA == 0.5
    assert _check_crop.options("gaussian", True, "border", 0.0, None, False).parameter == 0.5


def test_the_least_sigma_is_documented():
    from diffcrop import _filters

    assert f"at least {_filters.MIN_SIGMA}" in documented(diffcrop.crop.__doc__)["sigma"]


def test_choices_are_documented():
    """Every mode, padding, format and kind of coordinates, quoted, in the text of its argument."""
    from diffcrop import _boxes, _filters, _options

    text = documented(diffcrop.crop.__doc__)
    for argument, choices in {
        "mode": _filters.MODES,
        "padding_mode": _options.PADDING_MODES,
        "box_format": _boxes.FORMATS,
        "coords": _boxes.COORDS,
        "impl": tuple(diffcrop.implementations()),
    }.items():
        said = re.findall(r'``"([^"=]+)"``', text[argument])
        assert set(choices) <= set(said), argument
        default = inspect.signature(diffcrop.crop).parameters[argument].default
        assert default is None or default in choices


SHARING = (
    diffcrop.crop,
    diffcrop.crop_with_jacobian,
    diffcrop.normal_equations,
    diffcrop.crop_rotated,
    diffcrop.crop_quad,
    diffcrop.warp,
    diffcrop.coverage,
    diffcrop.nn.Crop.__init__,
)


@pytest.mark.parametrize("function", SHARING[1:], ids=lambda f: f.__qualname__)
def test_shared_parameters_are_alike(function):
    """Name, kind, default and order of what `crop` has too."""
    model, mine = (inspect.signature(f).parameters for f in (diffcrop.crop, function))
    shared = [name for name in mine if name in model]
    assert len(shared) >= 8
    for name in shared:
        assert mine[name].default == model[name].default, name
        assert mine[name].kind == model[name].kind, name
    options = [name for name in shared if mine[name].kind is inspect.Parameter.KEYWORD_ONLY]
    assert options == [name for name in model if name in options]


def test_options_are_keywords():
    for function in SHARING:
        for name, parameter in inspect.signature(function).parameters.items():
            with_default = parameter.default is not inspect.Parameter.empty
            assert with_default == (parameter.kind is inspect.Parameter.KEYWORD_ONLY), name


def test_the_internal_defaults_are_the_public_ones():
    from diffcrop._options import Options

    model = inspect.signature(diffcrop.crop).parameters
    for name, value in Options()._asdict().items():
        if name == "parameter":
            assert model["sigma"].default is None
        elif name == "fill":
            assert value == (model[name].default,)
        else:
            assert value == model[name].default, name
