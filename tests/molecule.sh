#!/usr/bin/env bash
# Run molecule scenarios (all of them, or those named), some side by side, each with a log of its own, and say how they went.
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
    # One line a step, what the tests counted, their summary, and, when it failed, what was said last.
    sed -nE "s/^INFO +\[[^]]* > ([a-z_]+)\] (Executed: .*)/  $1: \1: \2/p; s/^counted: (.*)/  $1: \1/p; s/^([0-9]+ (passed|failed).*)/  $1: \1/p" "$log"
    if [[ $status -ne 0 ]]; then
        tail -n 150 "$log"
        echo "  $1: FAILED, all of it is in $log"
    fi
    return $status
}

# More at a time than there are cores: much of a scenario is waiting.
at_once=${MOLECULE_AT_ONCE:-$(($(nproc) + 1))}
running=0
failed=0
for scenario in "${scenarios[@]}"; do
    if [[ $running -ge $at_once ]]; then
        wait -n || failed=$((failed + 1))
        running=$((running - 1))
    fi
    run "$scenario" &
    running=$((running + 1))
done
while [[ $running -gt 0 ]]; do
    wait -n || failed=$((failed + 1))
    running=$((running - 1))
done
echo "$((${#scenarios[@]} - failed)) passed, $failed failed"
[[ $failed -eq 0 ]]
