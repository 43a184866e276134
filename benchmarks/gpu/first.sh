#!/usr/bin/env bash
# Is it right, and how fast is a step? At most ten minutes; with --dry the same parts small, on a CPU.
# Every result is a line of $OUT/results.jsonl, as soon as it is there.
set -u
cd "$(dirname "$0")/../.." || exit 2
# shellcheck source=benchmarks/gpu/setup.sh
. benchmarks/gpu/setup.sh

module() { part "$1" "$2" "$python" -m "$3" "${@:4}" "${dry[@]}"; }

# Alone, for times that others would disturb: what the machine can do, and how long a cold server takes.
module machine 60 benchmarks.gpu.machine
module served 150 benchmarks.gpu.served

# Side by side: is it right? Meanwhile the kernels of the steps are compiled, one process a network.
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

# One after the other: how fast?
touch "$scratch/go"
wait "${steps[@]}"
small=()
[ ${#dry[@]} -gt 0 ] && small=(--rows 1)
module kernels 100 benchmarks.kernels "${small[@]}"
module engine 100 benchmarks.gpu.engine
module profile 60 benchmarks.gpu.profile_step
finish
