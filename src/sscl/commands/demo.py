"""sscl demo: the whole method on synthetic polyps, with the commands that a user types."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

from sscl import run
from sscl.config import DemoConfig, plain

SHIPPED = Path(__file__).resolve().parents[3] / "configs" / "demo"


def main(config: DemoConfig, *, overwrite: bool = False) -> None:
    """Write synthetic tiles, audit their split, pretrain, fine-tune, evaluate, explain; ends with the page to open.

    Raises:
        ValueError: a step failed, or the folder to write exists.
        FileNotFoundError: the demo's YAML files are not there.
    """
    configs = Path(config.configs) if config.configs is not None else SHIPPED
    if not (configs / "pretrain.yaml").is_file():
        raise FileNotFoundError(f"configs: {configs} has no pretrain.yaml; run from a checkout, or give configs=FOLDER")
    folder = run.check_run_folder(config.run, overwrite=overwrite, trains=True)
    run.start_folder(folder, config=plain(config), overwrite=overwrite)
    started = time.perf_counter()
    for command in steps(configs, folder):
        print(f"\n$ sscl {shlex.join(command)}", flush=True)
        if subprocess.run([sys.executable, "-m", "sscl", *command], check=False).returncode != 0:
            raise ValueError(f"demo: `sscl {shlex.join(command)}` failed, see above")
    minutes = (time.perf_counter() - started) / 60
    panels = sorted((folder / "finetune" / "gradcam_test").glob("*_panel.png"))
    print(f"\ndone in {minutes:.1f} minutes. Open:")
    for what, path in (
        ("everything on one page", folder / "finetune" / "report.html"),
        ("the tiles", folder / "inspect" / "contact_sheet.png"),
        ("their two views", folder / "inspect" / "two_views.png"),
        ("pretraining", folder / "pretrain" / "curves.png"),
        ("fine-tuning", folder / "finetune" / "curves.png"),
        ("right and wrong", folder / "finetune" / "eval_test" / "confusion.png"),
        ("where the model looked", panels[0] if panels else folder / "finetune" / "gradcam_test"),
    ):
        print(f"  {what:<24}{path}")


def steps(configs: Path, folder: Path) -> list[list[str]]:
    """Return the commands, each as its words after `sscl`."""
    tiles, audit, pretrained, finetuned = (folder / name for name in ("tiles", "audit", "pretrain", "finetune"))

    def command(name: str, *overrides: str) -> list[str]:
        return [*name.split(), "--config", str(configs / f"{name.split()[-1]}.yaml"), *overrides]

    return [
        command("data synth", f"root={tiles}"),
        command("data inspect", f"data.root={tiles}", f"out={folder / 'inspect'}"),
        command("data audit", f"data.root={tiles}", f"out={audit}"),
        command("pretrain", f"data.root={tiles}", f"run={pretrained}"),
        command("finetune", f"data.root={tiles}", f"model.weights={pretrained}", f"run={finetuned}"),
        command("eval", f"checkpoint={finetuned}"),
        command("gradcam", f"checkpoint={finetuned}"),
        command("report", str(finetuned), str(audit)),
    ]
