# shellcheck shell=bash
# What first.sh and second.sh share: the folders, and parts with a time limit. They source it in the root.
dry=()
[ "${1:-}" = --dry ] && dry=(--dry)
python=${PYTHON:-python3} total=${TOTAL_SECONDS:-570} began=$SECONDS
export OUT=${OUT:-build/gpu/out} PYTHONUNBUFFERED=1
scratch=${GPU_SCRATCH:-build/gpu}
logs=$scratch/logs site=$scratch/site
rm -rf "${OUT:?}/logs" "$OUT/results.jsonl" "${logs:?}" "$scratch/go"
mkdir -p "$OUT" "$logs"
if [ ${#dry[@]} -gt 0 ]; then
    export CUDA_VISIBLE_DEVICES=
elif compgen -G '.whl/*.whl' >/dev/null; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" .whl/*.whl || exit 8
    site=$(cd "$site" && pwd)
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
"$python" -c 'import aiohttp, pytest, safetensors, torch, uvloop, service.web.app' ||
    { echo "a package is missing here: name it to prepare.sh" >&2; exit 8; }
if [ ${#dry[@]} -eq 0 ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo 'torch finds no CUDA device: nothing was measured (--dry tries the scripts without one)' >&2
    exit 9
fi

part() {  # NAME LIMIT COMMAND...: runs at most LIMIT seconds, within TOTAL_SECONDS; a failure ends no other part
    local name=$1 limit=$2 rest=$((total - SECONDS + began)) at=$((SECONDS - began)) code=0
    shift 2
    [ "$limit" -gt "$rest" ] && limit=$rest
    if [ "$limit" -lt 5 ]; then
        echo "== $name: left out, no time"
        return
    fi
    timeout -k 30 "$limit" "$@" >"$logs/$name.txt" 2>&1 || code=$?
    local to=$((SECONDS - began)) last
    last=$(tail -n 1 "$logs/$name.txt" | tr -cd '[:alnum:] .,:=()%/_-' | cut -c -100)
    printf '{"part": "ran", "name": "%s", "exit": %d, "from": %d, "to": %d, "last": "%s"}\n' \
        "$name" "$code" "$at" "$to" "$last" >>"$OUT/results.jsonl"
    echo "== $name: exit $code, from $at s to $to s: $last"
    [ "$code" -eq 0 ] || tail -n 15 "$logs/$name.txt"
}

finish() {  # copies the logs, prints the tables of docs/gpu.md that have results; fails if a part has failed
    mkdir -p "$OUT/logs" && cp "$logs"/* "$OUT/logs/"
    "$python" -m benchmarks.gpu_report "$OUT/results.jsonl"
    echo "$0: $((SECONDS - began)) s in all"
    ! grep -oE '("part": "failed"|.*"exit": [1-9]).{0,300}' "$OUT/results.jsonl"
}
