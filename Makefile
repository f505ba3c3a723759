# The workbook's commands. On a machine with Python >= 3.11 and make, `make run` is all that is needed:
# it makes .venv, installs the locked packages, and runs the notebooks on the phantom set.

VENV := .venv
BIN  := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help run test lint lab room bench bench-gpu rehearsal notebooks clean-notebooks lock

help:  ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

run: $(READY)  ## run the whole workbook on the phantom set: outputs/demo/report.html (ARGS="--data data" for your films)
	@$(BIN)/cxr run $(ARGS)

# Two processes, a file of tests at a time; each takes up to 3 GB.
WORKERS ?= 2

test: lint  ## check style, then run every test, the notebooks among them (WORKERS=1 for one process)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(READY)  ## check style and format
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

lab: $(READY)  ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab notebooks $(ARGS)

room: $(READY)  ## open the reading room in the browser, as a page without code: the films of a run one by one
	@$(BIN)/voila notebooks/08_reading_room.ipynb $(ARGS)

bench: $(READY)  ## measure the README's figures: outputs/bench/results.csv and notebooks/figures/bench.png (ONLY=name for one of them)
	@$(BIN)/python -m tests.benchmarks $(if $(ONLY),--only $(ONLY))
	@$(BIN)/python -m tests.benchmarks.figure

FILMS ?= 20000
SIZE ?= 224
BATCH ?= 128

rehearsal: $(READY)  ## run the whole chain at full size on drawn films and tell time, memory and disk of every step (FILMS=112120 SIZE=224 BATCH=128)
	@$(BIN)/python -m tests.benchmarks.rehearsal --films $(FILMS) --size $(SIZE) --batch_size $(BATCH) $(ARGS)

bench-gpu: $(READY)  ## measure what an NVIDIA card makes of it, the rehearsal included: under six minutes on an H100
	@$(BIN)/python -m tests.benchmarks --only gpu.

SOLUTIONS := $(sort $(wildcard notebooks/solutions/*.ipynb))

# Executed where they lie, with the committed defaults, so that they read as documents; then their metadata is cleaned.
notebooks: $(READY)  ## execute notebooks/ in place with their defaults (ONLY=03_stage3 for one of them)
	@$(BIN)/python -c "from cxrlib.phantom import phantom; phantom.default()"  # drawn before, so that no bar is kept
	@set -e; for book in $(if $(ONLY),notebooks/$(ONLY).ipynb,$(sort $(wildcard notebooks/[0-9]*.ipynb)) $(SOLUTIONS)); do \
		CXR_QUIET=1 $(BIN)/papermill --cwd notebooks --kernel python3 --no-progress-bar "$$book" "$$book"; \
	done
	@$(MAKE) --no-print-directory clean-notebooks

# --keep-count goes with --keep-output, or nbval takes the cells for never executed. The widgets' state stays, so that
# JupyterLab shows them before a kernel runs.
STRIP := --keep-output --keep-count --keep-metadata-keys "metadata.widgets" --extra-keys "metadata.papermill cell.metadata.papermill metadata.language_info.version"

clean-notebooks: $(READY)  ## take timings and machine traces out of the notebooks, keep their outputs, pictures in fewer colours
	@$(BIN)/nbstripout $(STRIP) notebooks/*.ipynb $(SOLUTIONS)
	@$(BIN)/python -m tests.pictures notebooks/*.ipynb $(SOLUTIONS)

UV = $$(uv --version >/dev/null 2>&1 && echo uv || echo "$(BIN)/python -m uv")

lock: $(READY)  ## pin the newest packages that pyproject.toml allows into requirements.lock
	@$(UV) pip compile -q --universal --python-version 3.11 --extra test --no-header --no-emit-index-url --upgrade \
		--output-file requirements.lock pyproject.toml

$(READY): requirements.lock pyproject.toml
	@if [ ! -x $(BIN)/python ]; then \
		for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python; do \
			"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && found=$$python && break; \
		done; \
		if [ -z "$$found" ]; then \
			echo "No Python 3.11 or newer found. Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 2; \
		fi; \
		echo "Making $(VENV) with $$($$found --version)"; \
		"$$found" -m venv $(VENV) || { rm -rf $(VENV); \
			echo "$$found cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }; \
	fi
	@uv --version >/dev/null 2>&1 || $(BIN)/python -m uv --version >/dev/null 2>&1 \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@echo "Installing requirements.lock into $(VENV) (once; a few minutes, several GB with torch)"
	@$(UV) pip install --python $(BIN)/python --requirement requirements.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@
