#!/usr/bin/env bash
# Compares the service under load with plain servers. It takes at most ten minutes; --dry runs it small on a CPU.
set -u
cd "$(dirname "$0")/../.." || exit 2
# shellcheck source=benchmarks/gpu/setup.sh
. benchmarks/gpu/setup.sh

ulimit -n 16384 2>/dev/null
module() { part "$1" "$2" "$python" -m "$3" "${@:4}" "${dry[@]}"; }
module machine 60 benchmarks.gpu.machine
module load $((total - 60)) benchmarks.gpu.load
finish
