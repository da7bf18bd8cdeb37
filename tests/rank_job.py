"""torchrun's job of two ranks of `sscl`, forked by its agent from this process, which imports what both need.

`python rank_job.py FOLDER WORDS...`; each rank leaves the number of its process in FOLDER/RANK.pid.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch._dynamo
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import sscl.commands.pretrain
import sscl.train.step  # noqa: F401
from sscl.cli import main


def work(folder: str, words: list[str]) -> None:
    torch.set_num_threads(1)
    Path(folder, f"{os.environ['RANK']}.pid").write_text(str(os.getpid()))
    sys.exit(main(words))


if __name__ == "__main__":
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="job",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # what --standalone asks for
        max_restarts=0,
        start_method="fork",
    )
    elastic_launch(config, work)(sys.argv[1], sys.argv[2:])
