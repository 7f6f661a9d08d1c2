"""Renders the figures in README.md, results/README.md and docs/speed.md from the records in this
folder and the notebooks' outputs.

``python results/render.py`` rewrites what stands between the markers, and the pictures;
``--check`` only compares.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

from noisin_pyro.experiments.markdown import markdown_table
from noisin_pyro.experiments.recipe import Options
from noisin_pyro.experiments.reproduce import render
from noisin_pyro.experiments.summary import MeanStd
from noisin_pyro.tuning.report import lowest_so_far, study_table

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
ACCOUNT = HERE / "README.md"
SPEED_PAGE = HERE.parent / "docs" / "speed.md"

table = partial(markdown_table, rule="---")


def runs(pattern: str, folder: str) -> str:
    """Runs of ``noisin train``: the noisy model and its deterministic twin side by side.

    Args:
        pattern: which of the folders here.
        folder: where they are, as seen from the file that links to them.
    """
    head = ["run", "model", "valid", "test", "test, 16 samples averaged", "best epoch", "tokens/s"]
    records = {path.parent.name: load(path) for path in sorted(HERE.glob(f"{pattern}/record.json"))}
    rows = [row for name, record in records.items() for row in run_rows(name, record, folder)]
    notes = [hardware(name, record) for name, record in records.items()]
    return "\n".join([table(head, rows), "", *notes])


def load(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


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


SPEED = {
    "torch": "torch's own, deterministic",
    "clean": "ours, `noise=None`",
    "additive": "ours, additive",
    "multiplicative": "ours, multiplicative",
    "trace-additive": "additive under `Trace_ELBO` + `PriorGuide`",
    "trace-multiplicative": "multiplicative under `Trace_ELBO` + `PriorGuide`",
    "by-hand": "additive, a loop by hand in PyTorch",
    "textbook": "additive, the textbook Pyro program",
}


def speed() -> str:
    """What a training step costs, one table for each machine it was measured on."""
    return "\n\n".join(speed_table(path) for path in sorted((HERE / "step-cost").glob("*.json")))


def speed_halves() -> str:
    """The same in bf16-mixed."""
    return "\n\n".join(speed_table(path) for path in sorted((HERE / "step-cost/bf16").glob("*")))


def speed_table(path: Path) -> str:
    record = load(path)
    steps = record["steps"]
    over = (f"{ratio_of(row, 'textbook') / ratio_of(row, 'additive'):.1f}" for row in steps)
    seconds = (f"{row['variants']['torch']['seconds'] * 1e3:.0f} ms" for row in steps)
    rows = [
        *([title, *ratios_of(steps, name)] for name, title in SPEED.items()),
        ["the textbook program over ours, additive", *over],
        ["torch's own takes", *seconds],
        ["its matrix products alone, by `torch.mm`", *ratios_of(steps, "products")],
    ]
    if "memory" in record:
        for name in ("additive", "multiplicative"):
            rows.append([f"peak memory, {name}", *ratios_of(record["memory"], name)])
    head = ["training step, ratio to torch's", *(row["setting"] for row in steps)]
    machine, versions = record["hardware"], record["versions"]
    lines = [table(head, rows), "", *other_costs(record), ""]
    lines.append(
        f"Medians of {record['rounds']} rounds in turn in one process; unroll 35, batch 20, fused "
        f"Adam. {machine.get('gpu', machine['processor'])}, {machine['threads']} thread(s), torch "
        f"{versions['torch']}, Python {versions['python']}."
    )
    return "\n".join(lines)


def ratios_of(rows: list[dict[str, Any]], variant: str) -> list[str]:
    return [f"{ratio_of(row, variant):.2f}" for row in rows]


def ratio_of(row: dict[str, Any], variant: str) -> float:
    """The cost of a variant over that of torch's own deterministic RNN."""
    ratio: float = row["variants"][variant]["ratio"]
    return ratio


def other_costs(record: dict[str, Any]) -> list[str]:
    lines = []
    for name in ("additive", "multiplicative"):
        parts = []
        if "evaluation" in record:
            ratio = record["evaluation"][f"{name}, S = 16"]["ratio"]
            parts.append(f"averaging 16 samples costs {ratio:.1f} mean paths")
        if "particles" in record:
            few, many = (record["particles"][f"{name}, S = {count}"]["ratio"] for count in (4, 16))
            parts.append(f"4 and 16 particles cost {few:.1f} and {many:.1f} of one")
        if "growth" in record:
            steps, layers = (record["growth"][axis][name]["exponent"] for axis in GROWTH)
            parts.append(f"cost grows with unroll^{steps:.2f} and layers^{layers:.2f}")
        if "loop" in record:
            parts.append(
                f"`noisin train` reaches {record['loop'][name]['ratio']:.2f} of its bare step's "
                "tokens/s"
            )
        if parts:
            lines.append(f"- {name}: " + "; ".join(parts) + ".")
    return lines


GROWTH = ("unroll", "layers")


def speed_short() -> str:
    """What noise costs, apart from what the faster products bring; a column for each machine."""
    records = [load(path) for path in sorted((HERE / "step-cost").glob("*.json"))]

    def span(record: dict[str, Any], variant: str, reference: str) -> str:
        medians = [ratio_of(row, variant) / ratio_of(row, reference) for row in record["steps"]]
        return f"{min(medians):.2f} to {max(medians):.2f}"

    compared = [
        ("ours without noise, over torch's RNN", "clean", "torch"),
        ("additive noise, over ours without noise", "additive", "clean"),
        ("multiplicative noise, over ours without noise", "multiplicative", "clean"),
        ("the textbook Pyro program, over ours with additive noise", "textbook", "additive"),
    ]
    head = ["training step", *(f"machine {number + 1}" for number in range(len(records)))]
    rows = [[title, *(span(r, a, b) for r in records)] for title, a, b in compared]
    return "\n".join([table(head, rows), "", f"{machines(records)}."])


def machines(records: list[dict[str, Any]]) -> str:
    """The hardware of some records, each kind once."""
    kinds = {
        f"{r['hardware'].get('gpu', r['hardware']['processor'])}, {r['hardware']['threads']} "
        f"thread(s), torch {r['versions']['torch']}, Python {r['versions']['python']}"
        for r in records
    }
    return "; ".join(sorted(kinds))


#: What else one would use: by variant of ``benchmarks/alternatives.py``, its title and features.
ALTERNATIVES = {
    "additive": ("noisin_pyro, additive", "states", "yes", "yes", "yes"),
    "multiplicative": ("noisin_pyro, multiplicative", "states", "yes", "yes", "yes"),
    "dropout between layers": ("`nn.LSTM(dropout=...)`", "layers' outputs", "yes", "no", "no"),
    "weight drop by hand": ("weight drop of AWD-LSTM", "recurrent weights", "yes", "no", "no"),
    "variational dropout by hand": ("variational dropout, a loop", "states", "no", "no", "no"),
    "zoneout by hand": ("zoneout, a loop", "states", "no", "no", "no"),
    "bayesian-torch": ("bayesian-torch", "weights", "no", "no", "yes"),
    "textbook": ("Pyro, a site a step by hand", "states", "no", "yes", "yes"),
}


def alternatives() -> str:
    """Features and measured cost of what one would use instead."""
    record = load(HERE / "alternatives" / "cpu.json")
    measured = record["variants"]
    head = ["", "acts on", "stays an `nn.LSTM`", "any distribution", "an ELBO", "training step"]
    rows = [
        [*features, f"{measured[name]['ratio']:.2f}" if name in measured else "not measured"]
        for name, features in ALTERNATIVES.items()
    ]
    note = (
        f"Training step over that of `nn.LSTM`: {record['setting']}, median of {record['rounds']} "
        f"rounds in turn; {machines([record])}."
    )
    return "\n".join([table(head, rows), "", note])


#: What ``noisin reproduce`` left in ``reproduce/``, with the options it was run with.
REPRODUCED = {
    "table2-ptb": ("table2", Options(grid=1, seeds=1, precision="bf16-mixed")),
    "table2-pydoc": ("table2", Options(corpus="pydoc", grid=4)),
    "table2-pydoc-long": ("table2", Options(corpus="pydoc", grid=3, seeds=1, epochs=120)),
    "figure2-ptb": ("figure2", Options(grid=2, seeds=1, precision="bf16-mixed")),
    "spread-pydoc": ("spread", Options(seeds=1)),
    "samples-pydoc": ("samples", Options()),
    "regularisers-pydoc": ("regularisers", Options()),
    "linear-pydoc": ("linear", Options()),
}


def reproduced() -> dict[str, str]:
    """Each experiment's part of the account: comparison, details, hardware."""
    return {
        name: render(experiment, options, HERE / "reproduce")
        for name, (experiment, options) in REPRODUCED.items()
    }


#: By model, the record of Table 2 that is the run SINGLE of ``noisin train`` in another precision.
SINGLE = "ptb-tanh-256"
MIXED = {
    "deterministic": "1-tanh-none/plain.seed1.2e2562f6.json",
    "noisin": "1-tanh-noisin/multiplicative-0.5.seed1.cdf35c07.json",
}


def precision() -> str:
    """Two runs in float32 and in bf16-mixed."""
    single = load(HERE / SINGLE / "record.json")
    rows = []
    for model, name in MIXED.items():
        mixed = load(HERE / "reproduce" / "ptb" / "table2" / name)
        for record, training in ((single, single["models"][model]), (mixed, mixed)):
            final = training["final"]["mean_path"]
            cells = [
                mixed["method"],
                record["config"]["precision"],
                f"{final['valid']:.1f}",
                f"{final['test']:.1f}",
                str(training["best_epoch"]),
            ]
            rows.append(cells)
    return table(["1 layer, tanh", "precision", "valid", "test", "best epoch"], rows)


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


PARTICLES = {"one": "1", "independent": "2 independent", "pair": "2 antithetic"}
EPOCHS = (1, 2, 4, 8, 16)


def antithetic() -> str:
    """How the gradients of particles vary, independent and in pairs, and how training goes."""
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
    """How often trainings were killed, and with what they ended, by cell."""
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
    """A study of noisin tune, beside the grids of four for the same network."""
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


PICTURES = {"01_quickstart": 0, "03_empty_kl": 0}  # which of a notebook's figures README shows


def pictures() -> dict[Path, bytes]:
    """README's pictures by their paths, as the committed notebooks hold them."""
    images_by_path = {}
    for name, index in PICTURES.items():
        cells = load(HERE.parent / "notebooks" / f"{name}.ipynb")["cells"]
        outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
        images = [data["image/png"] for data in outputs if "image/png" in data]
        path = HERE.parent / "notebooks" / "figures" / f"{name}.png"
        images_by_path[path] = base64.b64decode(images[index])
    return images_by_path


def rendered() -> dict[Path, str]:
    """The files with every marked part rendered anew."""
    account = reproduced()
    corpora = (HERE / "reproduce" / "table1.md").read_text(encoding="utf-8").strip()
    short = {f"short:{name}": compared(part.split("\n\n")[0]) for name, part in account.items()}
    costs = {"speed": speed(), "speed-bf16": speed_halves()}
    first = {"alternatives": alternatives(), "speed-short": speed_short(), **short}
    parts = {
        "table1": corpora,
        "precision": precision(),
        "runs": runs("*", ""),
        "tight-bounds": tight_bounds(),
        "tune": tuned(),
        "kills": kills(),
        "antithetic": antithetic(),
        **account,
    }
    files = {README: first, ACCOUNT: parts, SPEED_PAGE: costs}
    return {path: replaced(path, known) for path, known in files.items()}


def compared(markdown: str) -> str:
    """A table of methods, a row for each that has been run, and without its last column."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]
    head, _, *blocks = [row[:-1] for row in rows]
    methods = [column for column in zip(head, *blocks) if set(column[1:]) != {"–"}]
    return table(list(methods[0]), [list(cells) for cells in methods[1:]])


def replaced(path: Path, parts: dict[str, str]) -> str:
    """A file with the parts it has markers for; every marker must have its part."""

    def part(match: re.Match[str]) -> str:
        if match[2] not in parts:
            raise SystemExit(f"{path.name} asks for {match[2]!r}; there are {', '.join(parts)}")
        return f"{match[1]}{parts[match[2]]}\n{match[3]}"

    text = path.read_text(encoding="utf-8")
    pattern = r"(<!-- results:(\S+) -->\n).*?(<!-- end -->)"
    return re.sub(pattern, part, text, flags=re.DOTALL)


def main() -> int:
    """Exit code 1 if ``--check`` finds a difference."""
    if "--check" in sys.argv:
        stale = [
            str(p) for p, data in pictures().items() if not p.exists() or p.read_bytes() != data
        ]
        stale += [str(p) for p, text in rendered().items() if p.read_text("utf-8") != text]
        if stale:
            print(f"{', '.join(stale)} differ; run python results/render.py", file=sys.stderr)
        return 1 if stale else 0
    for path, data in pictures().items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    for path, text in rendered().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
