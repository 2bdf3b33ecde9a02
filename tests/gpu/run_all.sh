#!/bin/sh
# Everything that needs a GPU, in ten minutes: doctor, the gpu tests, counters, kernels, a quick
# profile, and a short trace under every scheduler with random weights.
#
#   tests/gpu/run_all.sh [--dry-run] [PART ...]
#
# Parts are named as --dry-run prints them; "serve" is serve-trace under each scheduler. Results and
# a log of each part go to $OUT (results/h200). No network, nothing installed: $PYTHON (python3)
# runs the checkout. A part that fails or takes too long stops nothing; summary.txt tells, and the
# exit code: 0 all is well, 1 a part failed, 2 no GPU or something missing.
# $TOTAL (570) is how many seconds all of it may take, $MODEL (llama-3.1-8b) what is served.

set -u
cd "$(dirname "$0")/../.." || exit 2
OUT=${OUT:-results/h200}
PYTHON=${PYTHON:-python3}
MODEL=${MODEL:-llama-3.1-8b}
TOTAL=${TOTAL:-570}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1

dry=no
wanted=
for word in "$@"; do
    case $word in
        --dry-run) dry=yes ;;
        -*) echo "run_all.sh: unknown option $word (--dry-run, or names of parts)" >&2; exit 2 ;;
        *) wanted="$wanted $word" ;;
    esac
done

began=$(date +%s)
failed=0
ran=0
known=

chosen() { # KIND: whether to run such parts
    known="$known $1"
    [ -z "$wanted" ] && return 0
    case "$wanted " in *" $1 "*) return 0 ;; esac
    return 1
}

note() { # NAME STATUS SECONDS
    printf '%-22s %-12s %5s s\n' "$1" "$2" "$3" >>"$OUT/summary.txt"
}

part() { # NAME MOST_SECONDS COMMAND...
    name=$1 most=$2
    shift 2
    ran=$((ran + 1))
    if [ "$dry" = yes ]; then
        echo "$name (at most $most s): $*"
        return
    fi
    start=$(date +%s)
    left=$((began + TOTAL - start))
    if [ "$left" -le 0 ]; then
        note "$name" "no time" 0
        failed=$((failed + 1))
        return
    fi
    [ "$most" -lt "$left" ] && left=$most
    echo "$name ..."
    timeout -k 10 "$left" "$@" >"$OUT/logs/$name.log" 2>&1
    status=$?
    case $status in
        0) text=ok ;;
        124 | 137) text="time limit" ;;
        *) text="failed ($status)" ;;
    esac
    [ "$status" -eq 0 ] || failed=$((failed + 1))
    note "$name" "$text" $(($(date +%s) - start))
    tail -n 3 "$OUT/logs/$name.log" | cut -c1-200 | sed 's/^/    /'
}

if [ "$dry" = no ]; then
    mkdir -p "$OUT/logs" || exit 2
    : >"$OUT/summary.txt"
    "$PYTHON" -m tests.gpu.machine >"$OUT/machine.json" 2>"$OUT/logs/machine.log" || {
        cat "$OUT/logs/machine.log" >&2
        exit 2
    }
fi

chosen doctor && part doctor 40 "$PYTHON" -m nexusbench doctor --device cuda
# Without tests/conftest.py, which sets the interpreter up and needs hypothesis.
chosen tests && part tests 200 "$PYTHON" -m pytest -m gpu -vv -rs --confcutdir=tests/gpu \
    -p no:cacheprovider tests/gpu/test_partitions.py tests/gpu/test_kernels.py \
    tests/gpu/test_counters.py tests/gpu/test_gpu_device.py
chosen counters && part counters 40 "$PYTHON" -m tests.gpu.cross_check \
    --output "$OUT/counters.json" --record "$OUT/cupti.json"
chosen kernels && part kernels 90 "$PYTHON" -m tests.benchmarks.gpu_kernels --quick \
    --output "$OUT/kernels.json"
chosen profile && part profile 120 "$PYTHON" -m nexusbench profile --quick --device cuda \
    --model "$MODEL" --load-format dummy --no-progress --output "$OUT/profile"
if chosen serve; then
    schedulers=$("$PYTHON" -c 'if True:
        from nexusbench.schedulers.base import schedulers
        print(*[name for name in schedulers.names() if schedulers.load(name).num_gpus == 1])
    ') || { echo "run_all.sh: the schedulers cannot be listed" >&2; failed=$((failed + 1)); }
    for scheduler in $schedulers; do
        part "serve-$scheduler" 60 "$PYTHON" -m nexusbench serve-trace workloads/mixed.jsonl \
            --device cuda --model "$MODEL" --load-format dummy --scheduler "$scheduler" \
            --limit 24 --rate 4 --no-progress --results "$OUT/runs"
    done
fi

for word in $wanted; do
    case "$known " in *" $word "*) ;; *)
        echo "run_all.sh: there is no part $word; there are:$known" >&2
        exit 2
        ;;
    esac
done
[ "$dry" = yes ] && exit 0
echo "parts: $ran, failed: $failed, $(($(date +%s) - began)) s" >>"$OUT/summary.txt"
cat "$OUT/summary.txt"
[ "$failed" -eq 0 ]
