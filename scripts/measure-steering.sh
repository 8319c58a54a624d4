#!/bin/sh
# Measures how near a steered density comes to its target: the recipe is run once to find the weight that the target
# needs, then from a weight ten times too high and from one ten times too low. Each run's summary.json has the density of
# the kept model on up to 500 documents that no training example holds.
#
#   scripts/measure-steering.sh RECIPE TARGET OUT [train options]
#   scripts/measure-steering.sh configs/scifact.yaml '{doc_dims: 150}' runs/steering --set train.steps=300
#
# TARGET is what stands in `train.losses.flops.target`, without start_weight. Exit code 1 if a density is more than 10 % off.
set -eu
if [ $# -lt 3 ]; then
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
recipe=$1 target=${2%\}} out=$3
shift 3
nsparse=${NSPARSE:-nsparse}
missed=0

# number KEY FILE: the last number that stands behind a key.
number() { sed -n "s/.*\"$1\": *\([-0-9.e]*\).*/\1/p" "$2" | tail -n 1; }

run() { # NAME START_WEIGHT [train options]
    name=$1 start=$2
    shift 2
    "$nsparse" --quiet train "$recipe" --replace --set "run.dir=$out/$name" \
        --set "train.losses.flops.ramp_steps=0" --set "train.losses.flops.target=$target, start_weight: $start}" "$@" >/dev/null
    # In summary.json the density is the only object with a target.
    sed -n '/"density": {/,/}/p' "$out/$name/summary.json" >"$out/$name/density.json"
    mean=$(number mean "$out/$name/density.json") aim=$(number target "$out/$name/density.json")
    documents=$(number documents "$out/$name/density.json") held_out=$(number held_out "$out/$name/density.json")
    weight=$(number lambda "$out/$name/metrics.jsonl")
    off=$(awk "BEGIN { printf \"%+.1f\", 100 * ($mean / $aim - 1) }")
    echo "$name: from weight $start to $weight; density $mean, target $aim ($off %), $documents documents, $held_out in no example"
    awk "BEGIN { exit !($off > 10 || $off < -10) }" && missed=1
    return 0
}

run usual 1e-3 "$@"
found=$weight
run too-high "$(awk "BEGIN { print 10 * $found }")" "$@"
run too-low "$(awk "BEGIN { print $found / 10 }")" "$@"
exit $missed
