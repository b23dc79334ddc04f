# Everything runs in .venv, made from constraints.txt: the versions this was tested with.
PYTHON ?= python3
VENV ?= .venv
PEERS ?= .venv-peers
BIN = $(VENV)/bin
DEMO = deployments/suites/gemma-3-270m-demo.yaml

.PHONY: demo test bench peers install-demo install-dev lock chaos clean

demo: install-demo  ## from nothing to a verified release of 13 dictionaries on Gemma 3 270M, in runs/
	$(BIN)/jumpsuite run $(DEMO)
	$(BIN)/jumpsuite verify runs/gemma-3-270m-demo/release

test: install-dev  ## lint, types, import contracts, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -m "not slow"

chaos: install-dev  ## the long version of what the tests kill and damage briefly
	$(BIN)/pytest -m slow -s

bench: install-dev peers  ## ours beside the peers, in one run: tests/bench/RESULTS.md
	$(BIN)/python tests/bench/run.py --peers $(PEERS)/bin/python
	$(BIN)/python tests/bench/run.py --size 640,16384,2048 --run 40

peers: $(PEERS)/installed  ## dictionary_learning, whose packages do not fit ours, in an environment of its own

$(PEERS)/installed:
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check dictionary-learning==0.1.0 $$(grep '^torch==' constraints.txt)
	$(PEERS)/bin/python -m pip uninstall --quiet --yes torchvision  # its build does not match
	touch $@

install-demo: $(VENV)/demo.installed
install-dev: $(VENV)/dev.installed

# torch first and by itself: its pinned build must be there before anything asks for a torch.
$(VENV)/%.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$*]'
	touch $@

lock: install-dev  ## write constraints.txt from what is installed
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' | grep -v '^-e' > constraints.txt

clean:
	rm -rf $(VENV) $(PEERS) runs
