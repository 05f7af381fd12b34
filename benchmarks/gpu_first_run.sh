#!/usr/bin/env bash
# Runs on a GPU what has only run without one: the tests, the sanitizers, and measurements. It takes about ten minutes,
# and needs no network if the folder WHEELS has what pip lacks:
#
#   pip download --dest WHEELS 'greenroom[cuda]' pytest pytest-timeout pytest-xdist hypothesis   # where there is one
#   benchmarks/gpu_first_run.sh OUT [MODEL ...]                                                  # where there is a GPU
#
# OUT gets a log of each part and report.json, one line. A part that fails does not end the others. DEVICE=cpu tries the
# script itself, on the emulated device. SECONDS_EACH (300) ends a part that takes longer.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: benchmarks/gpu_first_run.sh OUT [MODEL ...]}
shift
device=${DEVICE:-cuda}
mkdir --parents "$out"
out=$(cd "$out" && pwd)

python=${PYTHON:-python3}
if [[ -n ${WHEELS:-} ]]; then
    "$python" -m venv --system-site-packages "$out/venv"
    python=$out/venv/bin/python
    "$python" -m pip install --quiet --no-index --find-links "$WHEELS" --no-build-isolation '.[cuda]' \
        pytest pytest-timeout pytest-xdist hypothesis || exit 1
fi

failed=()
part() {  # NAME COMMAND...: runs a part with a log
    local name=$1
    shift
    echo "$name ..."
    timeout "${SECONDS_EACH:-300}" "$@" >"$out/$name.log" 2>&1 || { failed+=("$name"); tail -n 5 "$out/$name.log"; }
}

stores=(tests/expert_store/test_device_tier.py)
kernels=(tests/server/kernels/triton tests/server/model/test_fused_*.py --deselect tests/server/kernels/triton/test_compiled.py)
pytest=("$python" -m pytest -p no:cacheprovider -n0 -rs)
part doctor "$python" -m greenroom doctor
if [[ $device == cuda* ]]; then
    part driver nvidia-smi
    part gpu_tests "${pytest[@]}" -m gpu tests/expert_store tests/server/model tests/server/engine/sampling
    part order env TORCH_CUDA_SANITIZER=1 "${pytest[@]}" -m gpu "${stores[@]}"
    if command -v compute-sanitizer >/dev/null; then
        part memory compute-sanitizer --error-exitcode 9 "${pytest[@]}" "${kernels[@]}" -k "block_int4 or MXFP4 or decodes or normed"
    fi
else
    part gpu_tests "${pytest[@]}" "${stores[@]}"
fi
part kernels "${pytest[@]}" "${kernels[@]}"
echo "measurements ..."
timeout 600 "$python" -m benchmarks.gpu_first_run "$out" "$@" --device "$device" \
    >"$out/report.json" 2>"$out/measurements.log" || { failed+=(measurements); tail -n 5 "$out/measurements.log"; }
cat "$out/report.json"
if [[ ${#failed[@]} -gt 0 ]]; then
    echo "failed: ${failed[*]}; see the logs in $out" >&2
    exit 1
fi
