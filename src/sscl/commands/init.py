"""sscl init: looks at tiles, and writes the YAML files that sscl train runs."""

from __future__ import annotations

import os
from pathlib import Path

from sscl import run, writing
from sscl.config import DataConfig, FinetuneConfig, InitConfig
from sscl.data.ingest import each_line_once
from sscl.device import pick_device
from sscl.places import printable
from sscl.project import files, look, settings
from sscl.records import write_record
from sscl.train.labelled import labelled_tiles
from sscl.words import next_command, wrapped


def main(config: InitConfig, *, overwrite: bool = False) -> None:
    """Print what was found in the tiles, and write a YAML file a stage.

    Raises:
        ValueError, FileNotFoundError: the tiles cannot be used, or files are there; one line, nothing is written.
    """
    out = Path(config.out)
    check_out(out, config.data.root, overwrite=overwrite)
    where = settings.machine(pick_device(config.device))
    sizes = look.sizes_of(config.data)
    given = config.data.size_px if "size_px" in config.data.model_fields_set else None
    encoder = settings.choose_encoder(sizes, where, size_px=given)
    data = config.data.at(encoder.size_px)
    with each_line_once():
        found = look.look(data, sizes=sizes, labels=config.labels, progress=config.progress)
        if found.classes:
            check_task(found, config)
    plan = settings.plan(found, encoder, where, minutes=config.minutes)

    texts = files.texts(found, encoder, plan, out=out, device=config.device)
    with writing.holding(out):
        check_out(out, config.data.root, overwrite=overwrite)
        out.mkdir(exist_ok=True)
        write_record(out / "env.json", run.environment())
        for name, text in texts.items():
            writing.write_text(out / name, text)
        for name in files.FILES:
            if name not in texts:  # of labels that are no longer wanted
                (out / name).unlink(missing_ok=True)
    for line in look.lines(found):
        print(wrapped(line))
    for line in look.warnings(found):
        print(wrapped(f"warning: {line}"))
    print()
    print(wrapped(f"trains on {where}"))
    print(wrapped(f"{encoder.name} at {encoder.size_px} px, batch size {plan.batch_size}; {plan.in_words()}"))
    if where.on_gpu and (where.free or 0) >= settings.LARGE_ENCODER_BYTES:
        print(wrapped("this card also has the memory for a published encoder: sscl encoders lists them"))
    print(wrapped(f"wrote {out}/{', '.join(texts)}: each line says why, change what you like"))
    print(next_command("train", *([] if config.out == InitConfig.model_fields["out"].default else [config.out])))


def check_out(out: Path, root: str, *, overwrite: bool) -> None:
    """Raise ValueError unless the files may be written, or a path could not be written into them."""
    for key, path in (("data.root", root), ("out", os.path.abspath(out))):
        if printable(path) != path:
            raise ValueError(f"{key}: {printable(path)!r} has a character that cannot be printed; rename it")
    if os.path.lexists(out) and not out.is_dir():  # a file, or a link to nothing
        raise ValueError(f"out: {out} is no folder; name a folder to write")
    if os.path.realpath(out) == os.path.realpath(root):
        raise ValueError(f"out: {out} is the folder of the tiles; name another, as out=sscl-run")
    there = [name for name in files.FILES if (out / name).exists()]
    if there and not overwrite:
        raise ValueError(
            f"{out}: has {there[0]} already; sscl train {out} runs it, --overwrite writes the files again, out=FOLDER "
            "writes elsewhere"
        )


def check_task(found: look.Found, config: InitConfig) -> None:
    """Raise ValueError where no classifier can be trained on the tiles and measured; what else can be done."""
    data = found.data.model_dump(include=set(DataConfig.model_fields))
    task = FinetuneConfig.model_validate({"run": config.out, "data": data})
    try:
        labelled_tiles(task, progress=config.progress)
    except ValueError as error:
        raise ValueError(f"{error}{look.OR_PRETRAIN}") from None
