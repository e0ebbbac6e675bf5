"""Misfortunes of many hosts at once, and of one again and again."""

from __future__ import annotations

from libs.sim.drawing import Draw, Step


def storm(draw: Draw) -> list[Step]:
    """Many hosts at once: a switch that fails, or a rack without power."""
    chance = draw.chance
    many = chance.sample(draw.hosts, max(1, round(len(draw.hosts) * chance.uniform(0.4, 0.9))))
    if chance.random() < 0.5:
        steps: list[Step] = [{**draw.when(), "do": "partition", "groups": [many, ["bus"]]}]
        if chance.random() < 0.5:
            steps.append({"at_s": round(draw.at_s + chance.uniform(2.0, 10.0), 3), "do": "heal"})
        return steps
    do = chance.choice(("power_off", "crash", "hang"))
    return [{"at_s": round(draw.at_s + chance.uniform(0, 0.5), 3), "do": do, "host": host} for host in many]


def released(draw: Draw) -> list[Step]:
    """An operator releases a storm: in its midst, while it grows, or where there is none yet. Early in the day, so
    that there is time for what follows."""
    chance, hosts = draw.chance, draw.hosts
    if len(hosts) < 3:
        return storm(draw)
    began_s = round(min(draw.at_s, chance.uniform(1.5, 3.0)), 3)
    believable = (len(hosts) - 1) // 2
    # one that is left must be heard beside the one that follows: where nobody is heard nobody is judged at all
    most = max(2, len(hosts) - 2)
    many = chance.sample(hosts, chance.randint(min(believable + 1, most), most))
    others = [host for host in hosts if host not in many]
    word_s = round(began_s + chance.choice((1.0, 2.2, 2.2, 3.0)) * chance.uniform(1.0, 1.3), 3)
    steps: list[Step] = [
        {"at_s": began_s, "do": "partition", "groups": [many, ["bus", *others]]},
        *({"at_s": began_s, "do": "break_fencing", "host": host, "how": "dead"} for host in many),
        {"at_s": word_s, "do": "release_storm"},
    ]
    if chance.random() < 0.8:  # one more, which the operator did not see
        one = chance.choice(others)
        rest = [host for host in others if host != one]
        cut_s = round(max(began_s, word_s + chance.uniform(-1.4, 0.8)), 3)
        steps.append({"at_s": cut_s, "do": "partition", "groups": [[one], ["bus", *rest]]})
    fate = chance.random()
    if fate < 0.2:
        steps.append({"at_s": round(word_s + chance.uniform(0.5, 6.0), 3), "do": "heal"})
    elif fate < 0.5:
        later_s = round(word_s + chance.uniform(0.0, 1.0), 3)
        killed: Step = {"service": "detector", "replica": chance.randrange(draw.replicas)}
        steps.append({"at_s": later_s, "do": "kill_service", **killed})
    return steps


def flapping(draw: Draw) -> list[Step]:
    """A host fails again and again, and then another has to give its VMs to somebody. Now and then an operator lets
    the first one in again."""
    chance, host = draw.chance, draw.host()
    at_s = round(min(draw.at_s, chance.uniform(1.5, 4.5)), 3)
    steps: list[Step] = []
    for number in range(chance.choice((2, 2, 3))):
        again_s = round(at_s + number * chance.uniform(2.2, 3.4), 3)
        steps.append({"at_s": again_s, "do": "reboot", "host": host, "how": "fast"})
    other = chance.choice([one for one in draw.hosts if one != host])
    off_s = round(steps[-1]["at_s"] + chance.uniform(-1.0, 3.0), 3)
    steps.append({"at_s": off_s, "do": "power_off", "host": other})
    if chance.random() < 0.3:
        steps.append({"at_s": round(off_s + chance.uniform(0.0, 4.0), 3), "do": "readmit", "host": host})
    return steps


def rack(draw: Draw) -> list[Step]:
    """A rack at once: its power or its switch; and now and then one host of it is spared."""
    if not draw.racks:
        return storm(draw)
    chance = draw.chance
    hosts = list(draw.racks[chance.choice(sorted(draw.racks))])
    if len(hosts) > 1 and chance.random() < 0.4:
        hosts.remove(chance.choice(hosts))
    if chance.random() < 0.3:
        cut: Step = {**draw.when(), "do": "partition", "groups": [hosts, ["bus"]]}
        return [cut, {"at_s": draw.soon(2.0, 9.0), "do": "heal"}]
    for_good = {"how": "for_good"} if chance.random() < 0.3 else {}
    return [{"at_s": draw.soon(0.0, 0.3), "do": "power_off", "host": host, **for_good} for host in hosts]
