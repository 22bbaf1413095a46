#!/bin/sh
# Every GPU row of docs/benchmarks.md by one command, on a machine with an NVIDIA GPU:
#
#     benchmarks/run_gpu.sh OUT [--dry-run]
#
# Into the folder OUT: a JSON file and a Markdown table for each comparison, results.md with all tables, and what was measured on.
# --dry-run makes the same calls at toy sizes on the CPU, to see that the script itself works; its numbers mean nothing.
set -eu
[ $# -ge 1 ] || { echo "usage: $0 OUT [--dry-run]" >&2; exit 2; }
out=$1; here=$(cd "$(dirname "$0")/.." && pwd); python=${PYTHON:-python}
mkdir -p "$out"
if [ "${2:-}" = --dry-run ]; then
    device=cpu; widths=16; batches=8; steps=1; rounds=1; modes=eager,bf16; presets=seed3
else
    device=cuda; widths="256 512"; batches=128; steps=50; rounds=5
    modes=eager,networks,graphs,bf16,networks+bf16,graphs+bf16; presets="seed3 seed0"
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv > "$out/gpu.csv"
fi
"$python" -c 'import datetime, torch; print(datetime.date.today(), "torch", torch.__version__, "CUDA", torch.version.cuda)' > "$out/versions.txt"

# Correctness first: compiled against eager losses over 50 steps.
if [ $device = cuda ]; then
    "$python" -m pytest -q "$here/tests/engine/test_compiled.py" > "$out/correctness.txt" 2>&1 || { cat "$out/correctness.txt"; exit 1; }
fi

for preset in $presets; do
    for width in $widths; do
        name=step-$preset-$width
        "$python" "$here/benchmarks/train_loop.py" --device $device --preset "$preset" --width "$width" --batch $batches --steps $steps \
            --rounds $rounds --modes $modes --json "$out/$name.json" > "$out/$name.md"
    done
done
if [ $device = cuda ]; then  # seed 0 as it is: D 512 wide, G 736
    "$python" "$here/benchmarks/train_loop.py" --device cuda --preset seed0 --width 0 --batch 128 --steps 50 --rounds 5 --modes $modes \
        --json "$out/step-seed0-whole.json" > "$out/step-seed0-whole.md"
fi
{
    echo "# GPU"; echo; cat "$out/versions.txt"; [ -f "$out/gpu.csv" ] && cat "$out/gpu.csv"
    for table in "$out"/step-*.md; do echo; cat "$table"; done
    [ ! -f "$out/correctness.txt" ] || { echo; echo "Compiled against eager: $(tail -1 "$out/correctness.txt")"; }
} > "$out/results.md"
cat "$out/results.md"
