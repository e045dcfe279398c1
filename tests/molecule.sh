#!/usr/bin/env bash
# Run molecule scenarios (all of them, or those named) side by side, each with a log of its own, and say how they went.
set -uo pipefail
cd "$(dirname "$0")/.."

export MOLECULE_GLOB='molecule/*/molecule.yml' NO_COLOR=1 ANSIBLE_NOCOLOR=1
mkdir -p .cache/molecule
scenarios=("$@")
[[ ${#scenarios[@]} -gt 0 ]] || mapfile -t scenarios < <(cd molecule && dirname -- */molecule.yml)

run() {
    local log=.cache/molecule/$1.log
    # State of its own in this checkout: molecule's default is shared by all checkouts of one name.
    MOLECULE_EPHEMERAL_DIRECTORY=$PWD/.cache/molecule/$1 molecule test --scenario-name "$1" --no-command-borders \
        >"$log" 2>&1
    local status=$?
    # One line a step, the tests' own summary, and, when it failed, what was said last.
    sed -nE "s/^INFO +\[[^]]* > ([a-z_]+)\] (Executed: .*)/  $1: \1: \2/p; s/^([0-9]+ (passed|failed).*)/  $1: \1/p" "$log"
    if [[ $status -ne 0 ]]; then
        tail -n 150 "$log"
        echo "  $1: FAILED, all of it is in $log"
    fi
    return $status
}

pids=()
for scenario in "${scenarios[@]}"; do
    run "$scenario" &
    pids+=($!)
done
failed=0
for pid in "${pids[@]}"; do
    wait "$pid" || failed=$((failed + 1))
done
echo "$((${#scenarios[@]} - failed)) passed, $failed failed"
[[ $failed -eq 0 ]]
