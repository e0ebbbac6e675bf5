"""Of a plan that makes room, what can be begun at once: whatever finds its room while nothing has left yet."""

from __future__ import annotations

from libs.planning.plan import Migration, Plan
from libs.planning.pool import Pool, Rooms


def begun_at_once(
    pool: Pool, failed: frozenset[str], plan: Plan
) -> tuple[frozenset[str], tuple[Migration, ...]]:
    """Who may start, and who may move. A VM that moves has its room on both hosts until it is through. Moves come
    first: each was planned to find its room once those before it are through, so the first one always does."""
    rooms = Rooms(pool, [pool.place[name] for name in failed if name in pool.place])
    moves = []
    for move in plan.migrations:
        vm, at = pool.vms[move.vm], pool.place[move.to]
        if rooms.fits(vm, at):
            rooms.put(vm, at)
            moves.append(move)
    starts = set()
    for start in plan.starts:
        vm, at = pool.vms[start.vm], pool.place[start.to]
        if rooms.fits(vm, at):
            rooms.put(vm, at)
            starts.add(start.vm)
    return frozenset(starts), tuple(moves)
