#!/usr/bin/env bash
# Run this before you copy the repository to a machine with a GPU and no network. It downloads wheels of packages that
# a machine with CUDA and torch seldom has to .whl/, and writes the commit to .whl/COMMIT. Copy that folder, too.
#   bash benchmarks/gpu/prepare.sh [FURTHER PACKAGES]       e.g. aiohttp pillow prometheus-client pytest safetensors
# For another Python than 3.12 there: PYTHON_VERSION=3.13.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
rm -rf .whl && mkdir .whl

fetch() {  # NAME[==VERSION] ...: wheels for x86-64, without what they need
    "$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: -d .whl \
        --python-version "${PYTHON_VERSION:-3.12}" --implementation cp --platform manylinux_2_28_x86_64 \
        --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux1_x86_64 "$@"
}
pinned() {  # NAME ...: NAME==VERSION where the project pins it
    local name
    for name in "$@"; do
        cat constraints.txt benchmarks/serving/others/fastapi.txt |
            sed -nE "s/^($name==[^ ;]+).*/\1/p" | grep -m 1 . || echo "$name"
    done
}
metadata() { unzip -p "$1" '*/METADATA'; }

mapfile -t wanted < <(pinned fastapi starlette uvicorn pydantic pydantic-settings msgspec uvloop httptools \
    python-multipart "$@")
fetch "${wanted[@]}" annotated-doc annotated-types anyio click h11 idna opentelemetry-api python-dotenv \
    typing-extensions typing-inspection
# pydantic wants one version of its core exactly
core=$(metadata .whl/pydantic-[0-9]*.whl | sed -nE 's/^Requires-Dist: pydantic[-_]core *\(?==([^;) ]+).*/\1/p')
fetch "pydantic-core==$core"
{ git rev-parse HEAD && git status --porcelain; } >.whl/COMMIT
du -h .whl/*
