"""Tables of the results of training, from the records of runs, benchmarks and reproductions."""

from __future__ import annotations

from typing import Any

from records import HERE, load, machines, table

from noisin_pyro.experiments.recipe import Options, Recipe, recipes
from noisin_pyro.experiments.reproduce import render
from noisin_pyro.experiments.store import run_of
from noisin_pyro.experiments.summary import MeanStd
from noisin_pyro.tuning.report import lowest_so_far, study_table


def runs(pattern: str, folder: str) -> str:
    """Runs of ``noisin train``: the noisy model and its deterministic twin side by side.

    Args:
        pattern: a glob pattern of run folders in this folder.
        folder: the path from the file with the table to this folder, for links.
    """
    head = ["run", "model", "valid", "test", "test, 16 samples averaged", "best epoch", "tokens/s"]
    records = {path.parent.name: load(path) for path in sorted(HERE.glob(f"{pattern}/record.json"))}
    rows = [row for name, record in records.items() for row in run_rows(name, record, folder)]
    notes = [hardware(name, record) for name, record in records.items()]
    return "\n".join([table(head, rows), "", *notes])


def run_rows(name: str, record: dict[str, Any], folder: str) -> list[list[str]]:
    rows = []
    for label, model in record["models"].items():
        final = model.get("final") or {"mean_path": None, "averaged": None}  # still training
        mean, averaged = final["mean_path"], final["averaged"]
        epochs = len(model["history"])
        valid = min(row["valid_perplexity"] for row in model["history"])
        cells = [
            f"[{name}]({folder}{name}/record.json)",
            describe(label, record["config"]),
            f"{valid:.1f}",
            f"{mean['test']:.1f}" if mean else "not yet",
            f"{averaged['test']:.1f}" if averaged else "",
            f"{model['best_epoch']} of {epochs}" + ("" if model["finished"] else ", unfinished"),
            f"{model['timing']['tokens_per_second']:,.0f}",
        ]
        rows.append(cells)
    return rows


def describe(label: str, config: dict[str, Any]) -> str:
    if label == "deterministic":
        return "deterministic"
    if label == "dropout":
        return f"variational dropout, {config['variational_dropout']:g}"
    spread = f"γ = {config['spread']:g}" + (" at the start" if config["learn_spread"] else "")
    return f"NOISIN, {config['injection']} {config['noise']}, {spread}"


def hardware(name: str, record: dict[str, Any]) -> str:
    config, versions, machine = record["config"], record["versions"], record["hardware"]
    return (
        f"{name}: {config['layers']}-layer {config['cell']}, {config['hidden_size']} units, "
        f"{config['optimizer']} {config['learning_rate']:g}, batch {config['batch_size']}, unroll "
        f"{config['unroll']}, seed {config['seed']}; {machine.get('gpu', machine['processor'])}, "
        f"{machine['threads']} thread(s), torch {versions['torch']}, "
        f"Python {versions['python']}.  "
    )


#: The experiments whose records are in ``reproduce/``, with the options of ``noisin reproduce``.
#: Each with the folder of its corpus.
REPRODUCED = {
    "table2-ptb": ("table2", "ptb", Options(grid=1, seeds=1)),
    "table2-pydoc": ("table2", "pydoc", Options(corpus="pydoc", grid=4)),
    "table2-pydoc-long": ("table2", "pydoc", Options(corpus="pydoc", grid=3, seeds=1, epochs=120)),
    "table3": (
        "table3",
        "wikitext-2",
        Options(epochs=10, grid=1, seeds=1, precision="bf16-mixed"),
    ),
    "figure2-ptb": ("figure2", "ptb", Options(grid=2, seeds=1)),
    "spread-pydoc": ("spread", "pydoc", Options(seeds=1)),
    "samples-pydoc": ("samples", "pydoc", Options()),
    "regularisers-pydoc": ("regularisers", "pydoc", Options()),
    "regularisers-ptb": ("regularisers", "ptb", Options(grid=4)),
    "linear-pydoc": ("linear", "pydoc", Options()),
    "linear-ptb": ("linear", "ptb", Options(corpus="ptb", grid=2, seeds=1)),
}


def reproduced() -> dict[str, str]:
    """The part of the pages about each experiment: comparison, details, hardware."""
    return {
        name: render(experiment, options, HERE / "reproduce", folders=[corpus])
        for name, (experiment, corpus, options) in REPRODUCED.items()
    }


def block() -> list[Recipe]:
    """The rows of Table 2 on Penn Treebank whose grids have been run, those of one tanh layer."""
    rows = recipes("table2", Options())
    return [recipe for recipe in rows if recipe.records.startswith("table2/1-tanh-")]


def entries() -> str:
    """All settings of a block of Table 2 on Penn Treebank, with seed 1, in each precision."""
    rows = []
    for recipe in block():
        for point in recipe.points(Options()):
            both = [finished(recipe, point, precision) for precision in ("32", "bf16-mixed")]
            cells = [cell for figures in zip(*map(figures_of, both)) for cell in figures]
            rows.append([recipe.method, point, *cells])
    heads = ("valid", "test", "best epoch")
    columns = [head + suffix for head in heads for suffix in ("", ", bf16")]
    return table(["1 layer, tanh", "setting", *columns], rows)


def seeds() -> str:
    """The settings of Table 2 on Penn Treebank with several seeds, in each precision."""
    rows = []
    for precision, name in (("bf16-mixed", "bf16-mixed"), ("32", "single precision")):
        for recipe in recipes("table2", Options()):
            for point in recipe.points(Options()):
                runs = [finished(recipe, point, precision, seed) for seed in (1, 2, 3)]
                finals = [record["final"] for record in runs if record is not None]
                if len(finals) < 2:
                    continue
                valid, test = (
                    str(MeanStd.of([final["mean_path"][part] for final in finals]))
                    for part in ("valid", "test")
                )
                averaged = [final["averaged"][0]["test"] for final in finals if final["averaged"]]
                about = (f"{recipe.block}, {name}", recipe.method, point, str(len(finals)))
                rows.append([*about, valid, test, str(MeanStd.of(averaged) or "–")])
    columns = ["", "method", "setting", "seeds", "valid", "test", "test, 16 averaged"]
    return table(columns, rows)


def finished(recipe: Recipe, point: str, precision: str, seed: int = 1) -> dict[str, Any] | None:
    """The record of a finished run, or None."""
    options = Options(precision=precision)
    record = run_of(recipe, point, seed, options, HERE / "reproduce").record()
    return record if record is not None and record["final"] else None


def figures_of(record: dict[str, Any] | None) -> list[str]:
    """Validation and test perplexity and the best epoch of a run, dashes if there is none."""
    if record is None:
        return ["–"] * 3
    final, epochs = record["final"]["mean_path"], len(record["history"])
    return [f"{final['valid']:.1f}", f"{final['test']:.1f}", f"{record['best_epoch']} of {epochs}"]


def tight_bounds() -> str:
    """Perplexity per character and γ under looser and tighter bounds, over seeds."""
    record = load(HERE / "tight-bounds" / "pydoc.json")
    rows = []
    for method in record["methods"].values():
        runs = method["runs"]
        best = MeanStd.of([min(run["valid"]) for run in runs])
        last = MeanStd.of([run["valid"][-1] for run in runs])
        spread = MeanStd.of([run["spread"][-1] for run in runs])
        assert best and last and spread
        cells = (f"{part.mean:.2f} ± {part.std:.2f}" for part in (best, last))
        rows.append([method["title"], *cells, f"{spread.mean:.2f}"])
    head = ["validation, perplexity per character", "best epoch", "last epoch", "γ at the end"]
    seeds = len(record["methods"]["none"]["runs"])
    note = (
        f"{record['epochs']} epochs, {seeds} seeds; {record['hardware']['processor']}, torch "
        f"{record['versions']['torch']}; `python benchmarks/tight_bounds.py`."
    )
    return "\n\n".join([table(head, rows), note])


def half_precision() -> str:
    """Training perplexity in the parts of an LSTM's first epoch, in single precision and bf16."""
    record = load(HERE / "half-precision" / "ptb.json")
    rows = [
        [name, str(seed), *(f"{part:.0f}" for part in parts)]
        for name, runs in record["perplexity"].items()
        for seed, parts in enumerate(runs, 1)
    ]
    count = len(rows[0]) - 2
    head = [
        "training perplexity",
        "seed",
        *(f"part {part} of {count}" for part in range(1, count + 1)),
    ]
    note = f"`python benchmarks/half_precision.py`; {machines([record])}."
    return "\n\n".join([table(head, rows), note])


PARTICLES = {"one": "1", "independent": "2 independent", "pair": "2 antithetic"}
EPOCHS = (1, 2, 4, 8, 16)


def antithetic() -> str:
    """Gradient variance and validation perplexity with independent and antithetic particles."""
    records = [load(path) for path in sorted((HERE / "antithetic").glob("*.json"))]
    noises, trainings = [], []
    for record in sorted(records, key=lambda record: list(PARTICLES).index(record["particles"])):
        model = f"{record['cell']}, γ = {record['spread']:g}, seed {record['seed']}"
        valid = [row["valid_perplexity"] for row in record["history"]]
        shown = [f"{valid[epoch - 1]:.1f}" if epoch <= len(valid) else "–" for epoch in EPOCHS]
        trainings.append([model, PARTICLES[record["particles"]], *shown])
        for row in record["gradient_noise"]:
            ratio = row["pair"] / row["independent"]
            figures = [f"{value:.2f}" for value in (*(row[key] for key in PARTICLES), ratio)]
            noises.append([model, str(row["epoch"]), *figures])
    ratio = "2 antithetic over 2 independent"
    noise = ["tr Cov(g)/‖E g‖²", "after epoch", *PARTICLES.values(), ratio]
    training = ["validation perplexity", "particles", *(f"after epoch {n}" for n in EPOCHS)]
    note = (
        f"`pydoc`, {records[0]['hidden']} units, multiplicative Gaussian noise, Adam 0.004, 40 "
        f"draws; {machines(records)}."
    )
    return "\n\n".join([table(noise, noises), table(training, trainings), note])


def kills() -> str:
    """By cell, how often trainings were killed, and how many ended as undisturbed ones do."""
    record = load(HERE / "kills" / "cpu.json")
    cells = list(dict.fromkeys(row["cell"] for row in record["rows"]))
    stages = list(record["rows"][0]["kills"])
    rows = [kill_row(c, [r for r in record["rows"] if r["cell"] == c], stages) for c in cells]
    rows.append(kill_row("all", record["rows"], stages))
    head = ["cell", "optimizers", *stages, "trainings that ended", "bit for bit the same", "not"]
    return f"{table(head, rows)}\n\n{machines([record])}."


def kill_row(name: str, rows: list[dict[str, Any]], stages: list[str]) -> list[str]:
    counts = [sum(row["kills"][stage] for row in rows) for stage in stages]
    ended, same = (sum(row[key] for row in rows) for key in ("trainings", "identical"))
    optimizers = ", ".join(dict.fromkeys(row["optimizer"] for row in rows))
    return [name, optimizers, *map(str, counts), str(ended), str(same), str(ended - same)]


GRIDS = {
    "NOISIN, multiplicative": "lstm-noisin-multiplicative",
    "Dropout + NOISIN": "lstm-dropout-noisin",
}


def tuned() -> str:
    """A study of ``noisin tune``, beside grids of four entries for the same network."""
    record = load(HERE / "tune" / "pydoc" / "study.json")
    lowest = lowest_so_far(record["trials"])
    rows = [
        [f"`noisin tune`, {count} trials", f"{lowest[count - 1]:.1f}"]
        for count in (4, 8, 12, 16, 20)
        if count <= len(lowest)
    ]
    for title, row in GRIDS.items():
        records = map(load, (HERE / "reproduce/pydoc/regularisers" / row).glob("*.seed1.*.json"))
        valid = [part["final"]["mean_path"]["valid"] for part in records]
        rows.append([f"grid of {len(valid)}: {title}", f"{min(valid):.1f}"])
    best = record["best"]
    note = (
        f"Trial {best['number']} has {best['mean_path']['test']:.1f} on test. "
        f"{machines([record])}; `noisin tune --corpus pydoc --cell lstm "
        "--layers 2 --epochs 25 --patience 4 --trials 20`."
    )
    comparison = table(["seed 1", "lowest validation perplexity"], rows)
    return "\n\n".join([comparison, study_table(record), note])
