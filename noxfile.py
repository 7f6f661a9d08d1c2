"""Every claim of the project as a session: ``nox -l`` lists them, ``nox -s lint`` runs one.

The workflows in ``.github/workflows`` run the same sessions. ``--python 3.12`` and
``nox -s tests -- -k noise`` choose a Python and hand options on.
"""

from __future__ import annotations

from pathlib import Path

import nox

PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
TORCHES = ["2.6.0", "2.13.0"]
PINNED = ("-c", "constraints.txt")
EXTRAS = ("lm", "completion", "hub", "hf", "tune", "cluster")

nox.options.sessions = ["lint", "types", "tests(python='3.11', torch='2.13.0')"]
nox.options.reuse_existing_virtualenvs = True


def is_released(python: str, torch: str) -> bool:
    """Whether torch has wheels of that version for that Python."""
    return not (torch == "2.6.0" and python == "3.14")


@nox.session(python="3.11")
def lint(session: nox.Session) -> None:
    """Layout, lint and the order of the rooms."""
    session.install(*PINNED, "-e", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session(python="3.11")
def types(session: nox.Session) -> None:
    """mypy, strict, on the package and its tests."""
    session.install(*PINNED, "-e", ".[dev]")
    session.run("mypy")


@nox.session
@nox.parametrize("python,torch", [(p, t) for p in PYTHONS for t in TORCHES if is_released(p, t)])
def tests(session: nox.Session, torch: str) -> None:
    """Tests and doctests of all rooms."""
    session.install(f"torch=={torch}")
    session.install("-e", ".[test]")
    session.run("pytest", "-n", "auto", "--dist", "loadfile", *session.posargs)


@nox.session(python="3.10")
def minimum(session: nox.Session) -> None:
    """The lower bounds that pyproject.toml promises, all at once."""
    session.install("-e", ".[test]", *lower_bounds(*EXTRAS))
    session.run("pytest", "-n", "auto", "--dist", "loadfile", *session.posargs)


def lower_bounds(*extras: str) -> list[str]:
    """``name==version`` for each bound of the core and of extras, the highest where two differ."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    needed = list(project["dependencies"])
    for extra in extras:
        needed += project["optional-dependencies"][extra]
    bounds: dict[str, str] = {}
    for line in needed:
        name, _, version = line.partition(">=")
        package = name.split("[")[0]
        if version and as_numbers(version) > as_numbers(bounds.get(package, "0")):
            bounds[package] = version
    return [f"{package}=={version}" for package, version in bounds.items()]


def as_numbers(version: str) -> list[int]:
    """2.10 is later than 2.9."""
    return [int(part) for part in version.split(".")]


@nox.session(python="3.11")
def core(session: nox.Session) -> None:
    """The library with nothing but Pyro, torch and numpy."""
    session.install(*PINNED, ".")
    session.run("python", ".ci/core_alone.py")


@nox.session(python="3.11")
def coverage(session: nox.Session) -> None:
    """Lines that the tests of the core reach; fails below the bound of pyproject.toml."""
    session.install(*PINNED, "-e", ".[test]", "pytest-cov")
    cov = ["--cov", "--cov-report=term-missing:skip-covered", "--cov-report=xml"]
    session.run("pytest", "-m", "core and not slow and not gpu", *cov, *session.posargs)


@nox.session(python="3.11")
def notebooks(session: nox.Session) -> None:
    """The notebooks, from top to bottom."""
    session.install(*PINNED, "-e", ".[dev]")
    session.run("pytest", "-q", "--nbmake", "-o", "addopts=", "-o", "testpaths=", "notebooks")


@nox.session(python="3.11")
def examples(session: nox.Session) -> None:
    """Each script of ``examples/``, for one epoch."""
    session.install(*PINNED, "-e", ".[dev]")
    for path in sorted(Path("examples").glob("*.py")):
        session.run("python", str(path), "1")


@nox.session(python="3.11")
def docs(session: nox.Session) -> None:
    """The documentation, warnings as errors."""
    session.install(*PINNED, "-e", ".[docs]")
    session.run("sphinx-build", "-W", "docs", "docs/_build")


@nox.session(python="3.11")
@nox.parametrize("kind", ["wheel", "sdist"])
def package(session: nox.Session, kind: str) -> None:
    """The wheel and the sdist, built, checked, installed into a clean environment and run."""
    out = session.create_tmp()
    session.install("build", "twine")
    session.run("python", "-m", "build", f"--{kind}", "--outdir", out, silent=True)
    (built,) = Path(out).glob("*.whl" if kind == "wheel" else "*.tar.gz")
    session.run("twine", "check", "--strict", str(built))
    session.install(*PINNED, f"{built}[lm]")
    with session.chdir(out):  # away from the sources, so that what is installed is imported
        session.run("noisin", "train", "--corpus", "hmm", "--epochs", "1", "--hidden_size", "8")


@nox.session(python="3.11")
def slow(session: nox.Session) -> None:
    """The long tests: kills, fuzzing, data-parallel training."""
    session.install(*PINNED, "-e", ".[test]")
    session.run("pytest", "-m", "slow and not gpu", *session.posargs)
