"""The charts of the heatmap checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sscl import writing
from sscl.plots import cam as cam_plots


def write_checks(found: dict[str, Any], *, out: Path, title: str) -> list[str]:
    """Write checks.json and the charts; return the names of the files. What could not be judged has no chart."""
    writing.write_json(out / "checks.json", found)
    names = ["checks.json"]
    charts = {"randomisation": cam_plots.plot_randomisation, "deletion_insertion": cam_plots.plot_deletion_insertion}
    for name, plot in (charts | {"box_sensitivity": cam_plots.plot_box_sensitivity}).items():
        if found[name]["passed"] is not None or (name == "randomisation" and found[name]["tiles"]):
            plot(found[name], path=out / f"{name}.png", title=f"{title}, {found[name]['tiles']} tiles")
            names.append(f"{name}.png")
    return names
