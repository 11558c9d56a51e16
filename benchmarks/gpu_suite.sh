#!/usr/bin/env bash
# Tests and measures kvtier on a machine with an NVIDIA GPU, and needs nothing from a network.
#
#     benchmarks/gpu_suite.sh [FOLDER]     writes FOLDER/gpu_<card>.json, FOLDER being benchmarks/results if not given
#
# Takes some 6 minutes on an H100. Needs Python 3.11 to 3.13 with NumPy and pytest, and PyTorch with CUDA for most of it;
# and either a C++20 compiler, CMake and nanobind, or a wheel of kvtier.
#
#     PYTHON         the interpreter; python3 if not given
#     KVTIER_WHEEL   a wheel made elsewhere by `pip wheel --no-deps .`, taken instead of building; none of kvtier's other
#                    dependencies are needed here. It must be of the same sources as this checkout
#     BENCH_GPU      options for bench_gpu.py, such as "--gib 4 --device 1"
#
# Exit code: 0, all was measured and every test passed; 1, tests failed, or the benchmark; 2, something is missing here;
# 3, there is no GPU to use. Results of tests that failed are written too, and say so.
set -euo pipefail

FOLDER=${1:+$(realpath -m "$1")}
[ -z "${KVTIER_WHEEL:-}" ] || KVTIER_WHEEL=$(realpath -m "$KVTIER_WHEEL")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly PYTHON=${PYTHON:-python3} WORK=$PWD/build/gpu_suite
readonly SITE=$WORK/site RESULTS=${FOLDER:-benchmarks/results}
export PYTHONUNBUFFERED=1 PYTHONSAFEPATH=1 PYTHONPATH="$SITE:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}"

say() { echo "gpu_suite: $*" >&2; }
end() { local code=$1; shift; say "$*"; exit "$code"; }
has() { "$PYTHON" -c "import $1" 2>/dev/null; }

need_python() {
  command -v "$PYTHON" >/dev/null || end 2 "there is no $PYTHON; PYTHON names another"
  "$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || end 2 "$PYTHON is not Python 3.11 to 3.13"
  local module
  for module in numpy pytest; do has "$module" || end 2 "$PYTHON lacks $module"; done
}

unpack_wheel() {
  [ -f "$KVTIER_WHEEL" ] || end 2 "KVTIER_WHEEL is $KVTIER_WHEEL, and there is no such file"
  "$PYTHON" -m zipfile -e "$KVTIER_WHEEL" "$SITE" || end 2 "$KVTIER_WHEEL can't be unpacked"
}

build() {
  command -v cmake >/dev/null && has nanobind ||
    end 2 "building takes CMake and nanobind, and one isn't here; KVTIER_WHEEL takes a wheel that was built elsewhere"
  say "building"
  local log=$WORK/build.log
  { cmake -S . -B "$WORK/cmake" -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$(command -v "$PYTHON")" &&
    cmake --build "$WORK/cmake" --parallel; } >"$log" 2>&1 || { tail -n 30 "$log" >&2; end 2 "it doesn't build; all of it: $log"; }
  cp -r kvtier "$SITE/kvtier"
  cp -r connectors "$SITE/kvtier/connectors"
  cp "$WORK"/cmake/_native*.so "$SITE/kvtier/"
}

need_gpu() {
  local reason
  reason=$("$PYTHON" -c 'from kvtier import _native; print(_native.CudaDriver.open().reason)') ||
    end 2 "kvtier's native module doesn't load"
  [ -z "$reason" ] || end 3 "$reason"
  "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null ||
    say "no PyTorch that can use the GPU: what needs one is skipped"
}

record() {  # date, commit and how the tests went, beside what was measured
  "$PYTHON" - "$WORK" "$RESULTS" "$(git describe --always --dirty --exclude="*" 2>/dev/null || echo unknown)" <<'PY'
import datetime
import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

work, results, commit = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
outcome = json.loads((work / "bench.json").read_text())
counts = ElementTree.parse(work / "tests.xml").getroot().find("testsuite").attrib
tests = {name: int(counts[name]) for name in ("tests", "failures", "errors", "skipped")}
date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
target = results / f"gpu_{re.sub('[^a-z0-9]+', '_', outcome['card'].lower()).strip('_')}.json"
target.write_text(json.dumps({"date": date, "commit": commit, "tests": tests} | outcome, indent=1) + "\n")
print(target)
PY
}

need_python
rm -rf "$SITE"
mkdir -p "$SITE" "$RESULTS"
if [ -n "${KVTIER_WHEEL:-}" ]; then unpack_wheel; else build; fi
need_gpu

say "tests"
tests=0
"$PYTHON" -m pytest -p no:cacheprovider -q -m gpu --junitxml="$WORK/tests.xml" tests/gpu >&2 || tests=$?
[ "$tests" -le 1 ] || end 1 "the tests couldn't run: pytest ended with $tests"

say "benchmark"
read -ra options <<<"${BENCH_GPU:-}"
"$PYTHON" benchmarks/bench_gpu.py --json "${options[@]}" >"$WORK/bench.json" || end 1 "bench_gpu.py ended with $?"
record
[ "$tests" -eq 0 ] || end 1 "some of the tests failed"
