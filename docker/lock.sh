#!/usr/bin/env bash
# Writes docker/locks/cpu.txt and cuda.txt: every package of the images with its version and the hashes of its files,
# for Python 3.11 on Linux x86-64. Versions of direct dependencies come from constraints.txt; needs uv (pip install uv).
# TORCH_CPU says where PyTorch's CPU build is, by options of uv: --find-links FOLDER, where its index cannot be reached.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

lock() {
    local target=$1
    shift
    uv pip compile pyproject.toml --quiet --extra otel -c constraints.txt -o "docker/locks/$target.txt" \
        --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links --python-version 3.11 \
        --python-platform x86_64-manylinux_2_28 --custom-compile-command docker/lock.sh "$@"
}

lock cuda "$@"
# shellcheck disable=SC2086  # several options in one variable
lock cpu --extra cpu --no-emit-package triton ${TORCH_CPU:---torch-backend cpu} "$@"
