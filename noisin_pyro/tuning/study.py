"""A study in its storage, which several processes share and a killed one resumes."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisin_pyro.atomic import remove_partials, replacing
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.lease import Lease
from noisin_pyro.tuning.place import check_place, exists
from noisin_pyro.tuning.sampler import make_sampler
from noisin_pyro.tuning.space import first_guess, number_of_settings, suggest

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial, Trial

__all__ = ["Trials", "check_folder", "open_study", "require_optuna", "trial_folder"]

ID, JOURNAL, LOCK = "study.id", "study.journal", "study.lock"
RECORD, PICTURE = "study.json", "tune.png"
BEGINS = b'{"op_code":'  # the first bytes of each entry of a journal
TRIAL = "trial-"  # the name of a trial's folder begins with it
POLL = 0.5  # seconds between two checks of the trials of other processes
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
            held = path.read_text(encoding="utf-8") if path.exists() else ""
            begun = any(folder.glob(f"{TRIAL}*"))
            study = _connect(config, storage, place, begun=begun or bool(held))
            known = study.user_attrs.get("id")
            if begun and known is None:
                raise Absent(config.out, place)
            own: str = (storage is None and known) or held or uuid.uuid4().hex
            if known is not None and known != own:
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
        opened = optuna.storages.get_storage(place) if "://" in place else _journal(place)
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


def _journal(path: str) -> BaseStorage:
    """A journal file that survives a kill of the processes that write to it.

    If the owner of its lock was killed on this machine, the lock is free at once. An entry that a
    kill or a full disk cut off is removed before the next one is appended.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    class Lock(JournalFileOpenLock):
        _lease = Lease(Path(f"{path}.lock"))

        def acquire(self) -> bool:
            self._lease.wait()
            _cut_back(Path(path))
            return True

        def release(self) -> None:
            self._lease.give_back()

    _check_journal(Path(path))
    return JournalStorage(JournalFileBackend(path, Lock(path)))


def _check_journal(path: Path) -> None:
    """Raises ValueError if a file is no journal, before anything is written into it."""
    *lines, last = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, line in enumerate(lines, 1):
        try:
            known = "op_code" in json.loads(line)
        except (ValueError, TypeError):
            known = False
        if not known:
            raise ValueError(f"its line {number} is no entry of a journal")
    if not last.startswith(BEGINS[: len(last)]):
        raise ValueError("its last line is no entry of a journal")


def _cut_back(path: Path) -> None:
    """Removes an incomplete last entry from a journal; the caller has its lock."""
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        if file.read(1) not in (b"", b"\n"):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


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


class Trials:
    """Hands out the trials of a study to this process, one after another.

    A trial that draws the setting of an earlier one would be the same training. It is not handed
    out: it fails, and another is drawn.

    Args:
        study: the study.
        config: the configuration of the study, whose ``out`` is its folder.
        names: the searched options.
        limit: the number of trials of all processes together.
        wait: called with the numbers of other processes' running trials while none is left here.
    """

    def __init__(
        self,
        study: Study,
        config: TrainConfig,
        names: tuple[str, ...],
        limit: int,
        wait: Callable[[list[int]], None] = lambda numbers: None,
    ) -> None:
        self._study, self._config, self._names = study, config, names
        self._folder, self._limit, self._wait = Path(config.out), limit, wait
        # Kept, since a lease remembers how long it is untouched.
        self._leases: dict[int, Lease] = {}

    @contextmanager
    def next(self) -> Iterator[Trial | None]:
        """Locks a trial for this process while the block runs.

        Yields None if all are finished, or every setting has been tried. An interrupted trial
        comes before a new one.
        """
        with ExitStack() as stack:
            yield self._claim(stack)

    def _claim(self, stack: ExitStack) -> Trial | None:
        while True:
            with locked(self._folder):
                trial, elsewhere = self._take(stack)
            if trial is not None or not elsewhere:
                return trial
            self._wait(elsewhere)
            time.sleep(POLL)

    def _take(self, stack: ExitStack) -> tuple[Trial | None, list[int]]:
        from optuna.trial import TrialState

        while True:
            trial, elsewhere = self._first(stack)
            if trial is None:
                return None, elsewhere
            chosen = suggest(trial, self._names, self._config)
            if chosen not in self._settings(until=trial.number):
                return trial, []
            self._study.tell(trial, state=TrialState.FAIL)
            stack.close()  # gives its lease back

    def _first(self, stack: ExitStack) -> tuple[Trial | None, list[int]]:
        """The first interrupted trial or else a new one; None if there are none left."""
        from optuna.trial import Trial, TrialState

        known = self._study.get_trials(deepcopy=False)
        running = [t.number for t in known if t.state == TrialState.RUNNING]
        for number in running:
            if self._has(number, stack):
                return Trial(self._study, known[number]._trial_id), []
        begun = [t for t in known if t.state not in (TrialState.WAITING, TrialState.FAIL)]
        tried = {tuple(setting.values()) for setting in self._settings(until=len(known))}
        if len(begun) >= self._limit or len(tried) >= number_of_settings(self._names):
            return None, running
        trial = self._study.ask()
        if not self._has(trial.number, stack):
            raise ValueError(f"{self._lease(trial.number).path} is of no trial; remove it")
        return trial, []

    def _settings(self, until: int) -> list[dict[str, Any]]:
        """The settings of the trials before one."""
        from optuna.trial import FixedTrial, TrialState

        settings = []
        for trial in self._study.get_trials(deepcopy=False)[:until]:
            if trial.state not in (TrialState.WAITING, TrialState.FAIL):
                with suppress(ValueError):  # a process was killed while it drew this trial
                    settings.append(suggest(FixedTrial(trial.params), self._names, self._config))
        return settings

    def _has(self, number: int, stack: ExitStack) -> bool:
        """Takes a trial's lease, unless another process has it or has ended the trial."""
        lease = self._lease(number)
        if not lease.take():
            return False
        if self._study.get_trials(deepcopy=False)[number].state.is_finished():
            lease.give_back()
            return False
        stack.callback(lease.give_back)
        return True

    def _lease(self, number: int) -> Lease:
        path = trial_folder(self._folder, number).with_suffix(".lock")
        return self._leases.setdefault(number, Lease(path))


def finished(study: Study) -> list[FrozenTrial]:
    """The trials that have ended, including those that were pruned or diverged."""
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def best_of(trials: list[FrozenTrial]) -> FrozenTrial | None:
    """The complete trial with the lowest validation perplexity; the earliest of equal ones."""
    whole = [t for t in trials if t.state.name == "COMPLETE" and t.value is not None]
    return min(whole, key=lambda t: (t.value, t.number), default=None)
