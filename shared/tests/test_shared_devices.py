from __future__ import annotations

from pathlib import Path

import pytest
from edge_shared import devices
from edge_shared.errors import InputError


def test_all_profiles_load_and_name_their_sources() -> None:
    assert len(devices.names()) == 11
    for name in devices.names():
        device = devices.load(name)
        assert device.name == name
        assert device.sources
        assert 0 < device.ram_budget <= device.ram_total


def test_known_figures() -> None:
    assert devices.load("stm32f746").ram_total == 320 * 1024
    assert devices.load("stm32h743").ram_budget == 512 * 1024
    assert devices.load("pi-4b").flash_budget is None


def test_own_profile_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nkind = "mcu"\nclock_hz = 1000000\nram_total = 2048\nram_largest_region = 1024\nreserved_ram = 24\n')
    assert devices.load(path).ram_budget == 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "is no TOML"),
        ('name = "x"\nkind = "mcu"\nclock_hz = 1\nram_total = 10\nram_largest_region = 20\n', "ram_largest_region <= ram_total"),
        ('name = "x"\nkind = "toaster"\nclock_hz = 1\nram_total = 10\nram_largest_region = 10\n', "kind"),
        ('name = "x"\nkind = "mcu"\nclock_hz = 1\nram_total = 10\nram_largest_region = 10\nrom = 3\n', "rom"),
    ],
)
def test_bad_profiles(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        devices.load(path)


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(InputError, match="stm32f746"):
        devices.load("toaster")
