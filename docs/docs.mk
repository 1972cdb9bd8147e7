# The documentation's verb; included by the Makefile.
.PHONY: docs

$(VENV)/docs.stamp: $(VENV)/installed.stamp
	$(PIP) install --quiet -c constraints.txt $(call extra,docs)
	touch $@

docs: $(VENV)/docs.stamp  ## Build the documentation into build/docs; a warning is an error.
	$(PYTHON) -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "written: build/docs/index.html"
