#!/bin/bash
# The unattended check on a machine with an NVIDIA GPU: build, tests, sanitizers, benchmarks; no network.
#
#   benchmarks/gpu_check.sh
#
#   OUT=FOLDER                where logs, summary.txt, <name>.json and <name>.md go (default: benchmarks/results/gpu-<name>-<date>)
#   HASH3D_WHEELS=FOLDER      wheels of packages that are missing here (diffusers, ...)
#   HASH3D_CHECK_DEVICE=cpu   the same stages, shortened, on a machine without a GPU: this is how the script is tested
#   HASH3D_CHECK_PATIENCE=1   multiplies every time limit, for a machine that is busy
#   PYTHON=python3            one with torch, pybind11, cmake, ninja, pytest and pytest-benchmark
#
# Every stage runs though others fail. The exit code is the number of stages that failed; what could not run because
# something is missing is listed as LEFT OUT. All of it ends within ten minutes: late stages get what time is left.
set -uo pipefail

export checkout work python device out run
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
device=${HASH3D_CHECK_DEVICE:-cuda}
patience=${HASH3D_CHECK_PATIENCE:-1}
python=$(command -v "${PYTHON:-python3}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
run=$work/venv/bin/python
export PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HASH3D_TEST_DEVICES=$device
if [ "$device" = cuda ]; then # for this GPU only: a quicker build
  export CUDAARCHS=${CUDAARCHS:-$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1 | tr -d .)}
  [ -n "$CUDAARCHS" ] || unset CUDAARCHS
fi
export PATH=$(dirname "$python"):/usr/local/cuda/bin:$PATH # cmake and ninja beside python, nvcc, compute-sanitizer

name=cpu
[ "$device" = cpu ] || name=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1 | tr -cs 'A-Za-z0-9\n' '-')
out=${OUT:-$checkout/benchmarks/results/gpu-${name:-none}-$(date +%Y%m%d-%H%M%S)}
mkdir -p "$out" && out=$(cd "$out" && pwd)
: >"$out/summary.txt"
failed=0

note() { echo "$*" | tee -a "$out/summary.txt"; }
left_out() { note "LEFT OUT   $*"; }
has() { "$run" -c "import $1" >/dev/null 2>&1; }

# stage LIMIT NAME FUNCTION [ARGUMENTS]: in a shell of its own, LIMIT seconds at most; its output goes to NAME.log.
stage() {
  local limit=$(($1 * patience)) left=$((590 * patience - SECONDS))
  [ "$limit" -le "$left" ] || limit=$((left > 5 ? left : 5))
  local log=$out/$2.log start=$SECONDS verdict=ok status
  shift 2
  export -f "$1"
  timeout -k 10 "$limit" bash -euo pipefail -c 'cd "$work"; "$@"' - "$@" >"$log" 2>&1
  status=$?
  if [ "$status" -ne 0 ]; then
    verdict=FAILED
    failed=$((failed + 1))
  fi
  note "$(printf '%-10s %-26s %4d s   %s' "$verdict" "$(basename "$log" .log)" $((SECONDS - start)) "$(tail -1 "$log" | cut -c1-120)")"
  [ "$status" -eq 0 ] || tail -20 "$log" | sed 's/^/    | /'
}

# A copy of the checkout, so that the package that is imported is the one that was built.
build() {
  mkdir tree
  (cd "$checkout" && cp -r csrc python hash3d_cuda tests benchmarks examples docs ./*.toml setup.py CMakeLists.txt \
    README.md LICENSE MANIFEST.in "$work/tree")
  find tree -name '*.so' -delete
  "$python" -m venv --system-site-packages --without-pip venv # its own setuptools would be an old one
  # A venv made from a venv sees only the system's packages; let it see those of its maker too.
  "$python" -c 'import site; print("\n".join(site.getsitepackages()))' >"$("$run" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth"
  for wheel in "${HASH3D_WHEELS:-/nonexistent}"/*.whl; do
    [ -e "$wheel" ] || continue
    "$run" -m pip install --no-index --no-deps "$wheel" || echo "not installed: $wheel"
  done
  "$run" -m pip install --no-index --no-deps --no-build-isolation --ignore-installed -v ./tree && {
    cp venv/lib/python*/site-packages/hash3d_cuda/_C*.so tree/hash3d_cuda # some tests look at the checkout's package
    return
  }
  echo "pip could not build it (setuptools too old?); with cmake alone:"
  cmake -G Ninja -S tree -B build -DCMAKE_BUILD_TYPE=Release -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$work/tree/hash3d_cuda" \
    -DPython_EXECUTABLE="$run" -Dpybind11_DIR="$("$run" -c 'import pybind11; print(pybind11.get_cmake_dir())')" \
    -DHASH3D_CUDA=$([ "${HASH3D_CUDA:-1}" = 0 ] && echo OFF || echo ON)
  cmake --build build --target _C
  echo "$work/tree" >"$("$run" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/built.pth"
  touch without-pip
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

tests() {
  pytest_in_tree --durations=5 "$@"
}

# A process per file, as many at a time as there are cores.
tests_apart() {
  one() { pytest_in_tree "$1" || [ $? -eq 5 ]; } # 5: everything in it is skipped
  export -f one
  printf '%s\0' "$@" | xargs -0 -n 1 -P "$(nproc)" bash -c 'one "$1"' -
}

# The kernels under a tool of compute-sanitizer; torch's own allocator would hide reads past the end of a block.
sanitizer() {
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 86 --target-processes all \
    "$run" -m pytest -q -x -p no:cacheprovider -c tree/pyproject.toml tree/tests/test_cuda.py tree/tests/test_table_chains.py \
    tree/tests/test_table_nonfinite.py -k "(test_cuda or engine-cuda) and not graph and not 50000"
}

bench() {
  pytest_in_tree -s tree/benchmarks --benchmark-json="$out/benchmarks.json" "$@"
  "$run" tree/benchmarks/report.py "$out/benchmarks.json" | tee "$out/benchmarks.md"
}
export -f pytest_in_tree

gpu_bench() {
  (cd tree/benchmarks && "$run" gpu.py --device "$device" --json "$out/gpu.json") | tee "$out/gpu.md"
}

# The result in one place: what ran, and the figures.
result() {
  "$run" - "$out" "$name" <<'PYTHON'
import json, sys
from pathlib import Path
out, name = Path(sys.argv[1]), sys.argv[2]
read = lambda file: json.loads((out / file).read_text()) if (out / file).exists() else None
summary = (out / "summary.txt").read_text()
found = {"summary": summary.splitlines(), "gpu": read("gpu.json"), "benchmarks": read("benchmarks.json")}
(out / f"{name}.json").write_text(json.dumps(found, indent=1))
pages = [(out / page).read_text() for page in ("gpu.md", "benchmarks.md") if (out / page).exists()]
(out / f"{name}.md").write_text("\n\n".join(["```text\n" + summary + "```", *pages]) + "\n")
PYTHON
}

note "hash3d GPU check, device $device, $(date -u +%Y-%m-%dT%H:%MZ), commit $(git -C "$checkout" rev-parse --short HEAD 2>/dev/null || echo unknown)"
stage 120 build build
stage 30 info info

[ ! -e "$work/without-pip" ] || left_out "pip install: it failed; the package was built with cmake alone, see build.log"

# What the tests import decides which of them can run here: one collection tells.
timeout $((60 * patience)) "$run" -m pytest -q --collect-only -p no:cacheprovider --rootdir "$work/tree" -c "$work/tree/pyproject.toml" \
  "$work/tree/tests" >"$out/collect.log" 2>&1
broken=$(sed -nE 's#^ERROR .*tests/(test_[a-z0-9_]+\.py).*#\1#p' "$out/collect.log" | sort -u)
for file in $broken; do
  left_out "tests/$file does not import: $(grep -A40 "_ ERROR collecting .*$file" "$out/collect.log" | grep -m1 -E '^E ' | sed 's/^E *//')"
done
runnable() { for file in "$@"; do grep -qx "$file" <<<"$broken" || echo "tree/tests/$file"; done; }
mapfile -t all < <(cd "$checkout/tests" && ls test_*.py | grep -vxE "test_cuda(_hook|_device)?.py")
mapfile -t table_tests < <(runnable $(printf '%s\n' "${all[@]}" | grep -E '^test_(keys|storage|public_api|table_.*)\.py$'))
mapfile -t more < <(runnable $(printf '%s\n' "${all[@]}" | grep -vE '^test_(keys|storage|public_api|table_.*)\.py$'))
if [ "$device" = cpu ]; then # shortened
  table_tests=(tree/tests/test_keys.py tree/tests/test_table_cells.py)
  more=(tree/tests/test_sds_settings.py)
fi
stage 60 tests-cuda tests tree/tests/test_cuda.py
stage 60 tests-no-wait tests tree/tests/test_cuda_hook.py
stage 60 tests-device tests tree/tests/test_cuda_device.py
stage 120 tests-table tests_apart "${table_tests[@]}"
[ ${#more[@]} -eq 0 ] || stage 150 tests-rest tests_apart "${more[@]}"
for part in tests-cuda tests-no-wait tests-device; do
  ! grep -q skipped "$out/$part.log" || left_out "$part: some or all were skipped, see $part.log"
done

if [ "$device" = cuda ] && command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck initcheck synccheck; do stage 40 "$tool" sanitizer "$tool"; done
else
  left_out "compute-sanitizer: $([ "$device" = cpu ] && echo 'no GPU is checked' || echo 'the tool is not on the PATH')"
fi

stage 120 gpu-benchmarks gpu_bench

if ! has pytest_benchmark; then
  left_out "benchmarks: the package pytest_benchmark is missing"
elif [ "$device" = cpu ]; then
  stage 120 benchmarks bench --ignore tree/benchmarks/test_hook.py --ignore tree/benchmarks/test_deepcache.py -k "lookup or (test_query and Zero123 and copy)"
else
  ignored=()
  has diffusers || ignored+=(--ignore tree/benchmarks/test_hook.py --ignore tree/benchmarks/test_deepcache.py)
  has DeepCache || ignored+=(--ignore tree/benchmarks/test_deepcache.py)
  [ ${#ignored[@]} -eq 0 ] || left_out "benchmarks: ${ignored[*]//--ignore tree\/benchmarks\//}: diffusers or DeepCache is missing"
  HASH3D_BENCH_SIDE=${HASH3D_BENCH_SIDE:-16} stage 240 benchmarks bench "${ignored[@]}"
fi

note "$failed stage(s) failed; logs in $out"
result
exit "$failed"
