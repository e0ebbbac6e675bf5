#!/bin/bash
# Every test, in three parts side by side, since real processes mostly wait: `make test`.
#
# soak    one lab for ten minutes, beside all else: the other tests are its load, which it measures
# worlds  simulated, without deadlines: they get what the others leave, by their nice value and as a session (autogroup),
#         since services and hosts are sessions of their own
# real    all else, with deadlines
set -u
cd "$(dirname "$0")/.."
pytest=.venv/bin/pytest
soak=tests/lab/test_soak.py::test_no_suspicion_becomes_a_verdict_under_load_loss_and_changes_of_leader
told=$(mktemp -d)

end() {
	# by SIGINT, so that the soak takes its lab down; both are gone already after a run to the end
	kill -INT -- "-$soaking" "-$playing" 2>/dev/null && wait "$soaking" "$playing"
	rm -rf "$told"
}

export REKINDLE_SOAK_MINUTES=${REKINDLE_SOAK_MINUTES:-10}
REKINDLE_LOADED=1 setsid "$pytest" "$soak" -q >"$told/soak" 2>&1 &
soaking=$!
REKINDLE_SEEDS=2000 setsid sh -c 'echo 19 >/proc/self/autogroup; exec nice -n 19 "$@"' sh \
	"$pytest" tests/simulation tests/golden -q -n 2 --dist worksteal --timeout 900 >"$told/worlds" 2>&1 &
playing=$!
trap end EXIT
trap 'exit 130' INT TERM

"$pytest" tests --ignore tests/simulation --ignore tests/golden --deselect "$soak" -q -n 2 --dist worksteal
failed=$?
for part in "$soaking" "$playing"; do
	wait "$part" || failed=1
done
cat "$told/worlds" "$told/soak"
exit "$failed"
