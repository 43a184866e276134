#!/usr/bin/env bash
# Builds the image and runs it as in production: not root, read-only root, no capabilities, limits. Then asks it for
# a picture and its health, and stops it in the middle of a request. Ends with 0 if all of it went well.
#
#   docker/check-image.sh            the cpu target
#   docker/check-image.sh cuda       the cuda target; without a GPU as far as it goes
#
# With docker where its daemon answers, else with podman and buildah. Further arguments in the environment:
#   BUILD_FLAGS  for the build, as in BUILD_FLAGS='--build-arg BASE_DIGEST=@sha256:...'
#   RUN_FLAGS    for the run
#   PORT         on 127.0.0.1 (18000)
#   IMAGE        checks this image and builds none
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=${1:-cpu}
port=${PORT:-18000}
image=${IMAGE:-localhost/stepwise:check-$target}
name=stepwise-check-$$
folder=$(mktemp -d)
read -ra build_flags <<<"${BUILD_FLAGS:-}"
read -ra run_flags <<<"${RUN_FLAGS:-}"
# The flags that docs/deployment.md recommends. exec, because Triton loads what it compiled from there.
hardened=(--read-only --tmpfs "/tmp:exec,size=512m" --cap-drop ALL --security-opt no-new-privileges)
limits=(--memory 4g --cpus 2 --pids-limit 256 --env DIFFUSION_THREADS=2 --env DIFFUSION_DRAIN_SECONDS=50)

if docker info >/dev/null 2>&1; then engine=docker; else engine=podman; fi

clean_up() {
    "$engine" rm -f "$name" >/dev/null 2>&1 || true
    rm -rf "$folder"
}
trap clean_up EXIT

said() { printf '%-6s %s\n' "$1" "$2"; }

fail() {
    said FAILED "$1" >&2
    "$engine" logs "$name" 2>&1 | tail -20 >&2 || true
    exit 1
}

build() {
    local started=$SECONDS
    if [ "$engine" = docker ]; then
        docker build --target "$target" "${build_flags[@]}" -t "$image" .
    else # format docker, because OCI's has no health check
        buildah bud --format docker --layers --target "$target" "${build_flags[@]}" -t "$image" .
    fi >"$folder/build.log" 2>&1 || { tail -30 "$folder/build.log" >&2; said FAILED "build" >&2; exit 1; }
    said ok "built $image in $((SECONDS - started)) s"
}

start() {
    "$engine" run -d --name "$name" -p "127.0.0.1:$port:8000" "${hardened[@]}" "${limits[@]}" "${run_flags[@]}" \
        "$@" "$image" >/dev/null 2>"$folder/run.log" || { cat "$folder/run.log" >&2; fail "run"; }
    for _ in $(seq 240); do
        if curl -sf "http://127.0.0.1:$port/readyz" >/dev/null; then return; fi
        [ "$("$engine" inspect "$name" --format '{{.State.Running}}')" = true ] || fail "it ended at the start"
        sleep 0.5
    done
    fail "not ready within 120 s"
}

inside() { "$engine" exec "$name" python -c "$1"; }

is_confined() {
    [ "$(inside 'import os; print(os.getuid())')" = 10001 ] || fail "it does not run as 10001"
    [ "$(inside 'print(open("/proc/1/status").read().split("CapEff:")[1].split()[0].strip("0"))')" = "" ] ||
        fail "it has capabilities"
    if inside 'open("/app/new", "w")' 2>/dev/null; then fail "its root can be written to"; fi
    inside 'from importlib.util import find_spec; assert not any(map(find_spec, ("mlxtend", "pytest", "scipy")))' ||
        fail "the extras train or dev are in the image"
    said ok "uid 10001, no capabilities, read-only root, no extras of training and tests"
}

gives_a_picture() {
    local answer
    answer=$(curl -s -X POST "http://127.0.0.1:$port/generate?model=dit&class=3" -o "$folder/three.png" \
        -w '%{http_code} %{content_type}')
    [ "$answer" = "200 image/png" ] || fail "POST /generate: $answer"
    [ "$(head -c 8 "$folder/three.png" | od -An -tx1 | tr -d ' ')" = 89504e470d0a1a0a ] || fail "this is no PNG"
    said ok "POST /generate?model=dit&class=3: $answer, $(wc -c <"$folder/three.png") bytes"
}

is_healthy() {
    if [ "$engine" = podman ]; then # where there is no systemd, podman never asks by itself
        podman healthcheck run "$name" >/dev/null || fail "health check"
    else
        for _ in $(seq 30); do
            [ "$(docker inspect "$name" --format '{{.State.Health.Status}}')" = healthy ] && break
            sleep 1
        done
        [ "$(docker inspect "$name" --format '{{.State.Health.Status}}')" = healthy ] || fail "health check"
    fi
    said ok "healthy"
}

# A request of some seconds is on its way when SIGTERM comes: it gets its answer, and the process ends with 0.
drains() {
    local client code stopped
    curl -s -X POST "http://127.0.0.1:$port/generate?model=unet&class=3&steps=150" -o "$folder/grid.png" \
        -w '%{http_code}' >"$folder/code" &
    client=$!
    for _ in $(seq 100); do
        curl -sf "http://127.0.0.1:$port/metrics" | grep -q '^diffusion_running_slots{model="unet"} [1-9]' && break
        sleep 0.1
    done
    kill -0 "$client" 2>/dev/null || fail "the request was over before it could be interrupted"
    stopped=$SECONDS
    "$engine" stop -t 60 "$name" >/dev/null
    wait "$client" || fail "the open request was cut off"
    [ "$(cat "$folder/code")" = 200 ] || fail "the open request got $(cat "$folder/code")"
    code=$("$engine" inspect "$name" --format '{{.State.ExitCode}}')
    [ "$code" = 0 ] || fail "exit code $code"
    said ok "SIGTERM during a request: answered with 200, exit code 0, $((SECONDS - stopped)) s"
}

# Without a GPU the cuda image must say so at once. Its compiler is held to the one file that Triton gives it,
# against a libcuda that is empty: compiled and linked, but not loaded.
refuses_and_compiles() {
    local code=0 text
    text=$("$engine" run --rm "${hardened[@]}" "${run_flags[@]}" "$image" 2>&1) || code=$?
    [ "$code" = 2 ] || { echo "$text" >&2; fail "without a GPU it ended with $code, not 2"; }
    said ok "without a GPU: $(tail -1 <<<"$text")"
    # shellcheck disable=SC2016
    "$engine" run --rm "${hardened[@]}" "${run_flags[@]}" --entrypoint sh "$image" -c '
        mkdir /tmp/stub && echo | gcc -x c -shared -o /tmp/stub/libcuda.so.1 - && python -c "
from pathlib import Path
from triton.backends.nvidia import driver
from triton.runtime.build import _build
source = str(Path(driver.__file__).with_name(\"driver.c\"))
folders = [driver.libdevice_dir, \"/tmp/stub\"]
print(_build(\"cuda_utils\", source, \"/tmp\", folders, driver.include_dirs, driver.libraries, []))"' \
        >"$folder/compiled" 2>&1 || { cat "$folder/compiled" >&2; fail "Triton's launcher does not compile"; }
    said ok "gcc compiles and links Triton's launcher: $(tail -1 "$folder/compiled")"
}

[ -n "${IMAGE:-}" ] || build
said ok "$engine: $("$engine" image inspect "$image" --format '{{.Size}}') bytes"
if [ "$target" = cuda ] && ! command -v nvidia-smi >/dev/null; then
    refuses_and_compiles
    exit
fi
if [ "$target" = cuda ]; then
    if [ "$engine" = docker ]; then start --gpus all; else start --device nvidia.com/gpu=all; fi
else
    start
fi
is_confined
gives_a_picture
is_healthy
drains
