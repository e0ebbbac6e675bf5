#!/bin/bash
# Every test: `make test`. First what holds deadlines of real time, alone; then what does not, side by side.
#
# real    tests with deadlines, nothing beside them: worlds that ran at the lowest share there is still took half a
#         processor from whoever ran on its other thread, and deadlines were missed. More workers than processors, since
#         they mostly wait, but fewer on a slow machine (infra/workers.py; REKINDLE_WORKERS says how many otherwise);
#         long tests begin first, and tests that share a lab or a server of their module's stay together (tests/conftest.py)
# soak    one lab for ten minutes, under full load: the worlds beside it, and busy loops for what those leave
# worlds  simulated, without deadlines
set -u
cd "$(dirname "$0")/.."
pytest=.venv/bin/pytest
soak=tests/lab/test_soak.py::test_no_suspicion_becomes_a_verdict_under_load_loss_and_changes_of_leader
told=$(mktemp -d)
beside=()

end() {
	# by SIGINT, so that the soak takes its lab down; both are gone already after a run to the end
	[ ${#beside[@]} = 0 ] || { kill -INT -- "${beside[@]/#/-}" 2>/dev/null && wait "${beside[@]}"; }
	rm -rf "$told"
}
trap end EXIT
trap 'exit 130' INT TERM

infra/compiled.sh lab
.venv/bin/python -m infra.lab.prepare || exit 1
workers=${REKINDLE_WORKERS:-$(.venv/bin/python -m infra.workers)} || exit 1
"$pytest" tests --ignore tests/simulation --ignore tests/golden --deselect "$soak" -q \
	-n "$workers" --dist loadgroup --no-loadscope-reorder
failed=$?

export REKINDLE_SOAK_MINUTES=${REKINDLE_SOAK_MINUTES:-10}
echo "simulated worlds, and beside them ${REKINDLE_SOAK_MINUTES} minutes of soak"
REKINDLE_LOADED=1 setsid "$pytest" "$soak" -q >"$told/soak" 2>&1 &
beside+=($!)
REKINDLE_SEEDS=2000 setsid "$pytest" tests/simulation tests/golden -q -n 2 --dist worksteal --timeout 900 >"$told/worlds" 2>&1 &
beside+=($!)
for part in "${beside[@]}"; do
	wait "$part" || failed=1
done
cat "$told/worlds" "$told/soak"
exit "$failed"
