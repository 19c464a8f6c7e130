# On a fresh machine with Python and a C compiler: `make demo` and `make test`. `make help` lists the rest.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 4
BIN := $(VENV)/bin
TOX := . tools/pythons.sh && $(BIN)/tox
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Is there a C compiler, the one that $CC or else Python's own build configuration names?
COMPILER := $(shell $(PYTHON) -c "import os, shutil, sysconfig; \
	print(shutil.which((os.environ.get('CC') or sysconfig.get_config_var('CC') or 'cc').split()[0]) or '')")

# A build that fails is an error wherever a compiler is, and always in CI; the Python engine alone is for where there is none.
ifneq ($(filter-out 0,$(HYDROGEN_NO_EXTENSIONS)),)
PURE := HYDROGEN_NO_EXTENSIONS is set
else ifeq ($(COMPILER)$(CI),)
PURE := there is no C compiler here
endif
BUILD_ENV := $(if $(PURE),HYDROGEN_NO_EXTENSIONS=1,HYDROGEN_REQUIRE_EXTENSIONS=1)
ENGINE := $(if $(PURE),python,both)

.PHONY: help demo test test-deps build exhaustive debug tsan asan ubsan model proof autobahn fuzz format lint types dist test-all free-threaded churn soak machine exits bench docs clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: build  ## an echo server, ten seconds of load on it, and the table of what was measured
	$(BIN)/python tools/demo.py

test: build  ## the suite, on both engines
	$(if $(PURE),@printf '\n%s\n' "*** $(PURE): the tests of the compiled engine are DESELECTED ***")
	$(BIN)/pytest -n $(JOBS) --engine=$(ENGINE) $(ARGS)

test-deps:  ## the programs of others that some tests call (on Debian, as root; elsewhere it says which); without them those tests are left out
	@$(PYTHON) tests/programs.py

build: $(VENV)/.installed  ## the compiled modules, in place: after each change of a .pyx or .pxd
	$(if $(PURE),@printf '\n%s\n' "*** $(PURE): no compiled engine is built ***")
	$(BUILD_ENV) $(BIN)/python setup.py build_ext --inplace

debug: $(VENV)/.installed  ## the whole suite on the debug build: assertions, lock ranks, bounds checks
	$(BIN)/python tools/instrumented.py debug $(ARGS)

tsan: $(VENV)/.installed  ## the contract and the stress tests under the thread sanitizer, which must also see a planted race
	$(BIN)/python tools/instrumented.py thread $(ARGS)

asan: $(VENV)/.installed  ## the contract and the stress tests under the address sanitizer
	$(BIN)/python tools/instrumented.py address $(ARGS)

ubsan: $(VENV)/.installed  ## the contract and the stress tests on the debug build under the sanitizer of undefined behaviour
	$(BIN)/python tools/instrumented.py undefined $(ARGS)

model: $(VENV)/.installed  ## the models of the protocols between threads, searched by SPIN, and what they notice made in the code
	$(BIN)/python proof/run.py
	$(BIN)/python tools/mutations.py

proof: build  ## what the claims about threads rest on, bounded: models, random steps, exits, sanitizers, no GIL
	HYDROGEN_MACHINE=20 $(BIN)/pytest -n $(JOBS) --engine=$(ENGINE) tests/contract/test_state_machine.py tests/stress/test_exits.py
	$(MAKE) model ARGS=
	$(MAKE) autobahn ARGS=--deflate
	$(MAKE) ubsan ARGS=
	$(MAKE) asan ARGS=
	$(MAKE) tsan ARGS=
	$(MAKE) free-threaded ARGS="-- --engine=compiled $(CURDIR)/tests/contract $(CURDIR)/tests/stress"

autobahn: build  ## the Autobahn Testsuite on the WebSocket server of each engine, ws and wss (ARGS=--deflate: all of it); needs a Python 2.7
	$(BIN)/python tools/autobahn.py $(ARGS)

fuzz: $(VENV)/.installed  ## each compiled decoder under clang's fuzzer and sanitizers, a million executions; both decoders on what it finds
	$(BIN)/python tools/fuzz.py $(ARGS)

format: $(VENV)/.dev  ## the layout of ruff and clang-format, and the fixes that ruff is sure of
	$(BIN)/ruff format
	$(BIN)/ruff check --fix
	$(BIN)/clang-format -i hydrogen/*/*.h perf/c/*.[ch] tests/faults/*.c

lint: $(VENV)/.dev  ## ruff, cython-lint and clang-format
	$(TOX) run -e lint

types: $(VENV)/.dev  ## mypy --strict, and the stubs compared with the compiled modules
	$(TOX) run -e types

dist: $(VENV)/.dev  ## sdist and wheel in dist/, their contents checked, the wheel tried
	$(TOX) run -e dist

test-all: $(VENV)/.dev  ## every Python, with and without the compiled engine, and lint, types, dist
	$(TOX) run $(ARGS)

free-threaded: $(VENV)/.dev  ## the whole suite on a CPython without a GIL, which is built first if it is not there yet
	python=$$(tools/cpython.sh 3.13t) && PATH=$${python%/*}:$$PATH && $(TOX) run -e py313t $(ARGS)

churn: build  ## row 16 of docs/faults.md at length: a million connections on each engine, fds, slots and memory flat
	HYDROGEN_SOAK=1000000 $(BIN)/pytest -p no:xdist --engine=$(ENGINE) -k f16 tests/contract $(ARGS)

exhaustive: build  ## what `make test` leaves out: an exception of each kind in each callback, and allocations that fail
	$(BIN)/pytest -n $(JOBS) --engine=$(ENGINE) -m exhaustive $(ARGS)

soak: build  ## churn, and then ten minutes of well-behaved and hostile clients (ARGS are of these)
	$(MAKE) churn ARGS=
	$(BIN)/python -m perf.soak $(if $(PURE),--engine python) $(ARGS)

machine: build  ## random steps on whole servers, ten minutes on each engine (HYDROGEN_MACHINE=seconds; HYDROGEN_MACHINE_SEED=that one again and again)
	HYDROGEN_MACHINE=$(or $(HYDROGEN_MACHINE),600) $(BIN)/pytest -p no:xdist --engine=$(ENGINE) -x tests/contract/test_state_machine.py $(ARGS)

exits: build  ## 500 processes that end at a random moment, with traffic on and handlers blocked
	HYDROGEN_EXITS=$(if $(PURE),500,250) $(BIN)/pytest -p no:xdist --engine=$(ENGINE) tests/stress/test_exits.py $(ARGS)

bench: build $(VENV)/.bench  ## hydrogen beside its peers and beside C, in ratios, and docs/performance.md (ARGS=--fast: some minutes)
	$(BIN)/python -m perf.compare --publish $(ARGS)

docs: build $(VENV)/.docs  ## the documentation as a site, in build/docs; a warning, or a link that leads nowhere, is an error
	$(BIN)/sphinx-build --fail-on-warning --keep-going --nitpicky --quiet -d build/doctrees docs build/docs

clean:  ## all that was made here, the environments included
	rm -rf build dist *.egg-info .tox .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find hydrogen perf tests tools proof -name __pycache__ -prune -exec rm -rf {} + -o -name '*.so' -exec rm -f {} +

# The editable install only links the sources (hence no extensions): `build` makes them in place, where their messages show.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) pip setuptools Cython
	HYDROGEN_REQUIRE_EXTENSIONS= HYDROGEN_NO_EXTENSIONS=1 \
		$(BIN)/python $(PIP_INSTALL) --no-build-isolation --editable '.[perf,test]'
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python $(PIP_INSTALL) tox ruff clang-format
	touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python $(PIP_INSTALL) sphinx furo myst-parser
	touch $@

$(VENV)/.bench: $(VENV)/.installed perf/requirements.txt
	$(BIN)/python $(PIP_INSTALL) --requirement perf/requirements.txt
	touch $@
