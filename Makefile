# Run `make` for what there is to run. Everything lives in .venv, .venv-peers and .demo, nothing is installed elsewhere,
# except the servers that `make test` and `make bench` start: those come from the system's packages, if we may install them.

HERE := $(shell cd "$$(dirname "$(strip $(MAKEFILE_LIST))")" && pwd -P)
ifneq ($(shell pwd -P),$(HERE))
# Called from another folder (`make -f …/Makefile demo`): start again from here.
$(or $(MAKECMDGOALS),help):
	@$(MAKE) --no-print-directory -C "$(HERE)" $@
else

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test quick check docs bench peers soak servers clean

BIN := .venv/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
MINIMUM := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
# Where several Pythons are installed, `make PYTHON=python3.13 …` picks one.
PYTHON :=

help:
	@echo "make demo    start the example worker on a SQLite file (start it in several terminals)"
	@echo "make test    run the tests; ARGS='-k lease' hands pytest its arguments"
	@echo "make quick   run the tests that need no server: after each change, in less than a minute"
	@echo "make check   check format, style, types and the arrows between modules, and build the documentation"
	@echo "make docs    build the documentation as a site, in docs/_build/html"
	@echo "make soak    simulate 100,000 seeds, then break six kinds of servers; SEEDS=, and SECONDS= for each kind"
	@echo "make bench   measure hand-over, takeover, renewal, load and memory; ARGS hands on its arguments"
	@echo "make peers   measure it beside its peers on PostgreSQL, in .venv-peers"
	@echo "make clean   remove the virtual environment, caches and the demo's database"

# The shop's database is a file in .demo, unless AIOLEASE_URL names a server.
demo: .venv/installed
	@mkdir -p .demo
	@AIOLEASE_URL="$${AIOLEASE_URL:-sqlite:///.demo/shop.db}" exec $(BIN)/python examples/worker.py --fast $(ARGS)

test: .venv/installed-dev servers
	@$(BIN)/python -m pytest $(or $(ARGS),-n 4 --dist worksteal)

quick: .venv/installed-dev
	@$(BIN)/python -m pytest -m quick $(or $(ARGS),-n 2 --dist worksteal)

# Every check runs, so that one run shows all there is to mend.
check: .venv/installed-dev
	@failed=; \
	$(BIN)/ruff format --quiet --diff . || failed="$$failed format"; \
	$(BIN)/ruff check --quiet . || failed="$$failed style"; \
	$(BIN)/mypy --no-error-summary || failed="$$failed types"; \
	arrows=$$($(BIN)/lint-imports 2>&1) || { echo "$$arrows"; failed="$$failed imports"; }; \
	$(SITE) || failed="$$failed docs"; \
	if [ -n "$$failed" ]; then echo "make check failed:$$failed" >&2; exit 1; fi; \
	echo "format, style, types, imports and documentation are in order"

# Warnings are errors, and a name that leads nowhere is a warning. Nothing is fetched.
SITE = $(BIN)/python -m sphinx -q -W --keep-going -n -d docs/_build/doctrees -b html docs docs/_build/html
docs: .venv/installed-dev
	@$(SITE)
	@echo "the documentation is in docs/_build/html/index.html"

SEEDS := 100000
SECONDS := 720
# The real faults go on over all servers, whatever was found before.
soak: .venv/installed-dev servers
	@failed=0; \
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) --processes 2 || failed=1; \
	$(BIN)/python -m tests.faults --seconds $(SECONDS) || failed=1; \
	exit $$failed

bench: .venv/installed-dev servers
	@$(BIN)/python -m benchmarks $(ARGS)

# APScheduler 4 cannot be installed beside APScheduler 3, with which `make bench` compares jobs.
peers: .venv-peers/installed servers
	@.venv-peers/bin/python -m benchmarks $(or $(ARGS),peers.leading peers.workers --servers postgresql)

clean:
	@rm -rf .venv .venv-peers .demo .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache dist build docs/_build
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python); do \
		if $$python -c '$(MINIMUM)' 2>/dev/null; then \
			echo "making .venv with $$($$python --version)"; \
			exec $$python -m venv .venv; \
		fi; \
	done; \
	echo "no Python 3.11 or newer with its venv module was found$(if $(PYTHON), as $(PYTHON)):" \
		"install one (on Debian: python3 and python3-venv), or say which: make PYTHON=/path/to/python3.12" >&2; \
	exit 1

# The stamps are newer than pyproject.toml once their packages are in, so a second run starts at once.
# The developers' set holds the user's, so either stamp serves the demo.
.venv/installed: pyproject.toml | .venv/bin/python
	@if [ .venv/installed-dev -nt pyproject.toml ]; then :; else \
		echo "installing aiolease into .venv"; $(PIP) install -e '.[aiosqlite]'; fi
	@touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/python
	@echo "installing aiolease and its test and check tools into .venv"
	@$(PIP) install -e '.[dev]'
	@touch $@

.venv-peers/installed: pyproject.toml | .venv/bin/python
	@echo "installing aiolease and its peers into .venv-peers"
	@.venv/bin/python -m venv .venv-peers
	@.venv-peers/bin/python -m pip -qq --disable-pip-version-check install -e '.[bench-peers]'
	@touch $@

# The tests start private servers and a browser of their own, from these binaries; a service that runs already is not touched.
# Without the right to install, the tests that need a missing server are skipped and say so.
PACKAGES := mariadb-server galera-4 rsync libfaketime postgresql pgbouncer prometheus chromium fonts-dejavu-core
servers:
	@PATH="$$PATH:/usr/sbin:/usr/local/sbin"; \
	if command -v mariadbd && command -v rsync && ls /usr/lib*/galera*/libgalera_smm.so \
		&& ls /usr/lib/*/faketime/libfaketime.so.1 && ls /usr/lib/postgresql/*/bin/postgres \
		&& command -v pgbouncer && command -v promtool && command -v chromium; then exit 0; fi >/dev/null 2>&1; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo "some of $(PACKAGES) are missing, and only root can install them with apt-get: their tests will be skipped"; \
		exit 0; \
	fi; \
	echo "installing $(PACKAGES)"; \
	log=$$(mktemp); \
	if { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $(PACKAGES); } \
		>"$$log" 2>&1 </dev/null; then rm -f "$$log"; \
	else \
		tail -n 20 "$$log" >&2; rm -f "$$log"; \
		echo "could not install $(PACKAGES)" >&2; \
		if [ -n "$$CI" ]; then exit 1; fi; \
		echo "the tests that need them will be skipped" >&2; \
	fi

endif
