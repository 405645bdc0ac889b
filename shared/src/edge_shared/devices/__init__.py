"""Device profiles: what a board has, with the source of each figure. One TOML file per device; users add theirs by path."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_shared.errors import InputError
from edge_shared.files import read_text


class Device(BaseModel):
    """A board. Sizes in bytes, clock in Hz; ``flash_total`` 0 means storage without a fixed limit (an SD card)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str = ""
    kind: Literal["mcu", "linux"]
    core: str = ""
    cores: int = Field(default=1, gt=0)
    clock_hz: int = Field(gt=0)
    ram_total: int = Field(gt=0)
    ram_largest_region: int = Field(gt=0)
    flash_total: int = Field(default=0, ge=0)
    reserved_ram: int = Field(default=0, ge=0)
    reserved_flash: int = Field(default=0, ge=0)
    weight_placement: Literal["flash", "ram"] = "flash"
    memory_model: Literal["A", "B", "C", "D", "E"] = "D"
    caches: dict[str, int] = Field(default_factory=dict)
    sources: tuple[str, ...] = ()

    @property
    def ram_budget(self) -> int:
        """Bytes that one contiguous arena may take."""
        return self.ram_largest_region - self.reserved_ram

    @property
    def flash_budget(self) -> int | None:
        """Bytes that weights and code may take; None where there is no fixed limit."""
        return self.flash_total - self.reserved_flash if self.flash_total else None


def names() -> tuple[str, ...]:
    """Names of the profiles that come with the package."""
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in files(__package__).iterdir() if entry.name.endswith(".toml")))


def load(name_or_path: str | Path) -> Device:
    """A profile by name, or from a TOML file of one's own.

    Raises:
        InputError: for an unknown name, unreadable TOML, or a field that is missing, unknown or out of range.
    """
    text = str(name_or_path)
    if text.endswith(".toml") or "/" in text:
        content, where = read_text(text, "device profile"), text
    elif text in names():
        content, where = (files(__package__) / f"{text}.toml").read_text(encoding="utf-8"), text
    else:
        raise InputError(f"unknown device {text!r}; known: {', '.join(names())}, or the path of a TOML file")
    try:
        device = Device.model_validate(tomllib.loads(content))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"device profile {where} is no TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"device profile {where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if device.ram_largest_region > device.ram_total or device.reserved_ram >= device.ram_largest_region:
        raise InputError(f"device profile {where}: needs reserved_ram < ram_largest_region <= ram_total")
    return device
