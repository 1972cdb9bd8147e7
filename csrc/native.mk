# Verbs for the native part alone; included by the Makefile.
NATIVE_PYTHON ?= $(PYTHON)

.PHONY: native
native:  ## Build the native module into the source tree, for development.
	cmake -S . -B build/native -G Ninja -DCMAKE_BUILD_TYPE=Release \
	  -DPython_EXECUTABLE=$$($(NATIVE_PYTHON) -c 'import sys; print(sys.executable)') \
	  -DSKBUILD_PROJECT_VERSION=development \
	  -Dpybind11_DIR=$$($(NATIVE_PYTHON) -m pybind11 --cmakedir) > /dev/null
	cmake --build build/native
	cp build/native/_native*.so crossmedia_fast/
