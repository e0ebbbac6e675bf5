"""What was counted, as a document and as the tables of docs/DETECTION.md."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from infra.detection.asking import REACH, How, Voters
from infra.detection.crashes import Speed, Times, When
from infra.detection.estimators import detects_s, estimators
from infra.detection.model import HOSTS, RACKS, RATES, Weather
from infra.detection.run import Results, Tally
from infra.detection.stages import Count, Stage
from infra.detection.walking import Profile

SCHEMA = "rekindle.detection.v1"
BAR_FALSE, BAR_SILENCE_S = 0.6, 10.0
"""What the issue asks of the balanced profile in normal weather: false verdicts a host-year, median of silence alone."""
TOLD = (Speed.PROOF, Stage.GUARD, Stage.SILENT, Speed.HUNG)
TOLD_FROM = 0.001
SAYS = {
    Speed.PROOF: "power reads off",
    Stage.GUARD: "power unreadable or on; storage and peers",
    Stage.SILENT: "silence only: no storage, too few voters",
    Speed.HUNG: "hangs for good: its kernel goes on, storage and peers",
}
HOW = {How.UP: "answered", How.LOSSY: "30 % lost", How.STARVED: "by the kernel only", How.CUT: "not answered"}
SLOT = {How.UP: "moves", How.LOSSY: "moves late", How.STARVED: "still", How.CUT: "still"}
VOTERS = {Voters.ALL: "", Voters.OTHER_RACKS: ", of other racks", Voters.NONE: "unheard"}


def quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that so great a share does not exceed; None of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def document(results: Results) -> dict[str, Any]:
    """All figures, rounded to what they bear. Nothing of the machine or the day is in it."""
    balanced = next(one for one in results.profiles if one.name == "balanced")
    profiles = {profile.name: _profile(profile, results) for profile in results.profiles}
    return {
        "schema": SCHEMA,
        "host_years": results.host_years,
        "seed": results.seed,
        "changed": results.changed,
        "bars": _bars(results),
        "profiles": profiles,
        "estimators": {
            "host_years": results.estimated[Weather.NORMAL].host_years,
            "interval_s": balanced.beats.interval_s,
            "rows": _estimators(results, balanced.beats.interval_s),
        },
    }


def _bars(results: Results) -> list[dict[str, Any]]:
    tally = results.tallies["balanced", Weather.NORMAL]
    false = round(tally.counts[Stage.GUARD].false / tally.host_years, 4)
    median = quantile(tally.times.get((When.ANYTIME, Stage.SILENT), Times()).found_s, 0.5)
    return [
        {"what": "false verdicts a host-year", "bar": BAR_FALSE, "found": false, "met": false <= BAR_FALSE},
        {
            "what": "median where only silence speaks, s",
            "bar": BAR_SILENCE_S,
            "found": _rounded(median),
            "met": median is not None and median <= BAR_SILENCE_S,
        },
    ]


def _profile(profile: Profile, results: Results) -> dict[str, Any]:
    tallies = {weather: results.tallies[profile.name, weather] for weather in Weather}
    stages = []
    for stage in Stage:
        times = tallies[Weather.NORMAL].times.get((When.ANYTIME, stage), Times())
        stages.append(
            {
                "stage": stage.value,
                "p50_s": _rounded(quantile(times.found_s, 0.5)),
                "p99_s": _rounded(quantile(times.found_s, 0.99)),
                **{weather.value: _count(tally, stage) for weather, tally in tallies.items()},
            }
        )
    crashes = [
        {"known": SAYS[what], "weather": weather.value, "when": when.value, **_times(tally.times, when, what)}
        for what in TOLD
        for weather, tally in tallies.items()
        for when in When
    ]
    return {"stages": stages, "crashes": crashes}


def _count(tally: Tally, stage: Stage) -> dict[str, Any]:
    count = tally.counts.get(stage, Count())
    return {
        "false": round(count.false / tally.host_years, 4),
        "cut_off": round(count.cut / tally.host_years, 4),
        "worst_minute": count.worst_minute,
        "causes": dict(sorted(count.causes.items(), key=lambda cause: (-cause[1], cause[0]))),
    }


def _times(times: dict[Any, Times], when: When, what: Stage | Speed) -> dict[str, Any]:
    found = times.get((when, what), Times())
    return {
        "p50_s": _rounded(quantile(found.found_s, 0.5)),
        "p99_s": _rounded(quantile(found.found_s, 0.99)),
        "crashes": len(found.found_s) + found.missed,
        "missed": found.missed,
        "rules": dict(sorted(found.rules.items())),
    }


def _estimators(results: Results, interval_s: float) -> list[dict[str, Any]]:
    rows = []
    for name, estimator in estimators(interval_s).items():
        false = {
            weather.value: round(found.counts[name] / found.host_years, 2)
            for weather, found in results.estimated.items()
        }
        p50_s, p99_s = (round(detects_s(estimator, interval_s, share), 2) for share in (0.5, 0.99))
        rows.append({"estimator": name, "p50_s": p50_s, "p99_s": p99_s, **false})
    return rows


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


# -- as text


def render(found: dict[str, Any], command: str) -> str:
    """Markdown. The same document gives the same text."""
    parts = [
        f"`{command}`: {found['host_years']:g} host-years in each weather, seed {found['seed']}. "
        + f"{HOSTS} hosts in {RACKS} racks. False verdicts and cut off are for each host-year.",
        *(f"Instead of the profiles' own: `{name}` {value:g}." for name, value in found["changed"].items()),
        "\n".join(_bar(bar) for bar in found["bars"]),
    ]
    for name, profile in found["profiles"].items():
        parts += [f"### Profile `{name}`", _stage_table(profile["stages"], found["host_years"])]
        parts += [_causes(profile["stages"]), _crash_table(profile["crashes"])]
    estimated = found["estimators"]
    parts += [
        "### Estimators alone",
        f"Heartbeats every {estimated['interval_s']:g} s, {estimated['host_years']:g} host-years in each weather; "
        + "each suspicion is taken for a verdict. Detection by the estimator's time-out after a clean window.",
        _table(
            ("estimator", "p50 s", "p99 s", *(weather.value for weather in Weather)),
            (
                (
                    row["estimator"],
                    _seconds(row["p50_s"]),
                    _seconds(row["p99_s"]),
                    *(_rate(row[weather], estimated["host_years"]) for weather in Weather),
                )
                for row in estimated["rows"]
            ),
        ),
    ]
    return "\n\n".join(part for part in parts if part)


def _bar(bar: dict[str, Any]) -> str:
    said = "met" if bar["met"] else "**not met**"
    found = "-" if bar["found"] is None else f"{bar['found']:g}"
    return f"- {bar['what']}, balanced, normal: {found}; the bar is {bar['bar']:g}: {said}"


def _stage_table(stages: list[dict[str, Any]], host_years: float) -> str:
    head = ("stage", "p50 s", "p99 s", *Weather, "cut off, calm / normal / stormy", "worst minute of 100")
    rows = []
    for row in stages:
        cells = [row[weather] for weather in Weather]
        rows.append(
            (
                row["stage"],
                _seconds(row["p50_s"]),
                _seconds(row["p99_s"]),
                *(_rate(cell["false"], host_years) for cell in cells),
                " / ".join(_rate(cell["cut_off"], host_years) for cell in cells),
                " / ".join(str(cell["worst_minute"]) for cell in cells),
            )
        )
    return _table(head, rows)


def _causes(stages: list[dict[str, Any]]) -> str:
    causes: Counter[str] = Counter(
        next(row for row in stages if row["stage"] == Stage.GUARD)[Weather.NORMAL]["causes"]
    )
    if not causes:
        return ""
    total = causes.total()
    told = [(cause, count) for cause, count in causes.most_common(4) if count >= TOLD_FROM * total]
    said = ", ".join(f"{cause} {_share(count, total)}" for cause, count in told)
    return f"Behind Rekindle's false verdicts in normal weather: {said}."


def _crash_table(crashes: list[dict[str, Any]]) -> str:
    rows = []
    for known in SAYS.values():
        of = {(row["weather"], row["when"]): row for row in crashes if row["known"] == known}
        columns = (
            (Weather.NORMAL, When.ANYTIME),
            (Weather.STORMY, When.ANYTIME),
            (Weather.NORMAL, When.FAULT),
        )
        cells = [of[key] for key in columns]
        rules: Counter[str] = Counter()
        for cell in of.values():
            rules += Counter(cell["rules"])
        lost = cells[-1]["missed"], cells[-1]["crashes"]
        rows.append(
            (
                known,
                ", ".join(f"{rule} {_share(count, rules.total())}" for rule, count in sorted(rules.items())),
                *(f"{_seconds(cell['p50_s'])} / {_seconds(cell['p99_s'])}" for cell in cells),
                f"{_share(*lost)}",
            )
        )
    head = (
        "crash, and what is known",
        "by rule",
        "any time, normal: p50 / p99 s",
        "any time, stormy",
        "during a fault, normal",
        "of these not within 10 min",
    )
    return _table(head, rows)


def faults() -> str:
    """The fault model, from its own table."""
    rows = []
    for rate in RATES:
        reach = REACH.get(rate.kind)
        own = peers = slot = ""
        if reach is not None:
            own = HOW[reach.own]
            peers = VOTERS[Voters.NONE]
            if reach.voters is not Voters.NONE:
                peers = HOW[reach.peers] + VOTERS[reach.voters]
            slot = " / ".join(dict.fromkeys((SLOT[reach.slot], SLOT[reach.converged])))
        rows.append(
            (rate.kind.value, rate.scope, f"{rate.a_year:g}", str(rate.length), rate.ours, own, peers, slot)
        )
    head = (
        "fault",
        "of each",
        "a year, normal",
        "length",
        "ours",
        "our question to its libvirt",
        "a peer's",
        "slot: separate / converged storage",
    )
    return _table(head, rows)


def replaced(text: str, name: str, fresh: str) -> str:
    """The text with what stands between the markers of that name replaced. Raises ValueError without markers."""
    result, many = re.subn(
        rf"(<!-- {name} -->\n).*(<!-- /{name} -->)",
        lambda found: f"{found[1]}{fresh}\n{found[2]}",
        text,
        flags=re.DOTALL,
    )
    if many != 1:
        raise ValueError(f"no markers <!-- {name} --> and <!-- /{name} -->")
    return result


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    ruler = [
        "---",
        *("---:" if "p50" in name or "p99" in name or name in list(Weather) else "---" for name in head[1:]),
    ]
    lines = [list(head), ruler, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _rate(value: float, host_years: float) -> str:
    """As many digits as it bears. None seen in n host-years: with 95 % certainty fewer than 3/n."""
    if value == 0.0:
        return f"< {3 / host_years:.1g}"
    for least, digits in ((100.0, 0), (10.0, 1), (1.0, 2)):
        if value >= least:
            return f"{value:.{digits}f}"
    return f"{value:.3f}"
