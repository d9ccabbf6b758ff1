#!/usr/bin/env bash
# Everything that needs a GPU, in one command: build, tests, memory checks, measurements, and the page that says so.
#
# Needed: nvcc, cmake, a Python with torch >= 2.11, numpy, click and pytest; compute-sanitizer. Not needed: git, a
# network, Ray. What else is missing is left out and named. A stage that fails is shown, the rest still runs, and the
# exit status is 1 at the end. Logs lie in build/gpu-check/logs, the page in docs/results/gpu-NAME.md.
#
#   GPU_PYTHON            the Python (python3); PYTHONPATH is kept, so packages may lie beside it
#   GANSCALE_CUDA_ARCHS   the targets (those of the GPU in the machine)
#   GPU_CHECK_STAGES      which stages, in order (all): build tests memcheck racecheck initcheck synccheck bench
#   GPU_CHECK_BENCH       more options for ganscale bench, as --quick or --only penalty,blocks
#   GPU_CHECK_PAGE        where the page goes
#   GPU_CHECK_DRY         a command that runs in place of every stage's, as true or false; no GPU is needed then
set -uo pipefail
cd "$(dirname "$0")/.."
python=${GPU_PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 GANSCALE_IMPL=auto
all_stages="build tests memcheck racecheck initcheck synccheck bench"
stages=${GPU_CHECK_STAGES:-$all_stages}
dry=${GPU_CHECK_DRY:-}
build=${GPU_CHECK_BUILD:-build/gpu-check}
logs=$build/logs
pytest=("$python" -m pytest -p no:cacheprovider -o addopts=-rs --strict-markers --continue-on-collection-errors -m gpu)

if [[ -z $dry ]]; then
  "$python" - <<'PY' || exit 2
import sys
import torch

if not torch.cuda.is_available():
    sys.exit(f"error: gpu-check must run where torch sees a GPU, got torch {torch.__version__} without one; "
             "use a machine with a GPU, or make test")
print(f"# Python {sys.version.split()[0]}, torch {torch.__version__}, {torch.cuda.get_device_name()}", flush=True)
PY
fi
mkdir -p "$logs"
if [[ $stages == "$all_stages" ]]; then rm -f "$logs"/*; fi

has() { "$python" -c "import $1" 2>/dev/null; }

# The targets: what was asked for, else the machine code of the GPU in the machine (90a has Hopper's own instructions).
archs() {
  if [[ -n ${GANSCALE_CUDA_ARCHS:-} ]]; then
    echo "$GANSCALE_CUDA_ARCHS"
  else
    "$python" -c 'import torch; a, b = torch.cuda.get_device_capability(); print("90a-real" if (a, b) == (9, 0) else f"{a}{b}-real")'
  fi
}

build_stage() {
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
  local generator=()
  if command -v ninja >/dev/null; then generator=(-G Ninja); fi
  # -lineinfo changes no code; it lets the memory checks name lines
  cmake -S . -B "$build" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release -DGANSCALE_CUDA=1 -DCMAKE_CUDA_FLAGS=-lineinfo \
    -DGANSCALE_CUDA_ARCHS="$(archs)" -DGANSCALE_PTXAS_VERBOSE=ON -DGANSCALE_VERSION=gpu-check \
    -DGANSCALE_PYTHON_INCLUDE="$python_include" -DGANSCALE_PYBIND11_INCLUDE="$pybind11_include" \
    -DGANSCALE_MODULE_SUFFIX="$suffix" -DGANSCALE_MODULE_DIR="$PWD/ganscale" &&
    cmake --build "$build" --target _C --parallel "${MAX_JOBS:-$(nproc)}" &&
    "$python" -c 'from ganscale import ops; i = ops.build_info(); print(i, ops.describe(), sep="\n"); assert i["cuda_devices"], i'
}

tests_stage() {
  local where=(tests/ops)
  if has pydantic && has safetensors && has PIL; then
    where+=(tests/training/test_cuda_graphs.py)
  else
    echo "the captured training step left out: pydantic, safetensors or Pillow is not installed"
  fi
  "${pytest[@]}" "${where[@]}"
}

sanitizer_stage() {
  local filter=() help
  help=$(compute-sanitizer --help 2>&1)
  # Only our kernels; the option had another name in old toolkits. But what was never written is known from the writes of
  # all kernels, torch's among them.
  case "$1 $help" in
    initcheck*) ;;
    *--kernel-name*) filter=(--kernel-name kns=ganscale) ;;
    *--kernel-regex*) filter=(--kernel-regex kns=ganscale) ;;
  esac
  # Without torch's caching allocator every tensor is an allocation of its own, so that a step outside it is seen.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 1 "${filter[@]}" \
    "${pytest[@]}" -q -k small tests/ops
}

bench_stage() {
  # shellcheck disable=SC2086  # several words on purpose
  "$python" -m ganscale bench ops --device cuda --out "$logs/bench.md" ${GPU_CHECK_BENCH:-}
}

run() {
  local name=$1 start=$SECONDS status
  shift
  echo "# $name"
  if [[ -n $dry ]]; then set -- $dry "$name"; fi
  { "$@"; } 2>&1 | tee "$logs/$name.log"
  status=${PIPESTATUS[0]}
  echo "$status $((SECONDS - start))" >"$logs/$name.status"
  if [[ $status != 0 ]]; then
    echo "# $name FAILED with status $status; its log is $logs/$name.log"
    failed+=("$name")
  fi
}

failed=()
for stage in $stages; do
  case $stage in
    build | tests | bench) run "$stage" "${stage}_stage" ;;
    memcheck | racecheck | initcheck | synccheck) run "$stage" sanitizer_stage "$stage" ;;
    *)
      echo "error: GPU_CHECK_STAGES must name stages of: $all_stages, got $stage; leave it out to run all" >&2
      exit 2
      ;;
  esac
done

"$python" benchmarks/gpu_page.py "$logs" ${GPU_CHECK_PAGE:+"$GPU_CHECK_PAGE"} || failed+=(page)
if ((${#failed[@]})); then
  echo "# failed: ${failed[*]}"
  exit 1
fi
echo "# all stages passed: $stages"
