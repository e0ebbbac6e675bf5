"""What the profiles set, as a table for docs/DETECTION.md."""

from __future__ import annotations

from libs.config.settings import PROFILES, Settings

ONE_HOST = [{"name": "h1", "uri": "qemu:///system"}]


def as_table() -> str:
    """Every setting that some profile changes, with its value in each."""
    profiles = {
        name: Settings.model_validate({"profile": name, "hosts": ONE_HOST}).model_dump(mode="json")
        for name in PROFILES
    }
    changed = sorted(
        {(section, key) for values in PROFILES.values() for section in values for key in values[section]}
    )
    rows = [f"| setting | {' | '.join(profiles)} |", f"|---|{'---:|' * len(profiles)}"]
    for section, key in changed:
        values = " | ".join(f"{tree[section][key]:g}" for tree in profiles.values())
        rows.append(f"| `{section}.{key}` | {values} |")
    return "\n".join(rows)
