"""sscl demo: the whole method on synthetic polyps, with the commands that a user would type."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from sscl import children, run
from sscl.config import DemoConfig, shipped


def main(config: DemoConfig, *, overwrite: bool = False) -> None:
    """Write synthetic tiles, audit their split, pretrain, fine-tune, evaluate, explain, report; name the files to open.

    Raises:
        ValueError: a step failed, or the folder to write exists.
        FileNotFoundError: one of the demo's YAML files is missing.
    """
    folder = Path(config.run)
    commands = steps(config.configs, folder)
    for command in commands:
        if command[0] != "compare":  # of two finished runs, which needs no config
            shipped.find(command[2 if command[0] == "data" else 1], key="configs")
    started = time.perf_counter()
    with run.holding(folder):
        run.start_folder(folder, config, overwrite=overwrite)
        for command in commands:
            print(f"\n$ sscl {shlex.join(command)}", flush=True)
            if children.run_command(command) != 0:
                raise ValueError(f"demo: `sscl {shlex.join(command)}` failed; its message is above")
    minutes = (time.perf_counter() - started) / 60
    panels = sorted((folder / "finetune" / "gradcam_test").glob("*_panel.png"))
    print(f"\ndone in {minutes:.1f} minutes. Open:")
    for what, path in (
        ("everything on one page", folder / "finetune" / "report.html"),
        ("the tiles", folder / "inspect" / "contact_sheet.png"),
        ("their two views", folder / "inspect" / "two_views.png"),
        ("pretraining curves", folder / "pretrain" / "curves.png"),
        ("few labels, with and without", folder / "few-against-scratch" / "compare.md"),
        ("fine-tuning curves", folder / "finetune" / "curves.png"),
        ("confusion matrix", folder / "finetune" / "eval_test" / "confusion.png"),
        ("where the model looked", panels[0] if panels else folder / "finetune" / "gradcam_test"),
    ):
        print(f"  {what:<30}{path}")


def steps(configs: str, folder: Path) -> list[list[str]]:
    """Return the commands, each as its words after `sscl`.

    Args:
        configs: a folder of YAML files, or of shipped configs; a folder that exists wins.
        folder: where everything is written.
    """
    tiles, audit, pretrained, finetuned = (folder / name for name in ("tiles", "audit", "pretrain", "finetune"))
    few, scratch, both = (folder / name for name in ("few", "scratch", "few-against-scratch"))
    ending = ".yaml" if Path(configs).is_dir() else ""

    def command(name: str, *overrides: str) -> list[str]:
        words = name.split()
        return [*(words if words[0] == "data" else words[:1]), f"{configs}/{words[-1]}{ending}", *overrides]

    return [
        command("data synth", str(tiles)),
        command("data inspect", str(tiles), f"out={folder / 'inspect'}"),
        command("data audit", str(tiles), f"out={audit}"),
        command("pretrain", str(tiles), f"run={pretrained}"),
        command("finetune few", str(tiles), f"from={pretrained}", f"run={few}"),
        command("finetune few", str(tiles), "model.weights=null", f"run={scratch}"),
        ["compare", str(scratch), str(few), f"out={both}"],
        command("finetune", str(tiles), f"from={pretrained}", f"run={finetuned}"),
        command("eval", str(finetuned)),
        command("gradcam", str(finetuned)),
        command("report", str(finetuned), str(both), str(audit)),
    ]
