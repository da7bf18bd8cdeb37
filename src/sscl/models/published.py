"""Weights that others publish: what a name stands for, and where its file is: the hub, its cache, or a folder.

Nothing is fetched unless `model.weights` is `published`. What is fetched is kept in the hub's own cache. Neither code
nor pickles of a repository are run: `weights` reads tensors alone.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError

from sscl.config.encoders import FOLDER, HUB, TIMM, Deviation, Kwargs, Mean, Pool
from sscl.config.published import PUBLISHED, Published, by_hub
from sscl.data.scale import NOMINAL, Scale, Trained
from sscl.models.timm_models import OURS, extra, quiet_hub, unreachable_hub
from sscl.places import missing
from sscl.reading import parse_json, read_text
from sscl.records import Record, first_fault
from sscl.words import short

FILES = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
_LARGEST_CONFIG = 2**20  # bytes; those of the hub have some 700
_POOLS: dict[str, Pool] = {"token": "class", "avg": "mean"}


@dataclass(frozen=True)
class Named:
    """What a name stands for.

    Attributes:
        name: another that needs neither folder nor hub: one of the table, or timm:ARCHITECTURE.
        kwargs, pool: of `build_encoder`.
        mean, std, size_px, mpp: what its weights expect; None: not known here.
        hub: the repository of its weights. file: its name there; None: one of FILES.
        folder: where its weights are; None: not in a folder.
    """

    name: str
    kwargs: Kwargs
    pool: Pool | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size_px: int | None = None
    mpp: Trained | None = None
    hub: str | None = None
    file: str | None = None
    folder: Path | None = None


class _Normal(Record):
    """What timm's config.json says of the pixels; it says much more."""

    model_config = ConfigDict(extra="ignore")

    mean: Annotated[tuple[Mean, ...], Field(min_length=3, max_length=3)] | None = None
    std: Annotated[tuple[Deviation, ...], Field(min_length=3, max_length=3)] | None = None
    input_size: Annotated[tuple[int, ...], Field(min_length=3, max_length=3)] | None = None


class _Ours(Record):
    """What config.json says that sscl wrote, beside what timm reads."""

    model_config = ConfigDict(extra="ignore")

    pool: Pool | None = None
    kwargs: Kwargs = Field(default_factory=dict)  # those that timm takes as classes
    mpp: Annotated[float, Field(gt=0)] | None = None
    mpp_range: Annotated[tuple[float, ...], Field(max_length=2)] = ()


class _Config(Record):
    """A config.json of timm's."""

    model_config = ConfigDict(extra="ignore")

    architecture: str
    global_pool: str | None = None
    model_args: Kwargs = Field(default_factory=dict)
    pretrained_cfg: _Normal = _Normal()
    sscl: _Ours = _Ours()

    @property
    def pool(self) -> Pool | None:
        """What the feature is. The argument goes before what stands beside the architecture, as timm builds by it."""
        return self.sscl.pool or _POOLS.get(str(self.model_args.get("global_pool", self.global_pool)))


def resolve(name: str, *, kwargs: Kwargs, pool: Pool | None, fetch: bool = False) -> Named:
    """Return what the name of an encoder and its arguments stand for.

    Args:
        name: as `model.name`. kwargs, pool: as given; what is given goes before what is published.
        fetch: whether the hub may be asked for the description of timm:hf-hub:USER/MODEL.

    Raises:
        ValueError: the folder or repository is not one that timm reads.
        FileNotFoundError: no such folder; of a repository `NotHere`, also where it is not on this disk and `fetch` is
            off.
    """
    if name.startswith(HUB) and (known := by_hub(name.removeprefix(HUB))) is not None:
        name = known.name
    if name in PUBLISHED:
        return replace(_of_table(PUBLISHED[name]), kwargs=kwargs, pool=pool or PUBLISHED[name].pooling)
    if name.startswith(FOLDER):
        folder = Path(name.removeprefix(FOLDER))
        if not folder.is_dir():
            raise FileNotFoundError(f"model.name: {missing(folder, 'folder')}")
        found = replace(_described(folder / "config.json"), folder=folder)
    elif name.startswith(HUB):
        hub = name.removeprefix(HUB)
        found = replace(_described(_fetched(hub, "config.json", ask=fetch)), hub=hub)
    else:
        return Named(name, kwargs, pool)
    return replace(found, kwargs={**found.kwargs, **kwargs}, pool=pool or found.pool)


def _of_table(one: Published) -> Named:
    mean, std = one.normalisation
    mpp = None if one.mpp is None else Trained(*one.mpp, within=NOMINAL)
    return Named(one.name, {}, one.pooling, mean, std, one.size_px, mpp, one.hub, one.file)


def _described(path: Path) -> Named:
    """Return what a config.json of timm's says."""
    if not path.is_file():
        raise ValueError(
            f"model.name: {path.parent} has no config.json, which says which model of timm it is; name that model: "
            f"model.name={TIMM}MODEL model.weights={path.parent}"
        )
    try:
        content: Any = parse_json(read_text(path, at_most=_LARGEST_CONFIG))
        if isinstance(content, dict) and "model_type" in content and "architecture" not in content:
            raise ValueError(f"is of transformers ({short(str(content['model_type']))}), which sscl does not read")
        if isinstance(content, dict) and "pretrained_cfg" not in content:  # an older form: all in one
            content = {**content, "pretrained_cfg": content}
        config = _Config.model_validate(content, strict=False)
    except ValidationError as error:
        raise ValueError(
            f"model.name: {path}: {first_fault(error, whole='it')}; expected a config.json of timm, with architecture "
            "and pretrained_cfg"
        ) from None
    except ValueError as error:
        raise ValueError(f"model.name: {path}: {str(error).removeprefix(f'{path}: ')}") from None
    normal = config.pretrained_cfg
    span = Scale((), config.sscl.mpp, config.sscl.mpp_range).span
    return Named(
        name=f"{TIMM}{config.architecture}",
        kwargs={key: value for key, value in config.model_args.items() if key not in OURS} | config.sscl.kwargs,
        pool=config.pool,
        mean=normal.mean,
        std=normal.std,
        size_px=None if normal.input_size is None else normal.input_size[-1],
        mpp=Trained(span[0], span[-1]) if span else None,
    )


def weights_in(folder: Path) -> Path | None:
    """Return the file of weights in a folder as the hub has them; None where there is none."""
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def published_file(named: Named) -> Path | None:
    """Return the file of the published weights, fetched if need be; None where timm has them under the name itself.

    Raises:
        NotHere: they cannot be had: gated, no token, no network, no such repository or file; what to do.
        ValueError: there are none.
    """
    if named.folder is not None:
        found = weights_in(named.folder)
        if found is None:
            raise ValueError(
                f"model.weights: {named.folder} has no file of weights (expected {FILES[0]} or {FILES[2]}); give "
                "model.weights=PATH"
            )
        return found
    if named.hub is None:
        if named.name.startswith(TIMM):
            return None
        raise ValueError(f"model.weights: {named.name} is not published; set model.weights=imagenet, or a file or run")
    if named.file is not None:
        return _fetched(named.hub, named.file, ask=True)
    for name in (FILES[0], FILES[2]):
        with contextlib.suppress(_NoSuchFile):
            return _fetched(named.hub, name, ask=True)
    raise NotHere(
        f"model.weights: {_page(named.hub)} has neither {FILES[0]} nor {FILES[2]}; download its file of weights, and "
        f"give model.weights=PATH"
    )


def on_this_disk(one: Published) -> Path | None:
    """Return the file of a published encoder's weights in the hub's cache; None where it is not there."""
    try:
        hub = extra("huggingface_hub", extra="timm")
    except ValueError:
        return None
    for name in [one.file] if one.file else [FILES[0], FILES[2]]:
        found = hub.try_to_load_from_cache(one.hub, name)
        if isinstance(found, str):
            return Path(found)
    return None


class NotHere(FileNotFoundError):
    """Published weights are not on this disk, and cannot be had now; it says why, and what to do."""


class _NoSuchFile(NotHere):
    """A repository that is there lacks a file."""


@cache
def _fetched(hub: str, file: str, *, ask: bool) -> Path:
    """Return a file of a repository, from the cache or fetched into it.

    A download shows its progress, and goes on where an earlier one stopped.

    Args:
        ask: whether the hub may be asked; otherwise the cache alone.
    """
    package = extra("huggingface_hub", extra="timm")
    repository, _, revision = hub.partition("@")
    errors = extra("huggingface_hub.errors", extra="timm")
    silent = unreachable_hub() if ask else None
    try:
        with quiet_hub():
            return Path(
                package.hf_hub_download(
                    repository,
                    file,
                    revision=revision or None,
                    local_files_only=not ask or silent is not None,
                    endpoint=os.environ.get("HF_ENDPOINT"),
                )
            )
    except Exception as error:  # the hub client's many, its HTTP library's, and the system's
        raise _explained(errors, error, hub=repository, file=file, ask=ask, silent=silent) from error


def _page(hub: str) -> str:
    return f"https://huggingface.co/{hub}"


def _explained(errors: Any, error: Exception, *, hub: str, file: str, ask: bool, silent: str | None = None) -> NotHere:
    """Return what went wrong with the hub, and what to do, in one line; silent: why it takes no connection."""
    page, known = _page(hub), by_hub(hub)
    of_file = "its file of weights" if file == "config.json" else file
    name = known.name if known is not None else f"{TIMM}MODEL" if file == "config.json" else f"{HUB}{hub}"
    by_hand = f"or download {of_file} there by hand, and give model.weights=PATH model.name={name}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, (OSError, MemoryError)) and status is None and getattr(error, "errno", None) is not None:
        return NotHere(f"model.weights: {file} of {hub} cannot be kept in the hub's cache ({error}); see HF_HOME")
    if isinstance(error, errors.GatedRepoError):
        return NotHere(
            f"model.weights: {hub} is gated: accept its terms on {page}, then hf auth login (or set HF_TOKEN); "
            f"{by_hand}"
        )
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return _NoSuchFile(f"model.weights: {page} has no {file}; {by_hand.removeprefix('or ')}")
    if status == 401 or isinstance(error, errors.LocalTokenNotFoundError):
        # The hub answers so for a token that it does not know, and for a repository that is not there.
        return NotHere(
            f"model.weights: the hub refuses {hub}: no such repository, or a token that is missing or has expired; see "
            f"{page}, then hf auth login (or set HF_TOKEN); {by_hand}"
        )
    if status == 403:
        return NotHere(
            f"model.weights: the token may not read {hub}: accept its terms on {page}, and give the token read access "
            f"to gated repositories; {by_hand}"
        )
    if isinstance(error, (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError)):
        return NotHere(f"model.weights: the hub has no {hub} ({_reason(error)}); see {page}; {by_hand}")
    if not ask:
        return NotHere(
            f"model.name: {hub} is not in the hub's cache on this disk; set model.weights=published to fetch it, or "
            f"name its model of timm: model.name={TIMM}MODEL model.weights=PATH"
        )
    if known is not None and known.gated:
        page = f"{page}, where its terms are accepted before hf auth login"
    why = silent or _reason(error)
    if "offline mode" in why.lower():
        why = "HF_HUB_OFFLINE is set, and it is not in the cache"
    return NotHere(f"model.weights: {file} of {hub} cannot be fetched ({why}); try again from {page}; {by_hand}")


def _reason(error: BaseException) -> str:
    """Return the first line of an error, or of what caused it where that says more."""
    cause = error.__cause__ or error.__context__
    found = cause if cause is not None and isinstance(error, OSError) else error
    return short((str(found) or type(found).__name__).splitlines()[0], most=160)
