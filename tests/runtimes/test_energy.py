"""Energy counters of a made-up ``/sys/class``, as the kernel's documents describe them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.runtimes import energy


def _zone(root: Path, zone: str, **values: object) -> None:
    folder = root / "powercap" / zone
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name).write_text(f"{value}\n")


def _supply(root: Path, name: str, **values: object) -> None:
    folder = root / "power_supply" / name
    folder.mkdir(parents=True, exist_ok=True)
    for key, value in values.items():
        (folder / key).write_text(f"{value}\n")


def test_packages_and_memory_are_added_and_parts_are_not(tmp_path: Path) -> None:
    _zone(tmp_path, "intel-rapl:0", name="package-0", energy_uj=5_000_000, max_energy_range_uj=10_000_000)
    _zone(tmp_path, "intel-rapl:0:0", name="core", energy_uj=3_000_000, max_energy_range_uj=10_000_000)
    _zone(tmp_path, "intel-rapl:0:1", name="dram", energy_uj=1_000_000, max_energy_range_uj=10_000_000)
    before = energy.read(tmp_path)
    assert before.source == "RAPL package-0, dram"
    _zone(tmp_path, "intel-rapl:0", energy_uj=7_500_000)
    _zone(tmp_path, "intel-rapl:0:1", energy_uj=1_500_000)
    assert energy.spent(before, energy.read(tmp_path)) == pytest.approx(3.0)


def test_a_counter_that_starts_again_is_followed(tmp_path: Path) -> None:
    _zone(tmp_path, "intel-rapl:0", name="package-0", energy_uj=9_000_000, max_energy_range_uj=10_000_000)
    before = energy.read(tmp_path)
    _zone(tmp_path, "intel-rapl:0", energy_uj=500_000)
    assert energy.spent(before, energy.read(tmp_path)) == pytest.approx(1.5)


def test_the_platform_holds_its_packages(tmp_path: Path) -> None:
    _zone(tmp_path, "intel-rapl:0", name="package-0", energy_uj=1, max_energy_range_uj=10)
    _zone(tmp_path, "intel-rapl:1", name="psys", energy_uj=4_000_000, max_energy_range_uj=10)
    assert energy.read(tmp_path).source == "RAPL psys"


def test_a_battery_that_falls(tmp_path: Path) -> None:
    _supply(tmp_path, "AC", type="Mains", online=0)
    _supply(tmp_path, "BAT0", type="Battery", status="Discharging", charge_now=3_000_000, voltage_now=4_000_000)
    before = energy.read(tmp_path)
    assert before.source == "battery BAT0"
    _supply(tmp_path, "BAT0", charge_now=2_999_000)
    # 1 mAh at 4 V is 4 mWh, 14.4 J.
    assert energy.spent(before, energy.read(tmp_path)) == pytest.approx(14.4)
    _supply(tmp_path, "BAT0", energy_now=10_000_000)
    before = energy.read(tmp_path)
    assert energy.spent(before, energy.read(tmp_path)) is None, "a gauge that stands still tells nothing"


def test_what_can_t_be_told_says_why(tmp_path: Path) -> None:
    assert energy.read(tmp_path).reason == "there are no RAPL counters; there is no battery"
    _supply(tmp_path, "BAT0", type="Battery", status="Charging", energy_now=1)
    assert "on its charger" in energy.read(tmp_path).reason
    _zone(tmp_path, "intel-rapl:0", name="package-0")
    assert "root alone" in energy.read(tmp_path).reason
    nothing = energy.read(tmp_path)
    assert energy.spent(nothing, nothing) is None
