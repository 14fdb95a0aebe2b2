#!/bin/bash
# The CUDA kernels, unchanged, on the CPU (tests/emulation): the whole of the table's tests through them, then random
# calls beside the CPU backend under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, which sees a
# missing barrier. Planted faults show that they would be noticed. Needs gcc on x86-64 and the build tools of
# pyproject.toml in the current environment, beside torch and the test tools; no nvcc, no GPU.
#
#   ROUNDS=200 SEED=7 bash tests/emulate.sh    # random tables per sanitizer and their seed; 30 and 0 unless told
set -euo pipefail

source "$(dirname "$0")/build_tools.sh"
rounds=${ROUNDS:-30} seed=${SEED:-0}
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1

# plant FILE FROM TO: changes a kernel in the copy, until `mend FILE`.
plant() {
  cp "csrc/cuda/$1" "$work/sound"
  "$python" - "csrc/cuda/$1" "$2" "$3" <<'PY'
import sys
path, before, after = sys.argv[1:]
text = open(path).read()
assert before in text, f"{path} has no {before!r} any more: plant the fault elsewhere"
open(path, "w").write(text.replace(before, after, 1))
PY
}
mend() { cp "$work/sound" "csrc/cuda/$1"; }

say "the table's tests through the kernels"
configure "$work/plain" -DHASH3D_EMULATE=ON
build "$work/plain" _C engine_backends engine_conditional engine_launches
"$python" -m pytest -q -p no:cacheprovider -k "$with_engine" tests/test_table_*.py tests/test_storage.py
"$work/plain/engine_backends" $((10 * rounds)) "$seed"
"$work/plain/engine_conditional"
"$work/plain/engine_launches"

say "with AddressSanitizer and UndefinedBehaviorSanitizer"
configure "$work/asan" -DHASH3D_EMULATE=ON -DHASH3D_SANITIZE=address,undefined
plant store.cuh "i < end; i += kThreads" "i <= end; i += kThreads"
build "$work/asan" engine_backends
must_report heap-buffer-overflow "$work/asan/engine_backends" "$rounds" "$seed"
mend store.cuh
build "$work/asan" engine_backends engine_conditional engine_launches
"$work/asan/engine_backends" "$rounds" "$seed"
"$work/asan/engine_conditional"
"$work/asan/engine_launches"

say "with ThreadSanitizer"
configure "$work/tsan" -DHASH3D_EMULATE=ON -DHASH3D_SANITIZE=thread
plant weigh.cuh "  __syncthreads();
  return chosen;" "  return chosen;"
build "$work/tsan" engine_backends
must_report "data race" "$work/tsan/engine_backends" "$rounds" "$seed"
mend weigh.cuh
build "$work/tsan" engine_backends
"$work/tsan/engine_backends" "$rounds" "$seed"
say "no error found"
