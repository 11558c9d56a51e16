# make test       builds .venv with the engine and runs the tests; `make help` lists the rest
# What is installed, in this order, each with a stamp: uv; the engine with the tools; the wheel of this checkout.

unexport PYTHONDONTWRITEBYTECODE
export HF_HUB_OFFLINE = 1

PYTHON ?= python3
UV_VERSION := 0.13.9
V := .venv
INSTALL := $(V)/bin/uv pip install --quiet --python $(V)/bin/python
# The CPU build of torch: from a folder of wheels if there is one, else from torch's own index.
TORCH := $(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)",--torch-backend cpu)
# The installed kvtier is tested: nothing that the tests start may find the checkout's folder of that name first.
PYTEST := PYTHONSAFEPATH=1 $(V)/bin/pytest
SOURCES := $(shell find kvtier connectors native systemd -type f -not -path '*/__pycache__/*') \
  CMakeLists.txt pyproject.toml README.md

# Their oldest compiler that the Pythons here have: what it makes runs under its protobuf and under all later ones.
STUBS := grpcio-tools==1.71.2

# The compiler of the CUDA kernel. A driver takes what is as old as itself or older: this one serves all since 525.
NVRTC := nvidia-cuda-nvrtc-cu12==12.0.76

.PHONY: help venv test test-long soak demo bench compare lint words stubs kernel clean

help:
	@echo "make test | test-long | soak | demo | bench | compare | lint | words | stubs | kernel | clean"

venv: $(V)/.kvtier

$(V)/.uv:
	$(PYTHON) -m venv $(V)
	$(V)/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	touch $@

# Everything that kvtier and its tests need but kvtier itself, and what builds it, as pyproject.toml says.
$(V)/.engine: $(V)/.uv pyproject.toml
	$(INSTALL) $(TORCH) --requirements pyproject.toml --extra test --extra engine-cpu
	$(V)/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
	  | $(INSTALL) --requirements - cmake ninja
	touch $@

# Not editable, as users install it. Without build isolation only the C++ files that changed are compiled.
$(V)/.kvtier: $(V)/.engine $(SOURCES)
	@command -v $${CXX:-c++} >/dev/null || { echo "kvtier's native part needs a C++20 compiler (g++ or clang++)" >&2; exit 1; }
	$(INSTALL) --no-deps --no-build-isolation --reinstall-package kvtier .
	touch $@

# Those that need no quiet, two at a time on each of few cores, for many of them mostly wait; then the files with engines,
# each of which takes a core, and those with a systemd; then, one by one, those with drives that fail or are measured. 5: no such tests.
WORKERS := $(shell cores=$$(nproc); echo $$((cores < 4 ? 2 * cores : cores < 8 ? cores : 8)))
TOGETHER := tests/unit tests/daemon tests/sim tests/fake_cuda tests/remote tests/metrics tests/security tests/docs tests/soak \
  tests/test_style.py
ENGINES := tests/e2e tests/systemd
ALONE := tests/contract tests/crash tests/gpu

# Side by side, tests take each other's time: on a busy machine one of thousands waits in vain for what comes a moment
# later. A test has failed when it fails alone: whatever did beside others (1) is run once more that way, and it is said.
CACHE := -o cache_dir=.pytest_cache/together
ONCE_MORE := echo "=== These failed beside other tests. Now each alone, once: what fails there too has failed. ==="
define together
	$(PYTEST) $(1) $(CACHE) --cache-clear -m "not long" $(ARGS) || { status=$$?; test $$status -eq 5 || { test $$status -eq 1 && \
	  $(ONCE_MORE) && $(PYTEST) $(1) -n 0 $(CACHE) --last-failed --last-failed-no-failures none -m "not long" $(ARGS); }; }
endef

test: $(V)/.kvtier
	$(call together,-n $(WORKERS) $(wildcard $(TOGETHER)))
	$(call together,-n 2 --dist loadfile $(ENGINES))
	$(PYTEST) -m "not long" $(wildcard $(ALONE)) $(ARGS) || test $$? -eq 5

# Five minutes of a node's life with faults; SOAK_S=3600 for an hour. 3: this machine lacks what is measured.
SOAK_S ?= 300
soak: $(V)/.kvtier
	PYTHONPATH=tests PYTHONSAFEPATH=1 $(V)/bin/python tests/soak/soak.py --seconds $(SOAK_S) $(ARGS)

test-long: $(V)/.kvtier
	$(PYTEST) -m long $(ARGS) || test $$? -eq 5

demo: $(V)/.kvtier
	PYTHONPATH=tests:tests/e2e $(V)/bin/python benchmarks/demo.py $(ARGS)

# 3: this machine lacks what is measured.
bench: $(V)/.kvtier
	set -e; for file in benchmarks/bench_*.py; do echo "== $$file"; PYTHONPATH=tests:tests/e2e $(V)/bin/python $$file || test $$? -eq 3; done

# All of docs/benchmarks.md: kvtier beside its peers, which get environments of their own under .venv-peers/. An hour; QUICK=1
# takes ten minutes, is less sure of everything, and prints its tables instead of changing the page.
COMPARED := compare_peers bench_storage bench_scale bench_nodes
RESULTS := $(if $(QUICK),build/quick,benchmarks/results)

compare: $(V)/.kvtier
	$(V)/bin/python benchmarks/compare/environments.py
	mkdir -p $(RESULTS)
	set -e; for name in $(COMPARED); do echo "== $$name"; PYTHONPATH=tests:tests/e2e $(V)/bin/python benchmarks/$$name.py --json \
	  $(if $(QUICK),--quick) > $(RESULTS)/$$name.new || test $$? -eq 3; mv $(RESULTS)/$$name.new $(RESULTS)/$$name.json; done
	$(V)/bin/python docs/make_benchmarks.py $(if $(QUICK),--results $(RESULTS) --to $(RESULTS))

lint: $(V)/.engine
	$(V)/bin/ruff check .
	$(V)/bin/ruff format --check .
	$(V)/bin/mypy

# So that nothing says what isn't so: lists of options and counters, man pages, completion. A test compares.
words: $(V)/.kvtier
	$(V)/bin/python docs/make_words.py

# What is generated from the .proto files is committed: nobody who installs kvtier needs a compiler for it.
stubs: $(V)/.uv
	$(V)/bin/uv run --no-project --python $(V)/bin/python --with $(STUBS) \
	  python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. kvtier/admin/admin.proto kvtier/peer/peer.proto

# So is what is generated from native/copy_kernel.cu: nobody who installs kvtier needs a CUDA toolkit.
kernel: $(V)/.uv
	$(V)/bin/uv run --no-project --python $(V)/bin/python --with $(NVRTC) \
	  python native/make_kernel.py native/copy_kernel.ptx.h

clean:
	rm -rf $(V) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
