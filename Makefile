# Everything runs in the environment VENV, which is made on first use with PYTHON.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: help demo test clean-demo

help:
	@echo "make demo        train on generated scenes, then segment 24 of them (CPU or GPU)"
	@echo "make test        linter and tests"
	@echo "make clean-demo  remove what make demo wrote: runs/demo and demo"

demo: $(VENV)/.installed
	@if [ -f runs/demo/summary.json ]; then \
		echo "runs/demo is trained already (make clean-demo starts over)"; \
	elif [ -f runs/demo/last.pth ]; then \
		$(RUN) train.py --resume runs/demo; \
	else \
		$(RUN) train.py; \
	fi
	$(RUN) -m cosa.data.scenes demo/scenes --split test --count 24
	$(RUN) infer.py demo/scenes/images --weights runs/demo/best.pth --output demo/masks \
		--overlay --overwrite
	@echo "Look at demo/masks/*.overlay.png and runs/demo/panels/*.png;"
	@echo "the scores are in runs/demo/summary.json."

test: $(VENV)/.installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m pytest -m "not slow" -n auto --maxprocesses 4 --dist worksteal

clean-demo:
	rm -rf runs/demo demo

# Stamps: packages are installed again only when the lists change.
$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
		"Python 3.10 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(RUN) -m pip install -r requirements-dev.txt
	@touch $@
