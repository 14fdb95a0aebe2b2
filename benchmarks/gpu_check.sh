#!/bin/bash
# The unattended check on a machine with an NVIDIA GPU: build, tests, sanitizers, benchmarks; no network.
#
#   benchmarks/gpu_check.sh
#
#   OUT=FOLDER                where the result goes, four files (default: benchmarks/results/gpu-<name>-<date>)
#   HASH3D_WHEELS=FOLDER      wheels of packages that are missing here (diffusers, ...)
#   HASH3D_CHECK_SECONDS=510  what all of it may take
#   HASH3D_CHECK_DEVICE=cpu   the same stages, shortened, on a machine without a GPU: this is how the script is tested
#   HASH3D_CHECK_PATIENCE=1   multiplies every time limit, for a machine that is busy
#   PYTHON=python3            one with torch, pybind11, cmake, ninja, pytest and pytest-benchmark
#
# What matters most comes first, every stage has a limit and runs though others fail, and after each of them the result
# is written anew: summary.txt, <name>.json, <name>.md and logs.tar.gz. The exit code is the number of stages that
# failed or ran out of time; what could not run because something is missing is listed as LEFT OUT.
set -uo pipefail

export checkout work logs python device out run reports
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
device=${HASH3D_CHECK_DEVICE:-cuda}
patience=${HASH3D_CHECK_PATIENCE:-1}
seconds=$((${HASH3D_CHECK_SECONDS:-510} * patience))
python=$(command -v "${PYTHON:-python3}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
logs=$work/logs run=$work/venv/bin/python reports=$checkout/benchmarks/gpu_check_report.py
mkdir "$logs"
export PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HASH3D_TEST_DEVICES=$device
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 # what else is installed here is no part of the check, and is slow to load

# The tools where a toolkit puts them, behind what the caller's PATH has; cmake and ninja beside python.
PATH=$(dirname "$python"):$PATH
for folder in /usr/local/cuda/bin /usr/local/cuda*/compute-sanitizer /opt/nvidia/*/compute-sanitizer; do
  [ ! -d "$folder" ] || PATH=$PATH:$folder
done
export PATH

smi() { timeout 20 nvidia-smi "--query-gpu=$1" --format=csv,noheader 2>/dev/null | head -1; }
name=cpu
if [ "$device" = cuda ]; then
  name=$(smi name | tr -cs 'A-Za-z0-9\n' '-')
  export CUDAARCHS=${CUDAARCHS:-$(smi compute_cap | tr -d .)} # for this GPU only: a quicker build
  [ -n "$CUDAARCHS" ] || unset CUDAARCHS
fi
name=${name:-none}
out=${OUT:-$checkout/benchmarks/results/gpu-$name-$(date +%Y%m%d-%H%M%S)}
mkdir -p "$out" && out=$(cd "$out" && pwd)
: >"$out/summary.txt"
failed=0

note() { echo "$*" | tee -a "$out/summary.txt"; }
left_out() { note "LEFT OUT   $*"; }
has() { "$run" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)" >/dev/null 2>&1; }
keep() { timeout 30 "$python" "$reports" result "$out" "$name" "$logs"; }

# stage LIMIT NAME FUNCTION [ARGUMENTS]: in a shell of its own, LIMIT seconds at most; its output goes to NAME.log.
stage() {
  local title=$2 limit=$(($1 * patience)) left=$((seconds - SECONDS)) start=$SECONDS verdict=ok status
  local log=$logs/$title.log
  if [ "$left" -lt 15 ]; then
    left_out "$title: no time is left"
    return
  fi
  [ "$limit" -le "$left" ] || limit=$left
  export limit title
  shift 2
  export -f "$1"
  timeout -k 10 "$limit" bash -euo pipefail -c 'cd "$work"; "$@"' - "$@" >"$log" 2>&1
  status=$?
  case $status in
    0) ;;
    124 | 137) verdict="OUT OF TIME" ;;
    *) verdict=FAILED ;;
  esac
  note "$(printf '%-11s %-16s %4d s  %s' "$verdict" "$title" $((SECONDS - start)) "$(tail -1 "$log" | cut -c1-160)")"
  grep '^LEFT OUT' "$log" | tee -a "$out/summary.txt"
  if [ "$status" -ne 0 ]; then
    failed=$((failed + 1))
    tail -20 "$log" | cut -c1-300 | sed 's/^/    | /'
  fi
  keep
}

# A copy of the checkout, so that the package that is imported is the one that was built.
build() {
  mkdir tree
  (cd "$checkout" && cp -r csrc python hash3d_cuda tests benchmarks examples docs ./*.toml ./*.md ./*.yml setup.py \
    CMakeLists.txt LICENSE MANIFEST.in "$work/tree")
  find tree -name '*.so' -delete
  "$python" -m venv --system-site-packages --without-pip venv # its own setuptools would be an old one
  # A venv made from a venv sees only the system's packages; let it see those of its maker too.
  "$python" -c 'import site; print("\n".join(site.getsitepackages()))' >"$("$run" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth"
  for wheel in "${HASH3D_WHEELS:-/nonexistent}"/*.whl; do
    [ -e "$wheel" ] || continue
    "$run" -m pip install -q --no-index --no-deps "$wheel" || echo "LEFT OUT   the wheel $wheel could not be installed"
  done
  "$run" -m pip install --no-index --no-deps --no-build-isolation --ignore-installed -v ./tree && {
    cp venv/lib/python*/site-packages/hash3d_cuda/_C*.so tree/hash3d_cuda # some tests look at the checkout's package
    return
  }
  echo "LEFT OUT   pip install: it failed (setuptools too old?); the package was built with cmake alone, see build.log"
  cmake -G Ninja -S tree -B build -DCMAKE_BUILD_TYPE=Release -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$work/tree/hash3d_cuda" \
    -DPython_EXECUTABLE="$run" -Dpybind11_DIR="$("$run" -c 'import pybind11; print(pybind11.get_cmake_dir())')" \
    -DHASH3D_CUDA=$([ "${HASH3D_CUDA:-1}" = 0 ] && echo OFF || echo ON)
  cmake --build build --target _C
  echo "$work/tree" >"$("$run" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/built.pth"
}

info() {
  "$run" -c 'import sys; from hash3d_cuda.cli.main import main; sys.exit(main(["info"]))'
  "$run" - <<'PYTHON'
import os, sys, torch, hash3d_cuda
from hash3d_cuda import _C
print("torch", torch.__version__, "python", sys.version.split()[0], "package", hash3d_cuda.__file__)
assert hash3d_cuda.__file__.startswith(os.environ["work"]), "another copy of the package is imported"
if os.environ["device"] == "cuda":
    assert torch.cuda.is_available(), "torch sees no GPU"
    assert _C.build_info()["cuda"], "the CUDA files were not compiled"
    assert _C.build_info()["cuda_devices"] > 0, "the engine sees no GPU"
    print("GPU", torch.cuda.get_device_name(), torch.cuda.get_device_capability())
PYTHON
}

pytest_in_tree() { "$run" -m pytest -q -ra -p no:cacheprovider --rootdir tree -c tree/pyproject.toml "$@"; }
export -f pytest_in_tree

# tests FILE...: a process per file, as many at a time as there are cores. What did not end a little before the stage
# has to is named in the report.
tests() {
  export apart
  apart=$logs/$title && mkdir "$apart"
  one() {
    local name
    name=$(basename "$1" .py)
    pytest_in_tree --durations=3 "--junitxml=$apart/$name.xml" "$1" >"$apart/$name.log" 2>&1
    echo $? >"$apart/$name.status"
  }
  export -f one
  local cores
  cores=$(env -u OMP_NUM_THREADS nproc) # which would take that variable for the number of cores
  printf '%s\0' "$@" | timeout -k 3 $((limit - 8)) xargs -0 -n 1 -P "$cores" bash -c 'one "$1"' - ||
    echo "not all of it ended within $((limit - 8)) s"
  "$python" "$reports" tests "$apart" "$@"
}

# compute-sanitizer looks at the engine's kernels alone, but for initcheck, which has to see who else writes. Calls of
# the driver that torch tries out and that fail are no error of ours, and the engine checks its own. torch's allocator
# would hide reads past the end of a block.
under() {
  local tool=$1 only=(--kernel-regex kns=hash3d)
  [ "$tool" != initcheck ] || only=()
  shift
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout -k 3 $((limit - 8)) compute-sanitizer --tool "$tool" "${only[@]}" \
    --report-api-errors no --error-exitcode 86 --launch-timeout 60 --target-processes all "$run" "$@"
}
export -f under

sanitized_tests() {
  under "$1" -m pytest -q -x -p no:cacheprovider -c tree/pyproject.toml tree/tests/test_cuda.py \
    tree/tests/test_table_chains.py tree/tests/test_table_nonfinite.py tree/tests/test_table_skip.py \
    -k "(test_large_features or engine-cuda) and not 1024 and not 4099"
}

# A look-up that is told to write past the end of its answers has to be reported, or the checks above mean nothing.
planted_fault() {
  cat >planted.py <<'PYTHON'
import torch, hash3d_cuda
table = hash3d_cuda.HashTable((1,), (1,), capacity=4, device="cuda")
keys, serials = torch.zeros(64, 4).cuda(), torch.zeros(63, 3, 3, dtype=torch.int64).cuda()
table._engine.lookup(64, keys.data_ptr(), serials.data_ptr(), table._stream(), 1)
torch.cuda.synchronize()
PYTHON
  under memcheck planted.py >"$logs/planted.log" 2>&1 || true
  grep -q 'Invalid __global__ write' "$logs/planted.log"
}

# All at the same time: most of what they do is on the host.
sanitizers() {
  local said="" status=0 tool
  planted_fault &
  local planted=$! jobs=()
  for tool in memcheck racecheck initcheck synccheck; do
    sanitized_tests "$tool" >"$logs/$tool.log" 2>&1 &
    jobs+=("$tool" "$!")
  done
  set -- "${jobs[@]}"
  for (( ; $# > 0; )); do
    if wait "$2"; then
      said+="$1 ok; "
    else
      said+="$1 FAILED; " status=1
      grep -E '=====|^E  |FAILED|ERROR' "$logs/$1.log" | tail -12 || true
    fi
    shift 2
  done
  wait "$planted" && said+="a planted fault was noticed" || { said+="a planted fault WENT UNNOTICED" status=1; }
  echo "$said"
  return "$status"
}
export -f sanitized_tests planted_fault

bench() {
  pytest_in_tree -p pytest_benchmark.plugin -s tree/benchmarks --benchmark-json="$logs/benchmarks.json" "$@"
  "$run" tree/benchmarks/report.py "$logs/benchmarks.json" | tee "$logs/benchmarks.md"
}

gpu_bench() { cd tree/benchmarks && "$run" gpu.py --device "$device" --json "$logs/gpu.json" --markdown "$logs/gpu.md"; }

commit=$(git -C "$checkout" rev-parse --short HEAD 2>/dev/null || echo "${HASH3D_COMMIT:-unknown}")
note "hash3d GPU check, device $device, $(date -u +%Y-%m-%dT%H:%MZ), commit $commit"
stage 120 build build
stage 40 info info
stage 90 tests-cuda tests tree/tests/test_cuda.py
stage 150 gpu-benchmarks gpu_bench
stage 60 tests-no-wait tests tree/tests/test_cuda_hook.py
stage 60 tests-device tests tree/tests/test_cuda_device.py

cd "$checkout"
own='(keys|storage|operators|table_[a-z0-9]+)'
mapfile -t table_tests < <(ls tests/test_*.py | grep -E "/test_$own\.py$" | sed 's#^#tree/#')
mapfile -t more < <(ls tests/test_*.py | grep -vE "/test_($own|cuda|cuda_hook|cuda_device)\.py$" | sed 's#^#tree/#')
if [ "$device" = cpu ]; then # shortened
  table_tests=(tree/tests/test_keys.py tree/tests/test_table_cells.py tree/tests/test_table_oracle.py)
  more=(tree/tests/test_sds_settings.py tree/tests/test_hook_inputs.py tree/tests/test_cuda_calls.py)
fi
stage 100 tests-table tests "${table_tests[@]}"

if [ "$device" = cuda ] && command -v compute-sanitizer >/dev/null; then
  stage 120 sanitizers sanitizers
else
  left_out "sanitizers: $([ "$device" = cpu ] && echo 'no GPU is checked' || echo 'compute-sanitizer is not on the PATH')"
fi

if ! has pytest_benchmark; then
  left_out "benchmarks: the package pytest_benchmark is missing"
else
  which=(-k cuda)
  [ "$device" = cuda ] || which=(-k "lookup or (test_query and Zero123 and copy)")
  ignored=()
  for need in diffusers:hook diffusers:deepcache DeepCache:deepcache; do
    has "${need%:*}" && continue
    left_out "benchmarks: test_${need#*:}.py: no ${need%:*}"
    ignored+=(--ignore "tree/benchmarks/test_${need#*:}.py")
  done
  export HASH3D_BENCH_SIDE=${HASH3D_BENCH_SIDE:-16}
  stage 100 benchmarks bench "${which[@]}" "${ignored[@]}"
fi

stage 300 tests-rest tests "${more[@]}" # gets what time is left

note "$failed stage(s) failed or ran out of time, $SECONDS s"
keep
exit "$failed"
