# What this project's commands are: `make help`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_FLAGS ?=
TEST_JOBS ?= 3
SOAK_SECONDS ?= 3600
SOAK_KILLS ?= 0
SOAK_SEED ?= 0

.PHONY: help install demo test lint types bench docs man soak clean

help:  ## show these targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## make .venv with fedbus (editable) and everything that its tests need

$(STAMP): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --retries 10 --upgrade 'pip>=23' 'setuptools>=68'
	$(BIN)/python -m pip install --quiet --retries 10 --editable '.[test,lint]'
	@touch $@

demo: install  ## a whole bus on this machine, live; Ctrl-C ends it
	$(BIN)/fedbus demo $(DEMO_FLAGS)

test: install lint  ## every check and every test
	tests/system-packages
	@$(BIN)/python -m bench.fedmsg_environment
	$(BIN)/python -m pytest --numprocesses $(TEST_JOBS) --dist worksteal $(PYTEST_FLAGS)

lint: install  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install  ## measure, beside raw pyzmq and peers (QUICK=1: two minutes)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python -m bench $(if $(QUICK),--quick) $(BENCH_FLAGS)

docs: install  ## build the documentation into doc/_build/html
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/sphinx-build -W --keep-going -q -b html doc doc/_build/html

man: install  ## write the manual pages, and what completes commands in shells, anew from the commands themselves
	rm -rf doc/man fedbus/data/completion
	mkdir -p doc/man
	$(BIN)/fedbus man --write build/man && cp build/man/man1/*.1 doc/man/
	$(BIN)/fedbus completion --write fedbus/data/completion

soak: install  ## a long random run with faults of all kinds (SOAK_SECONDS=3600, SOAK_SEED=), or SOAK_KILLS=1000
	FEDBUS_FAULT_SECONDS=60 $(BIN)/python -m pytest tests/processes/test_stopped.py tests/processes/test_real_disk.py tests/network/test_cable.py
	FEDBUS_HISTORY_KILLS=100 $(BIN)/python -m pytest tests/processes/test_history_killed.py
	$(BIN)/python -m tests.processes.soak --seconds $(SOAK_SECONDS) --kills $(SOAK_KILLS) --seed $(SOAK_SEED) $(SOAK_FLAGS)

clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist *.egg-info doc/_build .bench
