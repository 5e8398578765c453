# make quickstart: everything from an empty folder to results; make test: the fast tests.
# make golden: the configs with all their defaults, and what launchers would do, for a diff that
# shows what a change means.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DATA := .data
WORKDIR ?= workdirs/quickstart
FLAGS ?=
# Two processes, whole files to each: a test compiles, which is work for one core. One more for the
# slow ones, some of which wait. The slowest are shown, since all of `.ci/run` has to stay under 40
# minutes.
TOGETHER := --numprocesses=2 --dist=loadfile --durations=20
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

.PHONY: quickstart data test test-slow test-all golden plan-tools plan-all prepare-tools export-tools lint clean

quickstart: data
	$(RUN) main.py --config=configs/quickstart.py --workdir=$(WORKDIR) $(FLAGS)

data: $(DATA)/emoji/tokenizer-4096.json

$(DATA)/emoji/tokenizer-4096.json: $(VENV)/installed
	$(RUN) -m data.builders.emoji --data_dir=$(DATA)
	$(RUN) -m data.tokenizers.train --dataset=emoji --data_dir=$(DATA)

$(VENV)/installed: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else \
	  f"error: {sys.executable} is Python {v[0]}.{v[1]}; expected 3.11 to 3.13: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

test: data prepare-tools
	$(RUN) -m pytest $(TOGETHER) -m "not slow and not matrix"

test-slow: data plan-tools prepare-tools export-tools
	$(RUN) -m pytest $(TOGETHER) --numprocesses=3 -m slow

test-all: data plan-tools prepare-tools export-tools
	$(RUN) -m pytest $(TOGETHER)

golden: $(VENV)/installed
	JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 $(RUN) -m tests.resolved
	$(RUN) -m tests.launch.golden

plan-tools: $(VENV)/plan/installed

$(VENV)/plan/installed: requirements-plan.txt $(VENV)/installed
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	  --target $(VENV)/plan -r requirements-plan.txt
	@touch $@

prepare-tools: $(VENV)/prepare/installed

$(VENV)/prepare/installed: requirements-prepare.txt $(VENV)/installed
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	  --target $(VENV)/prepare -r requirements-prepare.txt
	@touch $@

export-tools: $(VENV)/export/installed

$(VENV)/export/installed: requirements-export.txt $(VENV)/installed
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	  --target $(VENV)/export -r requirements-export.txt
	@touch $@

plan-all: plan-tools
	$(RUN) -m bench.plans

lint: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

clean:
	rm -rf .cache .pytest_cache .ruff_cache .hypothesis
