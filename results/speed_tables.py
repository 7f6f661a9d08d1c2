"""Tables of time and memory, from the records of the benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from records import HERE, load, machines, table

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
    """The cost of a training step, a table for each machine that it was measured on."""
    return "\n\n".join(speed_table(path) for path in sorted((HERE / "step-cost").glob("*.json")))


def speed_halves() -> str:
    """The tables of :func:`speed` with training in bf16-mixed."""
    return "\n\n".join(
        speed_table(path) for path in sorted((HERE / "step-cost/bf16").glob("*.json"))
    )


def speed_table(path: Path) -> str:
    record = load(path)
    steps = record["steps"]
    over = (f"{row['textbook_over_additive']:.1f}" for row in steps)
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
        f"{versions['torch']}, Python {versions['python']}, noisin-pyro {versions['noisin-pyro']}."
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
        if parts:
            lines.append(f"- {name}: " + "; ".join(parts) + ".")
    return lines


GROWTH = ("unroll", "layers")


def speed_short() -> str:
    """The cost of noise, and the gain of faster products by itself; a column for each machine."""
    records = [load(path) for path in sorted((HERE / "step-cost").glob("*.json"))]

    def span(record: dict[str, Any], variant: str, reference: str) -> str:
        medians = [ratio_of(row, variant) / ratio_of(row, reference) for row in record["steps"]]
        return f"{min(medians):.2f} to {max(medians):.2f}"

    compared = [
        ("ours without noise, over torch's RNN", "clean", "torch"),
        ("additive noise, over ours without noise", "additive", "clean"),
        ("multiplicative noise, over ours without noise", "multiplicative", "clean"),
    ]
    head = [
        "training step of a language model",
        *(f"{_maker(record)} {number}" for number, record in enumerate(records, 1)),
    ]
    rows = [[title, *(span(r, a, b) for r in records)] for title, a, b in compared]
    return "\n".join(
        [table(head, rows), "", f"A column for each machine: {machines(records)}. {_alone()}"]
    )


def _maker(record: dict[str, Any]) -> str:
    """The first word of the processor's name: AMD or Intel."""
    name: str = record["hardware"]["processor"]
    return name.replace("(", " ").split()[0]


def _alone() -> str:
    """The cost of multiplicative noise in networks without a head, a range for each cell."""
    by_cell: dict[str, list[float]] = {}
    for record in _recurrences():
        for row in record["speed"]:
            by_cell.setdefault(row["cell"], []).append(ratio_of(row, "multiplicative"))
    spans = (f"{cell} {min(found):.2f} to {max(found):.2f}" for cell, found in by_cell.items())
    return f"Multiplicative noise without a head, over torch's: {', '.join(spans)}."


#: By variant of ``benchmarks/alternatives.py``: its title and its features.
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
    """Features and measured cost of this library and of the alternatives to it."""
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


def recurrences() -> str:
    """The cost of noise in a recurrent network without a head, a table for each machine."""
    return "\n\n".join(map(recurrence_table, _recurrences()))


def _recurrences() -> list[dict[str, Any]]:
    return [load(path) for path in sorted((HERE / "recurrences").glob("*.json"))]


def recurrence_table(record: dict[str, Any]) -> str:
    rows = [
        [
            f"{row['cell']}, {row['units']} units",
            *(f"{ratio_of(row, name):.2f}" for name in ("clean", *ADDED)),
            f"{row['variants']['torch']['seconds'] * 1e3:.1f} ms",
        ]
        for row in record["speed"]
    ]
    note = (
        f"Forward and backward, {record['layers']} layers, unroll {record['steps']}, batch "
        f"{record['batch']}, medians of {record['rounds']} rounds in turn; {machines([record])}, "
        f"{record['capability']}."
    )
    head = ["ratio to torch's", "ours, `noise=None`", "additive", "multiplicative", "torch's takes"]
    return "\n\n".join([table(head, rows), note])


def busy() -> str:
    """The time of a recurrent network while other programs use the cores."""
    record = load(HERE / "busy" / "cpu.json")
    titles = {"torch": "`torch.nn.LSTM`", "multiplicative": "`NoisyLSTM`, multiplicative"}
    rows = [
        [
            titles[row["network"]] + (f", beside {row['others']}" if row["others"] else ", alone"),
            *(f"{1e3 * seconds:.0f} ms" for seconds in row["seconds"].values()),
        ]
        for row in record["rows"]
    ]
    settings = [name if name == "torch's" else f"`{name}`" for name in record["rows"][0]["seconds"]]
    note = (
        f"A forward and backward pass, {record['layers']} layers of {record['units']} units, "
        f"medians; {machines([record])}."
    )
    return "\n\n".join([table(["settings", *settings], rows), note])


LONG = {
    "lstm": "`torch.nn.LSTM`",
    "gru": "`torch.nn.GRU`",
    "mingru": "`NoisyMinGRU`, `noise=None`",
    "mingru additive": "`NoisyMinGRU`, additive",
    "mingru multiplicative": "`NoisyMinGRU`, multiplicative",
    "mingru loop": "`NoisyMinGRU`, `noise=None`, a loop over steps",
    "products": "its three matrix products alone",
}


def long_sequences() -> str:
    """The cost of layers over long sequences, beside torch's LSTM."""
    record = load(HERE / "long-sequences" / "cpu.json")
    lengths = record["speed"]
    measured = lengths[0]["variants"]
    rows = [[title, *ratios_of(lengths, name)] for name, title in LONG.items() if name in measured]
    seconds = (f"{row['variants']['lstm']['seconds'] * 1e3:.0f} ms" for row in lengths)
    rows.append(["`torch.nn.LSTM` takes", *seconds])
    growth = record["growth"]
    memory = [record["memory"][f"mingru {name}"]["peak_ratio"] for name in ADDED]
    note = (
        f"Forward and backward, batch {record['batch']}, {record['hidden']} units, medians of "
        f"{record['rounds']} rounds in turn; {machines([record])}. The noisy ones grow with "
        f"T^{growth['mingru additive']:.2f} and T^{growth['mingru multiplicative']:.2f}, and take "
        f"{memory[0]:.2f} and {memory[1]:.2f} of the memory of the one without noise."
    )
    head = ["ratio to `torch.nn.LSTM`", *(f"T = {row['steps']:,}" for row in lengths)]
    return "\n\n".join([table(head, rows), note])


ADDED = ("additive", "multiplicative")
