#!/bin/bash
# The engine under AddressSanitizer and UndefinedBehaviorSanitizer (the table's tests and a fuzz run), and its pool of
# threads under ThreadSanitizer. Each run is first shown to notice a planted error. Needs gcc and the build tools of
# pyproject.toml (cmake, ninja, pybind11) in the current environment, beside torch and the test tools. It builds in a
# temporary folder, from a copy of the sources, and leaves the checkout alone.
#
#   FUZZ=20000 SEED=7 bash tests/sanitize.sh    # operations and seed of the fuzz run; 4000 and 0 unless told
set -euo pipefail

source "$(dirname "$0")/build_tools.sh"
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 # Python never frees all; tests ask for too much on purpose
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1

# Python with the sanitizer's library loaded first, as an instrumented module inside a plain interpreter needs.
python_with_asan() {
  LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)" "$python" "$@"
}

say "building with AddressSanitizer and UndefinedBehaviorSanitizer"
configure "$work/asan" -DHASH3D_CUDA=OFF -DHASH3D_EMULATE=OFF -DHASH3D_SANITIZE=address,undefined
build "$work/asan" _C engine_threads
must_report heap-buffer-overflow "$work/asan/engine_threads" overrun
"$work/asan/engine_threads"
must_report heap-buffer-overflow python_with_asan - <<'PY'
import numpy
from hash3d_cuda import _C
source, target = numpy.zeros(64, "float32"), numpy.empty(63, "float32")
_C.to_float(0, source.ctypes.data, target.ctypes.data, 64)  # one number too many
PY
HASH3D_SIMD=baseline must_report "runtime error: .*misaligned" python_with_asan - <<'PY'
import numpy
from hash3d_cuda import _C
source, target = numpy.zeros(64, "float32"), numpy.empty(63, "float32")
assert _C.build_info()["simd"] == "baseline"
_C.to_float(1, source.ctypes.data + 1, target.ctypes.data, 8)  # halves at an odd address
PY
say "the table's tests"
python_with_asan -m pytest -q -s -p no:cacheprovider -k "$with_engine" tests/test_table_*.py tests/test_storage.py \
  tests/test_watch_native.py
say "a fuzz run on every instruction set"
python_with_asan - --operations "${FUZZ:-4000}" --seed "${SEED:-0}" <<'PY'
import fuzz_table
from hash3d_cuda import _C
for path in _C.build_info()["simd_paths"]:
    assert _C.use_simd(path)
    print(path, end=": ", flush=True)
    fuzz_table.main()
PY

say "building with ThreadSanitizer"
rm "$work"/tree/hash3d_cuda/_C.*.so
configure "$work/tsan" -DHASH3D_CUDA=OFF -DHASH3D_EMULATE=OFF -DHASH3D_SANITIZE=thread
build "$work/tsan" engine_threads
must_report "data race" "$work/tsan/engine_threads" race
"$work/tsan/engine_threads"
say "no error found"
