"""What is installed, and what still works where the compiled library or the extras are not."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from diffcrop._impl import cpu

ROOT = Path(__file__).resolve().parents[1]
CROP = "diffcrop.crop(torch.rand(3, 8, 8), torch.tensor([0.0, 0.0, 8.0, 8.0]), 4)"


def fresh(code, *options, **variables):
    """Run code in a new process, which must succeed, and return the JSON that it prints last."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DIFFCROP_")}
    done = subprocess.run(
        [sys.executable, *options, "-c", code],
        env=kept | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def build_wheel(tree, out, **variables):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DIFFCROP_")}
    command = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-build-isolation", "--no-deps", "-w", out, tree]
    return subprocess.run(command, env=kept | variables, capture_output=True, text=True, timeout=600)


@pytest.fixture
def tree(tmp_path):
    """A copy of what the build reads, so that a build leaves nothing behind and may be broken."""
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("csrc", "src"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def unpacked(folder):
    """The files of the one wheel in a folder, its name, and what `cpu` says when the package is imported from it."""
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        names = archive.namelist()
    said = fresh(
        # The finder of an editable install comes before every path.
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'Redirecting' not in type(f).__name__]\n"
        f"sys.path.insert(0, {str(site)!r})\n"
        "import json; from diffcrop._impl import cpu\n"
        "print(json.dumps([cpu.__file__, cpu.reason(), cpu.simd_level(), cpu.build_info()]))"
    )
    assert said[0].startswith(str(site)), "the test looked at another diffcrop"
    return wheel.name, names, said[1:]


def test_the_library_is_loaded_here():
    info = cpu.build_info()
    if info["compiler"] is None and shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("there is no C++ compiler on this machine")
    said = fresh("import json; from diffcrop._impl import cpu; print(json.dumps([cpu.reason(), cpu.simd_level()]))")
    assert said[0] is None
    assert said[1] in ("avx512", "avx2", "default")
    flags = Path("/proc/cpuinfo")
    if platform.machine() == "x86_64" and flags.exists():
        words = set(flags.read_text().split())
        assert said[1] != "avx512" or "avx512f" in words
        assert said[1] == "default" or "avx2" in words


def test_the_library_is_bound_to_no_python_and_no_folder():
    path = cpu.library_path()
    if path is None:
        pytest.skip("the library was not built")
    content = path.read_bytes()
    assert b"simd_level" in content
    for foreign in (
        b"libpython",
        b"libtorch_python",
        b"PyObject",
        str(ROOT).encode(),
        str(Path(torch.__file__).parent).encode(),
    ):
        assert foreign not in content


def test_metadata():
    installed = importlib.metadata.distribution("diffcrop")
    tags = [line.split(": ")[1] for line in (installed.read_text("WHEEL") or "").splitlines() if line.startswith("Tag")]
    assert tags
    assert all(tag.startswith("py3-none-") for tag in tags)
    assert [need for need in installed.requires or [] if "extra ==" not in need] == ["torch>=2.10"]
    (command,) = installed.entry_points.select(group="console_scripts")
    assert (command.name, command.value) == ("diffcrop", "diffcrop.cli:main")


def test_without_the_library_the_first_crop_warns_and_the_import_does_not():
    count, category, text, filename = fresh(
        "import json, warnings, torch, diffcrop\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        f"    {CROP}\n"
        f"    {CROP}\n"
        "ours = [w for w in caught if 'diffcrop' in str(w.message)]\n"
        "print(json.dumps([len(ours), ours[0].category.__name__, str(ours[0].message), ours[0].filename]))",
        "-Werror",
        DIFFCROP_DISABLE_CPU="1",
    )
    assert count == 1
    assert category == "RuntimeWarning"
    assert "reference" in text
    assert "DIFFCROP_DISABLE_CPU" in text
    assert filename == "<string>", "the warning should blame the line of the user's own code"


def test_with_the_library_nothing_warns():
    if not cpu.available():
        pytest.skip("the library is not there")
    assert fresh(f"import torch, diffcrop; {CROP}; print('true')", "-Werror") is True


def test_torch_is_the_only_dependency():
    extras = ["typer", "rich", "PIL", "matplotlib", "cv2", "kornia", "torchvision", "hypothesis", "triton"]
    assert fresh(
        "import sys\n"
        # None in sys.modules makes an import of that name fail.
        f"sys.modules.update(dict.fromkeys({extras!r}))\n"
        f"import torch, diffcrop; {CROP}; print('true')"
    )


@pytest.mark.parametrize(("value", "disabled"), [("1", True), ("0", False), ("", False)])
def test_the_variable_that_disables_the_library(value, disabled, monkeypatch):
    monkeypatch.setenv("DIFFCROP_DISABLE_CPU", value)
    assert ("DIFFCROP_DISABLE_CPU" in (cpu._open() or "")) is disabled


def test_reason_not_built(monkeypatch):
    monkeypatch.setattr(cpu, "library_path", lambda: None)
    monkeypatch.setattr(cpu, "build_info", lambda: {"compiler": None, "torch": None, "reason": "no compiler was found"})
    assert cpu._open() == "no compiler was found"


def test_reason_never_installed(monkeypatch):
    monkeypatch.setattr(cpu, "library_path", lambda: None)
    monkeypatch.setitem(sys.modules, "diffcrop._build_info", None)
    assert "never installed" in cpu._open()


def test_reason_file_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "build_info", lambda: {"compiler": "GNU 12", "torch": "2.13.0", "reason": None})
    monkeypatch.setattr(cpu, "library_path", lambda: None)
    assert "is missing" in cpu._open()
    monkeypatch.setattr(cpu, "library_path", lambda: tmp_path / "_C.so")
    assert f"{tmp_path / '_C.so'} is missing" in cpu._open()


@pytest.mark.parametrize(("version", "cause"), [("2.9.1", "needs torch 2.10"), ("2.13.0", "Likely causes")])
def test_reason_cannot_be_loaded(version, cause, monkeypatch, tmp_path):
    broken = tmp_path / "_C.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(cpu, "library_path", lambda: broken)
    monkeypatch.setattr(torch, "__version__", version)
    text = cpu._open()
    assert f"{broken} could not be loaded" in text
    assert cause in text


def test_found_along_the_package_where_pythons_finder_does_not_look(monkeypatch):
    expected = cpu.library_path()
    if expected is None:
        pytest.skip("the library was not built")
    monkeypatch.setattr(cpu.importlib.util, "find_spec", lambda _: None)
    assert cpu.library_path() == expected


@pytest.mark.slow
def test_wheel(tree, tmp_path):
    done = build_wheel(tree, tmp_path / "dist")
    assert done.returncode == 0, done.stdout + done.stderr
    name, names, (reason, simd, info) = unpacked(tmp_path / "dist")
    assert name.startswith("diffcrop-")
    assert "-py3-none-" in name
    files = {path.relative_to(tree / "src").as_posix() for path in (tree / "src").rglob("*") if path.is_file()}
    assert files <= set(names)
    # Whether there is a compiler here is another test's question.
    if cpu.build_info()["compiler"] is not None:
        assert any(entry.startswith("diffcrop/_C.") for entry in names)
        assert (reason, info["reason"]) == (None, None)
        assert simd is not None
        assert info["torch"] == torch.__version__


@pytest.mark.slow
def test_wheel_without_a_compiler(tree, tmp_path):
    nothing = shutil.which("false")
    done = build_wheel(tree, tmp_path / "dist", CXX=nothing)
    assert done.returncode == 0, done.stdout + done.stderr
    name, names, (reason, simd, info) = unpacked(tmp_path / "dist")
    assert "-py3-none-" in name
    assert not any(entry.startswith("diffcrop/_C.") for entry in names)
    assert "no working C++ compiler" in reason
    assert info["reason"] == reason
    assert simd is None
    required = build_wheel(tree, tmp_path / "required", CXX=nothing, DIFFCROP_REQUIRE_CPU="1")
    assert required.returncode != 0
    assert "DIFFCROP_REQUIRE_CPU" in required.stdout + required.stderr


@pytest.mark.slow
def test_wheel_when_compiling_fails(tree, tmp_path):
    if cpu.build_info()["compiler"] is None:
        pytest.skip("there is no C++ compiler on this machine")
    with (tree / "csrc" / "crop.cpp").open("a") as source:
        source.write("#error broken on purpose\n")
    done = build_wheel(tree, tmp_path / "dist")
    assert done.returncode == 0, done.stdout + done.stderr
    name, _, (reason, simd, info) = unpacked(tmp_path / "dist")
    assert name.endswith("-py3-none-any.whl")
    assert "compiling it failed" in reason
    assert info["reason"] == reason
    assert simd is None
    required = build_wheel(tree, tmp_path / "required", DIFFCROP_REQUIRE_CPU="1")
    assert required.returncode != 0
    assert "broken on purpose" in required.stdout + required.stderr
