#!/usr/bin/env bash
# Checks on a GPU that the kernels and images are right, and measures steps. It takes at most ten minutes. --dry runs
# the same parts with small sizes on a CPU. Every result is appended to $OUT/results.jsonl at once.
set -u
cd "$(dirname "$0")/../.." || exit 2
# shellcheck source=benchmarks/gpu/setup.sh
. benchmarks/gpu/setup.sh

module() { part "$1" "$2" "$python" -m "$3" "${@:4}" "${dry[@]}"; }

# One at a time, because other parts would disturb the times: the machine's rates, and the start of a server.
module machine 60 benchmarks.gpu.machine
module served 150 benchmarks.gpu.served

# The checks run at the same time. Meanwhile one process for each network compiles its steps.
checks=() steps=()
networks=(dit unet dit-full unet-full) small=()
if [ ${#dry[@]} -gt 0 ]; then
    networks=(dit unet) small=(--rows 1 --compiled 1)
fi
export TORCHINDUCTOR_COMPILE_THREADS=4  # of each of the four; as many as there are cores would slow the tests
for network in "${networks[@]}"; do
    module "steps-$network" 400 benchmarks.steps --models "$network" --after "$scratch/go" "${small[@]}" &
    steps+=($!)
done
mapfile -t files < <(grep -lr --include='*.py' 'mark\.gpu' tests/kernels tests/models tests/service)
pytest=("$python" -m pytest -q -m gpu -W default -p no:cacheprovider -p benchmarks.gpu.poison --tb=short)
part tests 200 "${pytest[@]}" "${files[@]}" &
checks+=($!)
module graphs 200 benchmarks.gpu.graphs &
checks+=($!)
if [ ${#dry[@]} -eq 0 ]; then
    part sanitizer 200 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 \
        "${pytest[@]}" -k bfloat16 tests/kernels &
    checks+=($!)
fi
wait "${checks[@]}"

# The times are measured one part after the other.
touch "$scratch/go"
wait "${steps[@]}"
small=()
[ ${#dry[@]} -gt 0 ] && small=(--rows 1)
module kernels 100 benchmarks.kernels "${small[@]}"
module engine 100 benchmarks.gpu.engine
module profile 60 benchmarks.gpu.profile_step
finish
