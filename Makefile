# Everything runs in .venv, made from constraints.txt: the versions this was tested with.
PYTHON ?= python3
VENV ?= .venv
PEERS ?= .venv-peers
BIN = $(VENV)/bin
ON_EVERY_CORE = --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
DICTIONARY_LEARNING = dictionary-learning==0.1.0
DEMO = deployments/suites/gemma-3-270m-demo.yaml

.PHONY: demo test lint tests test-all bench peers install-demo install-dev lock chaos clean

demo: install-demo  ## from nothing to a verified release of 13 dictionaries on Gemma 3 270M, in runs/
	$(BIN)/jumpsuite run $(DEMO)
	$(BIN)/jumpsuite verify runs/gemma-3-270m-demo/release

test: lint tests  ## with --jobs, side by side

lint: install-dev  ## lint, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

tests: install-dev  ## what takes seconds, and the pipeline once
	$(BIN)/pytest -m "not long and not slow" $(ON_EVERY_CORE)

test-all: lint  ## these and whole runs that are killed, damaged, or in a bucket
	$(BIN)/pytest -m "not slow" --hypothesis-profile thorough $(ON_EVERY_CORE)

chaos: install-dev  ## the long version of what these kill and damage briefly
	$(BIN)/pytest -m slow -s

bench: install-dev peers  ## ours beside the peers, in one run: tests/bench/RESULTS.md
	$(BIN)/python tests/bench/run.py --peers $(PEERS)/bin/python
	$(BIN)/python tests/bench/run.py --size 640,16384,2048 --run 40

peers: $(PEERS)/installed  ## dictionary_learning, whose packages do not fit ours, in an environment of its own

$(PEERS)/installed:
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check $(DICTIONARY_LEARNING) $$(grep '^torch==' constraints.txt)
	$(PEERS)/bin/python -m pip uninstall --quiet --yes torchvision  # its build does not match
	touch $@

install-demo: $(VENV)/demo.installed
install-dev: $(VENV)/dev.installed

# By uv, which is several times as fast as pip and looks where pip was told to look. It also compiles everything, on every core: where Python
# is told to write no bytecode, as in many containers, each start would compile for minutes.
$(VENV)/%.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^uv==' constraints.txt)
	UV_FIND_LINKS="$${PIP_FIND_LINKS:-$$($(BIN)/python -m pip config get global.find-links 2> /dev/null)}" \
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[$*]'
	test $* != dev || $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps $(DICTIONARY_LEARNING)  # for its loader; what it depends on does not fit
	touch $@

lock: install-dev  ## write constraints.txt from what is installed
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' | grep -v '^-e' > constraints.txt

clean:
	rm -rf $(VENV) $(PEERS) runs
