"""The sections of a run as an MNE `Report`: the page that MNE's users know, in one file, to which they can add their own."""

from __future__ import annotations

import html
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_shared.files import atomic_path
from edge_shared.report import Result, Section, Table

from tinyeeg.recording import Recording

if TYPE_CHECKING:
    from mne import Report


def build(folder: str | Path, title: str, sections: Sequence[Section], recordings: Sequence[Recording], result: Result | None) -> Report:
    """An MNE `Report` of these sections, of the first recording with its states, and of the settings.

    Args:
        folder: holds the PNG files of the figures that the sections name.
        title: of the page.
        sections: in order; each becomes one section of the report.
        recordings: the first labelled one is shown as MNE shows a `Raw`.
        result: its settings and notes are added; a warning if the data are synthetic.
    """
    import mne

    folder = Path(folder)
    report = mne.Report(title=title, verbose="error")
    if result is not None and result.data is not None and result.data.synthetic:
        report.add_html(
            "<p><strong>These data are synthetic: made up by a program, not measured.</strong></p>", "Synthetic", tags=("note",)
        )
    for section in sections:
        body = "".join(f"<p>{_inline(text)}</p>" for text in re.split(r"\n\s*\n", section.text.strip()) if text)
        body += _table(section.table) if section.table is not None else ""
        tag = re.sub(r"\W+", "-", section.title.casefold())
        if body:
            report.add_html(body, section.title, section=section.title, tags=(tag,))
        for name in section.figures:
            report.add_image(folder / f"{name}.png", name.capitalize(), section=section.title, tags=(tag,))
    first = next((recording for recording in recordings if recording.stretches()), None)
    if first is not None:
        with warnings.catch_warnings(action="ignore"), mne.utils.use_log_level("error"):  # of MNE's own figures
            report.add_raw(first.to_raw(), f"Recording {first.name}", psd=True, butterfly=False)
    if result is not None:
        report.add_code(result.model_dump_json(indent=1, include={"command", "seed", "settings", "notes"}), "Settings", language="json")
    report.add_sys_info("Versions")
    return report


def write(folder: str | Path, title: str, sections: Sequence[Section], recordings: Sequence[Recording], result: Result | None) -> Path:
    """Write `build`'s report as ``report.html``, in place of an earlier one."""
    folder = Path(folder)
    report = build(folder, title, sections, recordings, result)
    with atomic_path(folder / "report.html") as temporary:
        # MNE looks at the ending of the name.
        page = temporary.with_name(f"{temporary.name}.html")
        report.save(page, open_browser=False, overwrite=True, verbose="error")
        page.replace(temporary)
    return folder / "report.html"


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    rows = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in table.rows)
    return f'<table class="table table-sm"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return html.escape(str(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
