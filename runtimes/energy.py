"""Energy that a machine tells of: RAPL's counters, or a battery's. Runs on the target, with Python alone.

What is counted is the whole package (or the whole phone), with all that it does beside: idle power is in it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

SYS = Path("/sys/class")
_RAPL_PARTS = ("package", "dram", "psys")


@dataclass(frozen=True)
class Reading:
    """A reading of the counters.

    Attributes:
        source: What counts, such as ``RAPL package-0`` or ``battery BAT0``; empty for nothing.
        joules: By counter, since any moment.
        wraps_at: Where a counter starts again, in joules; 0 for never.
        reason: Why there is none.
    """

    source: str = ""
    joules: tuple[float, ...] = ()
    wraps_at: tuple[float, ...] = ()
    reason: str = ""


def read(root: Path = SYS) -> Reading:
    """The counters now.

    Args:
        root: Of the kernel's classes.
    """
    rapl = _rapl(root / "powercap")
    if rapl.source:
        return rapl
    battery = _battery(root / "power_supply")
    if battery.source:
        return battery
    return Reading(reason=f"{rapl.reason}; {battery.reason}")


def spent(before: Reading, after: Reading) -> float | None:
    """Joules between two readings; None where they can't tell.

    Example:
        >>> spent(Reading("x", (9.0,), (10.0,)), Reading("x", (1.5,), (10.0,)))
        2.5
    """
    if not before.source or before.source != after.source or len(before.joules) != len(after.joules):
        return None
    total = 0.0
    for start, end, wraps_at in zip(before.joules, after.joules, before.wraps_at, strict=True):
        total += end - start + (wraps_at if end < start else 0.0)
    # A battery that is charged gains, and one that counts in large units stands still.
    return total if total > 0 else None


def _rapl(folder: Path) -> Reading:
    """Intel's and AMD's running average power limit (Linux, Documentation/power/powercap): microjoules."""
    names, joules, wraps = [], [], []
    locked = False
    for zone in sorted(folder.glob("intel-rapl:*")):
        # Below a package are its parts, counted in it already; memory stands beside it.
        name = _text(zone / "name")
        if name is None or not name.startswith(_RAPL_PARTS) or (zone.name.count(":") > 1 and name != "dram"):
            continue
        value = _number(zone / "energy_uj")
        if value is None:
            locked = True
            continue
        names.append(name)
        joules.append(value / 1e6)
        wraps.append((_number(zone / "max_energy_range_uj") or 0) / 1e6)
    if "psys" in names:  # the platform as a whole holds the others
        keep = names.index("psys")
        return Reading("RAPL psys", (joules[keep],), (wraps[keep],))
    if names:
        return Reading(f"RAPL {', '.join(names)}", tuple(joules), tuple(wraps))
    return Reading(
        reason="RAPL's counters can be read by root alone (energy_uj)" if locked else "there are no RAPL counters"
    )


def _battery(folder: Path) -> Reading:
    """A battery's charge (Linux, Documentation/ABI/testing/sysfs-class-power): microwatt-hours, or microampere-hours."""
    for supply in sorted(folder.glob("*")):
        if _text(supply / "type") != "Battery":
            continue
        if _text(supply / "status") in ("Charging", "Full"):
            return Reading(reason=f"the battery {supply.name} is on its charger")
        energy = _number(supply / "energy_now")
        if energy is None:
            charge, voltage = _number(supply / "charge_now"), _number(supply / "voltage_now")
            charge = charge if charge is not None else _number(supply / "charge_counter")
            energy = charge * voltage / 1e6 if charge is not None and voltage is not None else None
        if energy is not None:
            # What is left falls: turned round it counts what was spent.
            return Reading(f"battery {supply.name}", (-energy * 3600 / 1e6,), (0.0,))
        return Reading(reason=f"the battery {supply.name} does not tell its energy")
    return Reading(reason="there is no battery")


def _text(path: Path) -> str | None:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8").strip()
    return None


def _number(path: Path) -> float | None:
    text = _text(path)
    with contextlib.suppress(TypeError, ValueError):
        return float(text)  # type: ignore[arg-type]
    return None
