# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LMMS := .venv-lmms
LMMS_STAMP := $(LMMS)/.installed
TEST_FLAGS ?=
# Processes for tests; many of those start two ranks themselves. 0: in this process, one after another.
TEST_WORKERS ?= 2

.PHONY: help setup slurm demo ablation test test-slow test-lmms lint format clean

help:
	@echo "make demo          train every stage on the built-in data (CPU), then open runs/demo/report.html"
	@echo "make demo QUICK=1  the same page after about four minutes, with whatever quality it reached"
	@echo "make setup         the environment .venv alone; the other targets make it too"
	@echo "make ablation      what a language model should see: Tables 1, 8, 9 in small, into runs/ablation"
	@echo "make test          the tests (slow ones left out); make test-slow runs those"
	@echo "make test-lmms     the plug-in under lmms-eval itself, which wants other versions: in .venv-lmms, upon .venv"
	@echo "make lint          ruff, formatting, import arrows"

$(STAMP): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "TokenFlow needs Python 3.10 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.11 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the packages into $(VENV): some minutes, several gigabytes, nothing printed until it is done"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,demo]"
	@touch $(STAMP)

setup: $(STAMP)

# What tests/slurm submits its jobs to; where it cannot be installed, this says why and those tests are skipped.
slurm:
	@bash tests/slurm/install.sh

demo: $(STAMP)
	$(BIN)/python -m pipelines.demo $(if $(QUICK),--quick)

ablation: $(STAMP)
	$(BIN)/python -m pipelines.ablation $(if $(QUICK),--quick) $(if $(FULL),--full)

test: $(STAMP) slurm
	$(BIN)/python -m pytest -m "not slow" -n $(TEST_WORKERS) --dist loadgroup $(TEST_FLAGS)

test-slow: $(STAMP) slurm
	$(BIN)/python -m pytest -m slow -n $(TEST_WORKERS) --dist loadgroup $(TEST_FLAGS)

# A layer upon .venv: its packages are seen from there, and those that lmms-eval wants in other versions lie over them.
$(LMMS_STAMP): $(STAMP)
	test -x $(LMMS)/bin/python || $(BIN)/python -m venv $(LMMS)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$($(LMMS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/upon.pth"
	$(LMMS)/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[lmms]"
	@touch $(LMMS_STAMP)

test-lmms: $(LMMS_STAMP)
	$(LMMS)/bin/python -m pytest tests/evaluation/test_lmms_eval_model.py $(TEST_FLAGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --config setup.cfg

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf runs/demo .pytest_cache .ruff_cache
