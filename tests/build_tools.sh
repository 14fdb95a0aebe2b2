# For sanitize.sh and emulate.sh, which source it: a copy of the sources in $work/tree, the current folder from then on,
# and how to build it. The checkout is left alone.
#
#   BUILDS=FOLDER    builds there and leaves it behind: the other script compiles only what the first has not
root=$(cd "$(dirname "$0")/.." && pwd)
work=${BUILDS:-$(mktemp -d)}
[ -n "${BUILDS:-}" ] || trap 'rm -rf "$work"' EXIT
python=${PYTHON:-python}
export OMP_NUM_THREADS=1
export PYTHONPATH="$work/tree:$work/tree/tests" # before an installed hash3d_cuda
# What the oracle does alone has none of this build's code in it, and is what the whole suite runs.
with_engine="not oracle-cpu"

mkdir -p "$work/tree"
# With the times of the sources, by which ninja tells what was compiled from them.
cp -Rp "$root"/{CMakeLists.txt,pyproject.toml,csrc,python,hash3d_cuda,tests} "$work/tree/"
rm -f "$work"/tree/hash3d_cuda/_C.*.so
cd "$work/tree"

say() { printf -- '-- %s\n' "$*"; }

# configure FOLDER OPTION...: prepares a build of the copied tree, its module to go into the tree. Over an earlier one,
# what comes out alike is not compiled again.
configure() {
  local folder=$1
  shift
  cmake -G Ninja -S "$work/tree" -B "$folder" -DCMAKE_BUILD_TYPE=Release -DHASH3D_TESTS=ON "$@" \
    -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$work/tree/hash3d_cuda" -DPython_EXECUTABLE="$(command -v "$python")" \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" >"$folder.log" 2>&1 || { cat "$folder.log" >&2; return 1; }
}

# build FOLDER TARGET...
build() {
  local folder=$1
  shift
  cmake --build "$folder" --target "$@" >>"$folder.log" 2>&1 || { cat "$folder.log" >&2; return 1; }
}

# must_report WHAT COMMAND...: the command has to fail with WHAT in its output.
must_report() {
  local what=$1
  shift
  if "$@" >"$work/report" 2>&1 || ! grep -q "$what" "$work/report"; then
    echo "a planted error went unnoticed: no \"$what\" from: $*" >&2
    cat "$work/report" >&2
    return 1
  fi
  say "noticed: $what"
}
