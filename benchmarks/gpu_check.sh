#!/bin/bash
# The unattended check on a machine with an NVIDIA GPU: build, tests, sanitizers, benchmarks, all logged.
#
#   benchmarks/gpu_check.sh
#
#   OUT=FOLDER                where logs and summary.txt go (default: benchmarks/results/gpu-<name>-<date>)
#   HASH3D_WHEELS=FOLDER      wheels of packages that are missing here (diffusers, ...); no network is used
#   HASH3D_CHECK_DEVICE=cpu   the same stages, shortened, on a machine without a GPU: tests this script
#   PYTHON=python3            with torch, pybind11, cmake, ninja and pytest installed
#
# Every stage runs though others fail. The exit code is the number of stages that failed; what could not run because
# something is missing is listed as LEFT OUT. Stays below ten minutes.
set -uo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
device=${HASH3D_CHECK_DEVICE:-cuda}
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

gpu_name() { nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1 | tr -cs 'A-Za-z0-9\n' '-'; }
name=$([ "$device" = cuda ] && gpu_name || echo cpu)
out=${OUT:-$checkout/benchmarks/results/gpu-${name:-unknown}-$(date +%Y%m%d-%H%M%S)}
mkdir -p "$out" && out=$(cd "$out" && pwd)
: >"$out/summary.txt"
failed=0

note() { echo "$*" | tee -a "$out/summary.txt"; }
left_out() { note "LEFT OUT  $*"; }

# stage SECONDS NAME FUNCTION: in a shell of its own under a time limit; its output goes to NAME.log.
stage() {
  local start=$SECONDS status verdict=ok
  export -f "$3" has
  timeout -k 10 "$1" bash -uo pipefail -c "cd '$checkout' && $3" >"$out/$2.log" 2>&1
  status=$?
  [ "$status" -eq 0 ] || { verdict=FAILED; failed=$((failed + 1)); }
  note "$(printf '%-9s %-12s %4d s  exit %d' "$verdict" "$2" $((SECONDS - start)) "$status")"
  [ "$status" -eq 0 ] || tail -15 "$out/$2.log" | sed 's/^/    /'
}

has() { "$run" -c "import $1" >/dev/null 2>&1; }

build() {
  set -e
  "$python" -m venv --system-site-packages "$work/venv"
  # A venv of a venv sees only the system's packages: let it see those of the Python that made it, too.
  "$python" -c 'import site; print("\n".join(site.getsitepackages()))' \
    >"$("$run" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth"
  if [ -n "${HASH3D_WHEELS:-}" ]; then
    for wheel in "$HASH3D_WHEELS"/*.whl; do "$run" -m pip install --no-index --no-deps "$wheel" || echo "not installed: $wheel"; done
  fi
  cp -r "$checkout/csrc" "$checkout/python" "$checkout/hash3d_cuda" "$checkout"/*.toml "$checkout"/setup.py \
    "$checkout"/CMakeLists.txt "$checkout"/README.md "$checkout"/LICENSE "$checkout"/MANIFEST.in "$work/source"
  find "$work/source" -name '*.so' -delete
  "$run" -m pip install --no-index --no-deps --no-build-isolation -v "$work/source"
}

# From another folder, so that the package is the one just built; the checkout's own has no right to be imported.
info() {
  cd "$work" && "$run" -m hash3d_cuda.cli.main info 2>/dev/null
  "$run" -c 'import sys; from hash3d_cuda.cli.main import main; sys.exit(main(["info"]))'
  nvidia-smi
  [ "$check" = cpu ] || "$run" -c "
import torch; from hash3d_cuda import _C
assert torch.cuda.is_available(), 'torch sees no GPU'
assert _C.build_info()['cuda_devices'] > 0, 'the engine sees no GPU'
assert _C.build_info()['cuda'], 'the CUDA files were not compiled'"
}

tests() {
  cd "$work" && "$run" -m pytest -q -ra -p no:cacheprovider --rootdir "$work/tree" -c "$work/tree/pyproject.toml" $files
}

sanitizer() { # TOOL
  cd "$work" && PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 86 \
    --target-processes all "$run" -m pytest -q -x -p no:cacheprovider -c "$work/tree/pyproject.toml" $files
}
memcheck() { sanitizer memcheck; }
racecheck() { sanitizer racecheck; }

bench() {
  cd "$work" && "$run" -m pytest "$work/tree/benchmarks" -q -s -p no:cacheprovider -k "$pattern" \
    --benchmark-json="$out/benchmarks.json" && "$run" "$work/tree/benchmarks/report.py" "$out/benchmarks.json" >"$out/benchmarks.md"
}
