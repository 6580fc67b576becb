# Everything that a newcomer, a developer and CI type. `make help` lists it.
#
# A virtual environment is made in $(VENV) from nothing but Python 3.11 to 3.13, pinned by
# constraints.txt. There are two sizes of it: `demo` installs what serves, `test` what develops too.
# Stamps in it say what is installed, so that the second run of a target starts at once.

VENV ?= .venv
CORPUS ?= xquad
BIN := $(VENV)/bin
EXTRAS_SERVING := cpu
EXTRAS_DEVELOPING := cpu,dev,training,loadtest

# The first Python that will do; PYTHON=... on the command line or in the environment goes before.
ifeq ($(origin PYTHON),undefined)
PYTHON := $(shell for each in python3 python3.13 python3.12 python3.11; do \
	"$$each" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	2>/dev/null && echo "$$each" && break; done)
endif

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	--no-warn-script-location -c constraints.txt
DECLARED := constraints.txt pyproject.toml protos/pyproject.toml protos/hatch_build.py
PROTOS := $(wildcard protos/shoal/v1/*.proto protos/shoal/internal/v1/*.proto)
PYTHON_FOLDERS := protos services cluster training loadtest tests deploy

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint fix bench protos lock clean

help: ## Show this list.
	@echo 'make TARGET, where TARGET is one of'
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 10
	@echo 'Variables: PYTHON=python3.11 VENV=.venv CORPUS=xquad|debian SHOAL_HOME=~/.shoal'

demo: $(VENV)/.serving protos ## Start a cluster, ingest a corpus, ask it questions (CORPUS=debian: a larger one).
	@$(BIN)/shoal up --if-down
	@$(BIN)/shoal demo $(CORPUS)

test: lint ## Run every check: lint, and all tests.
	@echo '== tests'
	@$(BIN)/python -m pytest -q

lint: $(VENV)/.developing protos ## Check style, types, import contracts and protos.
	@echo '== ruff'
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@echo '== mypy'
	@$(BIN)/mypy
	@echo '== import contracts'
	@$(BIN)/lint-imports --no-logo >$(VENV)/lint-imports.log 2>&1 \
		|| { cat $(VENV)/lint-imports.log; exit 1; }
	@echo '== protos'
	@cd protos && $(abspath $(BIN))/buf lint
	@BIN=$(BIN) sh .ci/proto-breaking

fix: $(VENV)/.developing ## Mend what can be mended: style, imports, format.
	@$(BIN)/ruff check --quiet --fix . || true
	@$(BIN)/ruff format --quiet .
	@cd protos && $(abspath $(BIN))/buf format -w
	@git diff --stat

bench: $(VENV)/.developing protos ## Compare Shoal with Ray Serve and with a bare echo (4 minutes, and 4 more once).
	@$(BIN)/python -m loadtest.compositions --cache $${SHOAL_BENCH_CACHE:-/var/tmp/shoal-bench}

protos: $(VENV)/.protos ## Build the Python code of the protos.

lock: $(VENV)/.developing ## Pin every package anew in constraints.txt.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@printf '%s\n' '-e ./protos' '-e .[$(EXTRAS_DEVELOPING)]' | $(BIN)/uv pip compile - --quiet \
		--universal --python-version 3.11 --no-header --no-annotate -o $(VENV)/locked.txt
	@{ echo '# Every package of every extra, pinned for Python 3.11 to 3.13 on Linux;' \
		'made by `make lock`.'; grep -v '^-e' $(VENV)/locked.txt; } > constraints.txt
	@git diff --stat -- constraints.txt

clean: ## Remove what was made here: environment, built code, caches. Data in SHOAL_HOME stays.
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	@find protos services cluster training tests loadtest deploy \
		\( -name __pycache__ -o -name node_modules \) -prune -exec rm -rf {} +
	@find protos -name '*_pb2*.py*' -exec rm -f {} +

$(BIN)/python:
	@if [ -z '$(PYTHON)' ] || ! '$(PYTHON)' -c \
		'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then \
		echo 'Shoal needs Python 3.11, 3.12 or 3.13, and found $(or $(PYTHON),none).' \
			'Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11' >&2; \
		exit 1; fi
	@if ! '$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null; then \
		echo '$(PYTHON) cannot make virtual environments: install its venv package' \
			'(on Debian and Ubuntu: apt-get install python3-venv)' >&2; \
		exit 1; fi
	@echo "Making the environment in $(VENV) with $$('$(PYTHON)' --version)."
	@'$(PYTHON)' -m venv '$(VENV)' || { rm -rf '$(VENV)'; exit 1; }

$(VENV)/.serving: $(DECLARED) | $(BIN)/python
	@if [ ! -e $(VENV)/.developing ] || [ -n "$$(find $(DECLARED) -newer $(VENV)/.developing)" ]; then \
		echo 'Installing what serves (a few minutes the first time).'; \
		$(PIP) -e protos -e '.[$(EXTRAS_SERVING)]'; fi
	@touch $@ $(VENV)/.protos

$(VENV)/.developing: $(DECLARED) | $(BIN)/python
	@echo 'Installing what serves, tests and trains (several minutes the first time).'
	@$(PIP) -e protos -e '.[$(EXTRAS_DEVELOPING)]'
	@touch $@ $(VENV)/.protos

# Installing builds the protos; afterwards only a proto that was changed has them built again.
$(VENV)/.protos: $(PROTOS)
	@if [ -x $(BIN)/protoc-gen-mypy ]; then $(BIN)/python protos/hatch_build.py; \
	else $(PIP) --no-deps -e protos -e .; fi
	@touch $@
