#!/usr/bin/env bash
# Everything that needs a GPU, in one command: build, tests, memory checks, benchmarks. Installs nothing.
#
# Needed: nvcc, cmake, a Python with torch >= 2.11, pytest and pytest-timeout, compute-sanitizer. Not needed: Ray.
# GPU_PYTHON names the Python (python3), GANSCALE_CUDA_ARCHS the targets (90a-real), GPU_CHECK_SANITIZER=0 leaves the
# memory checks out, and says so.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${GPU_PYTHON:-python3}
export PYTHONPATH=$PWD GANSCALE_IMPL=auto

"$python" - <<'PY'
import sys
import torch

if not torch.cuda.is_available():
    sys.exit(f"error: gpu-check must run where torch sees a GPU, got torch {torch.__version__} without one; "
             "use a machine with a GPU, or make test")
print(f"# Python {sys.version.split()[0]}, torch {torch.__version__}, {torch.cuda.get_device_name()}", flush=True)
PY

echo "# build"
# pybind11's headers alone are needed; torch carries a copy of them where pybind11 itself is not installed.
eval "$("$python" - <<'PY'
import pathlib
import sysconfig

try:
    import pybind11

    headers = pybind11.get_include()
except ImportError:
    import torch

    headers = pathlib.Path(torch.__file__).parent / "include"
print(f"python_include='{sysconfig.get_path('include')}' suffix='{sysconfig.get_config_var('EXT_SUFFIX')}'")
print(f"pybind11_include='{headers}'")
PY
)"
generator=()
if command -v ninja >/dev/null; then generator=(-G Ninja); fi
cmake -S . -B build/gpu-check "${generator[@]}" -DCMAKE_BUILD_TYPE=Release -DGANSCALE_CUDA=1 \
  -DGANSCALE_CUDA_ARCHS="${GANSCALE_CUDA_ARCHS:-90a-real}" -DGANSCALE_PTXAS_VERBOSE=ON -DGANSCALE_VERSION=gpu-check \
  -DGANSCALE_PYTHON_INCLUDE="$python_include" -DGANSCALE_PYBIND11_INCLUDE="$pybind11_include" \
  -DGANSCALE_MODULE_SUFFIX="$suffix" -DGANSCALE_MODULE_DIR="$PWD/ganscale"
cmake --build build/gpu-check --target _C --parallel "${MAX_JOBS:-$(nproc)}"
"$python" -c 'from ganscale import ops; print(ops.build_info()); print(ops.describe())'

echo "# tests"
"$python" -m pytest -p no:cacheprovider -m gpu tests/ops

if [[ ${GPU_CHECK_SANITIZER:-1} == 0 ]]; then
  echo "# memory checks left out (GPU_CHECK_SANITIZER=0)"
else
  for tool in memcheck racecheck initcheck; do
    echo "# compute-sanitizer $tool"
    # Without torch's caching allocator every tensor is an allocation of its own, so that a step outside it is seen.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 1 --kernel-regex kns=ganscale \
      "$python" -m pytest -p no:cacheprovider -q -m gpu -k small tests/ops
  done
fi

echo "# benchmarks"
"$python" -m ganscale bench ops --device cuda
