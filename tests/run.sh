#!/usr/bin/env bash
# Run the named steps one after the other, all of them; end non-zero when one failed.
set -uo pipefail
cd "$(dirname "$0")/.."

declare -A target_of=([lint]=lint [unit]=test-unit [cores]=test-cores [modules]=test-modules [package]=test-package [chaos]=test-chaos [molecule]=test-molecule)
passed=0 failed=0
summary=""
for step in "$@"; do
    printf '\n== %s: make %s\n' "$step" "${target_of[$step]}"
    started=$SECONDS
    if make "${target_of[$step]}"; then
        passed=$((passed + 1)) outcome=passed
    else
        failed=$((failed + 1)) outcome=FAILED
    fi
    summary+=$(printf '  %-10s %-7s %4d s' "$step" "$outcome" $((SECONDS - started)))$'\n'
done
printf '\n== summary (steps)\n%s' "$summary"
echo "$passed passed, $failed failed"
[[ $failed -eq 0 ]]
