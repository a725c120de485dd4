PYTHON ?= python3
# One version for everybody, so that a failure here is a failure there. The package itself takes any torch >= 2.10.
TORCH ?= torch==2.13.0
# For example PIP_ARGS="--index-url ..." to take the small CPU build of torch on Linux.
PIP_ARGS ?=
DEMO_OUT ?= demo-out
EXAMPLES_OUT ?= examples-out
# Test processes.
JOBS ?= 2

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS)
BUILT := .venv/.built
SOURCES := pyproject.toml CMakeLists.txt $(wildcard csrc/*)
CXX_FILES := $(wildcard csrc/*.cpp csrc/*.h)
# With a compiler at hand a failing build is an error to see; without one the package is used as it would be installed.
HAS_CXX := $(if $(shell command -v $(CXX) 2>/dev/null),1,0)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test test-slow bench bench-full recovery examples gpu-check check format wheel clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

venv: .venv/.dev ## make .venv with torch, the tools and diffcrop, built from this tree

# In two steps: torch and the build tools have to be there before a build that is not isolated.
.venv/.tools:
	$(PYTHON) -m venv .venv
	$(PIP) "$(TORCH)" "scikit-build-core>=0.11" "cmake>=3.26" "ninja>=1.11" setuptools
	@touch $@

$(BUILT): .venv/.tools $(SOURCES)
	DIFFCROP_REQUIRE_CPU=$(HAS_CXX) $(PIP) --no-build-isolation -e ".[cli]"
	@touch $@

.venv/.dev: $(BUILT)
	$(PIP) "diffcrop[test,dev]"
	@touch $@

# Without the tools of the tests, which are as large as torch.
demo: $(BUILT) ## recover a crop box by gradient descent, with pictures in demo-out/
	$(BIN)/diffcrop demo --force -o $(DEMO_OUT)

test: venv ## the tests, without those marked slow
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow"

test-slow: venv ## only the tests marked slow
	$(BIN)/python -m pytest -n $(JOBS) -m slow

# Without jax, which not every index has, the others are measured.
.venv/.bench: .venv/.dev
	$(PIP) "diffcrop[bench,bench-jax]" || $(PIP) "diffcrop[bench]"
	@touch $@

bench: .venv/.bench ## speed beside what people use today, some minutes long, and the report of it
	$(BIN)/python -m benchmarks run --suite table
	$(BIN)/python -m benchmarks report

bench-full: .venv/.bench ## every case and peer, growth and memory, and the report: half an hour or so
	$(BIN)/python -m benchmarks run --suite full
	$(BIN)/python -m benchmarks run --suite growth
	$(BIN)/python -m benchmarks run --suite memory
	$(BIN)/python -m benchmarks report

recovery: .venv/.bench ## which boxes are found again, by which method, and the report of it: twelve minutes or so
	$(BIN)/python -m benchmarks.recovery run
	$(BIN)/python -m benchmarks.recovery report

examples: venv ## the examples with pictures, in examples-out/: five minutes or so
	$(BIN)/python examples/zoom_video.py -o $(EXAMPLES_OUT)/zoom_video
	$(BIN)/python examples/refine_roi.py -o $(EXAMPLES_OUT)/refine_roi
	$(BIN)/python examples/fit_sprites.py -o $(EXAMPLES_OUT)/fit_sprites
	$(BIN)/python examples/learn_where_to_look.py -o $(EXAMPLES_OUT)/learn_where_to_look

# Whatever Python has a PyTorch for the GPU, with pytest; nothing is installed.
gpu-check: ## on a machine with a GPU: the tests and benchmarks of its kernels, recorded (PYTHON=...)
	PYTHONPATH=src $(PYTHON) -m pytest tests/test_triton.py
	PYTHONPATH=src $(PYTHON) -m benchmarks.gpu

check: venv ## ruff, pyright and clang-format, changing nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: venv ## let ruff and clang-format change the files
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_FILES)

wheel: venv ## the py3-none wheel of this platform in dist/
	DIFFCROP_REQUIRE_CPU=1 $(BIN)/python -m pip wheel --disable-pip-version-check --no-build-isolation --no-deps -w dist .

clean: ## remove what was made, but keep .venv and its torch
	rm -rf $(BUILT) .venv/.dev build dist $(DEMO_OUT) $(EXAMPLES_OUT) .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
