"""sscl doctor: what is installed, what this machine has, and whether training would work."""

from __future__ import annotations

from sscl.config import DoctorConfig
from sscl.doctor import findings, machine, packages
from sscl.doctor.findings import State


def main(config: DoctorConfig, *, json: bool = False) -> int:
    """Print what was found; nothing is imported here that may be broken.

    Returns:
        0 if training would work, else 1.
    """
    groups = packages.software()
    torch_works = all(one.state is not State.FAULT for one in groups["Software"] if one.name == "torch")
    groups["Computer"] = machine.computer(torch_works=torch_works)
    groups["Files"] = machine.files(config.cache_dir)
    report = findings.report(groups)
    if json:
        print(report.model_dump_json(indent=2))
    else:
        print("\n".join(findings.as_text(groups)))
    return 0 if report.works else 1
