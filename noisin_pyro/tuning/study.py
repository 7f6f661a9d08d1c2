"""A study in its storage, which several processes share and a killed one resumes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisin_pyro.atomic import remove_partials, replacing
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.lease import Lease
from noisin_pyro.tuning.journal import open_journal
from noisin_pyro.tuning.place import check_place, exists
from noisin_pyro.tuning.sampler import make_sampler
from noisin_pyro.tuning.space import first_guess

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

__all__ = [
    "FREE",
    "PICTURE",
    "RECORD",
    "check_folder",
    "locked",
    "open_study",
    "require_optuna",
    "trial_folder",
]

ID, JOURNAL, LOCK = "study.id", "study.journal", "study.lock"
RECORD, PICTURE = "study.json", "tune.png"
TRIAL = "trial-"  # the name of a trial's folder begins with it
PRUNE_AFTER = 4  # number of finished trials before any is pruned
#: Options that do not change a trial's numbers. Of the corpus the text is compared, not the name.
FREE = (
    *("out", "resume", "quiet", "tensorboard", "device", "data_dir", "corpus"),
    "checkpoint_seconds",
)


def require_optuna() -> None:
    """Refuses to go on without Optuna.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise ImportError(
            'noisin tune needs the extra tune; run pip install "noisin-pyro[tune]"'
        ) from None


def trial_folder(out: str | Path, number: int) -> Path:
    """The run folder of a trial.

    Example:
        >>> trial_folder("runs/tune", 7).as_posix()
        'runs/tune/trial-007'
    """
    return Path(out) / f"{TRIAL}{number:03d}"


def check_folder(config: TrainConfig) -> None:
    """Refuses a folder that a study cannot use.

    Raises:
        ValueError: if it holds a study and ``resume`` is false, or anything but a study.
    """
    folder = Path(config.out)
    if (folder / ID).exists():
        if not config.resume:
            raise ValueError(
                f"out {config.out!r} already holds a study; go on with it or join it with --resume "
                "true, or choose another folder"
            )
    elif folder.exists():
        own = (ID, LOCK, JOURNAL)  # and partial files, whose names begin so
        others = sorted(p.name for p in folder.iterdir() if not p.name.startswith(own))
        if others:
            raise ValueError(
                f"out {config.out!r} holds a {others[0]} that is of no study; choose another folder"
            )


def open_study(
    config: TrainConfig, names: tuple[str, ...], text: str, storage: str | None = None
) -> Study:
    """Makes the study of a folder, or joins it.

    Args:
        config: the run whose ``out`` is the study's folder.
        names: what is searched.
        text: the SHA-256 of the corpus.
        storage: the path of a journal file or the URL of a database; a journal in the folder if
            omitted.

    Raises:
        ValueError: if the storage cannot be used, or its study is another.
    """
    folder = Path(config.out)
    place = str(folder / JOURNAL) if storage is None else storage
    check_place(place)
    try:
        with _made(folder), locked(folder):
            check_folder(config)
            for name in (ID, RECORD, PICTURE):
                remove_partials(folder / name)
            path = folder / ID
            in_folder = path.read_text(encoding="utf-8") if path.exists() else ""
            begun = any(folder.glob(f"{TRIAL}*"))
            study = _connect(config, storage, place, begun=begun or bool(in_folder))
            in_storage = study.user_attrs.get("id")
            if begun and in_storage is None:
                raise Absent(config.out, place)
            own: str = (storage is None and in_storage) or in_folder or uuid.uuid4().hex
            if in_storage is not None and in_storage != own:
                raise ValueError(
                    f"the storage {storage!r} has a study {study.study_name!r} whose trials are in "
                    "another folder; give that as out, on a file system that all machines share, "
                    "or choose an out of another name"
                )
            with replacing(path) as temporary:
                temporary.write_text(own, encoding="utf-8")
            _describe(study, config, names, text, own)
    except OSError as error:
        raise ValueError(
            f"out {config.out!r} cannot be written ({error.strerror}); choose another folder"
        ) from None
    return study


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Makes a folder; if the block raises, those that it made and that are empty are removed."""
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # the first that is not empty, or another process's
            for place in new:
                place.rmdir()
        raise


def _connect(config: TrainConfig, storage: str | None, place: str, begun: bool) -> Study:
    """Opens the storage at a path or URL, and the study of the folder in it.

    If that study has begun, nothing is made: neither a file, nor a study in another one's database.
    """
    import optuna

    if begun and not exists(place):
        raise Absent(config.out, place)
    try:
        opened = optuna.storages.get_storage(place) if "://" in place else open_journal(place)
        name = _name(opened, Path(config.out), storage)
        if begun and name not in optuna.get_all_study_names(opened):
            raise Absent(config.out, place)
        return optuna.create_study(
            storage=opened,
            study_name=name,
            load_if_exists=True,
            direction="minimize",
            sampler=make_sampler(config.seed),
            # With noise the loss falls slowly at first, so no trial is pruned in its first third.
            pruner=optuna.pruners.MedianPruner(PRUNE_AFTER, n_warmup_steps=config.epochs // 3 + 1),
        )
    except (Absent, Renamed):
        raise
    except Exception as error:  # each database has exceptions of its own
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(
            f"storage {place!r} cannot be used ({reason}); give the path of a journal file, or a "
            "URL such as sqlite:///study.db"
        ) from None


class Absent(ValueError):
    """The storage has no study of a folder that has begun one."""

    def __init__(self, out: str, place: str) -> None:
        super().__init__(
            f"out {out!r} has begun a study that is not in {place!r}; give the storage that it was "
            "begun with, or choose another folder"
        )


class Renamed(ValueError):
    """The study of a folder has another name in the storage than the folder has now."""


def _name(opened: BaseStorage, folder: Path, storage: str | None) -> str:
    """The name of a folder's study in its storage.

    Raises:
        Renamed: if it is the folder's former name, in a storage that other folders share.
    """
    import optuna

    path, name = folder / ID, folder.resolve().name
    own = path.read_text(encoding="utf-8") if path.exists() else None
    for summary in optuna.get_all_study_summaries(opened) if own is not None else ():
        if storage is None:  # the journal holds no other one
            return summary.study_name
        if summary.user_attrs.get("id") == own and summary.study_name != name:
            raise Renamed(
                f"out {str(folder)!r} has the study {summary.study_name!r} of the storage "
                f"{storage!r}; give the folder that name again"
            )
    return name


def _describe(
    study: Study, config: TrainConfig, names: tuple[str, ...], text: str, own: str
) -> None:
    """Writes options and text into a new study; refuses one that has others."""
    about: dict[str, Any] = {"config": config.to_dict(*FREE), "searched": list(names), "text": text}
    known = study.user_attrs
    if "id" not in known:  # new, or its creator was killed before it wrote the id
        if not study.get_trials(deepcopy=False):
            study.enqueue_trial(first_guess(names, config))
        for key, value in about.items():
            study.set_user_attr(key, value)
        study.set_user_attr("id", own)
        return
    remedy = "give the options that it was begun with, or choose another folder"
    if known["text"] != text:
        raise ValueError(f"the study in {config.out!r} is of another text; {remedy}")
    if known["searched"] != about["searched"]:
        raise ValueError(
            f"the study in {config.out!r} searches {', '.join(known['searched'])}, not "
            f"{', '.join(names)}; {remedy}"
        )
    for key, value in about["config"].items():
        if known["config"].get(key, value) != value:
            raise ValueError(
                f"the study in {config.out!r} has {key} {known['config'][key]!r}, got {value!r}; "
                f"{remedy}"
            )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a study for a block in which a process chooses a trial or writes the record."""
    lease = Lease(folder / LOCK)
    lease.wait()
    try:
        yield
    finally:
        lease.give_back()
