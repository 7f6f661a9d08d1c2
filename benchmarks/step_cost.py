"""What a training step costs, against the same step of a deterministic torch RNN.

    python benchmarks/step_cost.py                     # everything, some minutes
    python benchmarks/step_cost.py --json results/step-cost/cpu.json
    python benchmarks/step_cost.py --parts steps --settings "lstm 200x2"
    python benchmarks/step_cost.py --parts steps --precision bf16-mixed --threads 1

Variants run in turn, A B C A B C ..., in one process, so that a machine whose speed drifts slows
all of them; ratios are taken round by round, and the median is reported with its quartiles.
Memory is measured in a fresh process for each variant.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from variants import VARIANTS, Setting, build, floor, noisy_model

from noisin_pyro import Corpus, NoisinELBO, PriorGuide, Vocabulary, detach_state, evaluate
from noisin_pyro.training.record import environment

SETTINGS = (
    Setting("tanh", 256, 1),
    Setting("lstm", 200, 2),
    Setting("lstm", 650, 2),
    Setting("lstm", 200, 2, vocabulary=33_278),
    Setting("gru", 200, 2),
)
SMALL = Setting("lstm", 8, 2, vocabulary=50, unroll=5, batch=4)
PARTS = ("steps", "particles", "evaluation", "growth", "loop", "memory")
SINGLE = ("evaluation", "loop")  # parts that are measured in single precision only


class Clock:
    """Seconds of a call; on a GPU those between two events, once all earlier work is done."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __call__(self, call: Callable[[], Any]) -> float:
        if self.device == "cpu":
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000


def interleaved(
    calls: dict[str, Callable[[], Any]], rounds: int, clock: Clock, warm: int = 2
) -> dict[str, list[float]]:
    """Seconds of each call in each round, all calls once per round."""
    for _ in range(warm):
        for call in calls.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(clock(call))
    return times


def summary(times: Sequence[float], reference: Sequence[float] | None = None) -> dict[str, float]:
    """Median seconds with quartiles, and the ratio to a reference taken round by round."""
    low, middle, high = quartiles(times)
    row = {"seconds": middle, "seconds_q1": low, "seconds_q3": high}
    if reference is not None:
        low, middle, high = quartiles([a / b for a, b in zip(times, reference)])
        row |= {"ratio": middle, "ratio_q1": low, "ratio_q3": high}
    return row


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def steps(settings: Sequence[Setting], rounds: int, clock: Clock) -> list[dict[str, Any]]:
    """Every variant of every setting, beside the matrix products alone."""
    rows = []
    for setting in settings:
        calls = {name: build(name, setting, clock.device) for name in VARIANTS}
        times = interleaved({**calls, "products": floor(setting, clock.device)}, rounds, clock)
        variants = {name: summary(times[name], times["torch"]) for name in times}
        textbook = [a / b for a, b in zip(times["textbook"], times["additive"])]
        row = {
            "setting": setting.name,
            "variants": variants,
            "textbook_over_additive": quartiles(textbook)[1],
        }
        show(setting.name, variants)
        rows.append(row)
    return rows


def particles(setting: Setting, rounds: int, clock: Clock) -> dict[str, Any]:
    """S noise samples per step as one batch, against S times one."""
    calls: dict[str, Callable[[], Any]] = {
        f"{variant}, S = {count}": build(variant, setting.with_(particles=count), clock.device)
        for variant in ("additive", "multiplicative")
        for count in (1, 4, 16)
    }
    times = interleaved(calls, rounds, clock)
    result = {
        name: summary(values, times[f"{name.split(',')[0]}, S = 1"])
        for name, values in times.items()
    }
    show("particles", result)
    return result


def evaluation(setting: Setting, rounds: int, clock: Clock, windows: int = 4) -> dict[str, Any]:
    """Perplexity averaged over 16 samples, against the mean path."""
    tokens = torch.randint(setting.vocabulary, (10 * (70 * windows + 1),))
    calls: dict[str, Callable[[], Any]] = {}
    for variant in ("additive", "multiplicative"):
        model = noisy_model(variant, setting, clock.device)
        for samples in (0, 16):
            calls[f"{variant}, S = {samples}"] = lambda m=model, s=samples: evaluate(m, tokens, s)
    times = interleaved(calls, rounds, clock, warm=1)
    result = {
        name: summary(values, times[f"{name.split(',')[0]}, S = 0"])
        for name, values in times.items()
    }
    show("evaluation", result)
    return result


def growth(setting: Setting, rounds: int, clock: Clock) -> dict[str, Any]:
    """How cost grows with steps, layers and units: the slope of log seconds over log size."""
    axes = {"unroll": (35, 70, 140, 280, 560), "layers": (1, 2, 3, 4), "hidden": (100, 200, 400)}
    if setting.hidden == SMALL.hidden:
        axes = {"unroll": (5, 10), "layers": (1, 2)}
    result: dict[str, Any] = {}
    names = ("torch", "additive", "multiplicative")
    for axis, sizes in axes.items():
        base = setting.with_(layers=1) if axis == "unroll" else setting
        calls = {
            f"{name} {size}": build(name, base.with_(**{axis: size}), clock.device)
            for size in sizes
            for name in names
        }
        times = interleaved(calls, rounds, clock)
        result[axis] = {}
        for name in names:
            seconds = [quartiles(times[f"{name} {size}"])[1] for size in sizes]
            result[axis][name] = {
                "sizes": list(sizes),
                "seconds": seconds,
                "exponent": slope([math.log(s) for s in sizes], [math.log(s) for s in seconds]),
            }
            shown = ", ".join(f"{size}: {s * 1e3:.1f} ms" for size, s in zip(sizes, seconds))
            print(f"{axis:8} {name:16} exponent {result[axis][name]['exponent']:.3f}  ({shown})")
    return result


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    return statistics.linear_regression(x, y).slope


def loop(setting: Setting, rounds: int, clock: Clock, windows: int = 40) -> dict[str, Any]:
    """Tokens per second of ``noisin train`` over those of its bare step.

    The bare step is NoisinELBO, backward, clipping and Adam in a plain loop over the same text;
    ``noisin train`` adds Fabric, progress bar, checks of the loss and, once a minute, a
    checkpoint. Either reads the whole text once a round.
    """
    from lightning_fabric import Fabric

    from noisin_pyro.text.batching import streams
    from noisin_pyro.text.batching import windows as cut
    from noisin_pyro.training.config import TrainConfig
    from noisin_pyro.training.loop import Trainer

    length = (setting.unroll * windows + 1) * setting.batch
    tokens = torch.randint(setting.vocabulary, (length,))
    cell = {"tanh": "rnn_tanh"}.get(setting.cell, setting.cell)
    result = {}
    for variant in ("additive", "multiplicative"):
        config = TrainConfig(
            cell=cell,  # type: ignore[arg-type]
            batch_size=setting.batch,
            unroll=setting.unroll,
            learning_rate=1e-3,
            epochs=1,
            patience=0,
        )
        bare: list[float] = []
        whole: list[float] = []
        for round_ in range(rounds + 1):
            with pyro.settings.context(module_local_params=True):
                model = noisy_model(variant, setting, clock.device)
                objective = NoisinELBO()(model, PriorGuide(model))
            optimizer = torch.optim.Adam(objective.parameters(), lr=1e-3, fused=True)
            stream = streams(tokens, setting.batch).to(clock.device)

            def read(objective=objective, optimizer=optimizer, stream=stream) -> None:  # type: ignore[no-untyped-def]
                state = None
                with pyro.validation_enabled(False):
                    for x, y in cut(stream, setting.unroll):
                        loss, state = objective.with_state(x, y, state)
                        (loss / y.numel()).backward()
                        torch.nn.utils.clip_grad_norm_(objective.parameters(), 5.0)
                        optimizer.step()
                        optimizer.zero_grad()
                        state = detach_state(state)

            seconds = clock(read)
            with (
                tempfile.TemporaryDirectory() as folder,
                pyro.settings.context(module_local_params=True),
            ):
                model = noisy_model(variant, setting, "cpu")
                fabric = Fabric(accelerator=clock.device, devices=1)
                corpus = Corpus(
                    "random", Vocabulary.build(["<eos>"]), tokens, tokens[:500], tokens[:500], ""
                )
                trainer = Trainer(fabric, config, model, corpus, Path(folder), variant)
                progress = trainer.fit()
            if round_:  # the first warms up
                bare.append(seconds)
                whole.append(progress.history[0]["seconds"])
        count = setting.unroll * windows * setting.batch
        ratio = quartiles([b / w for b, w in zip(bare, whole)])
        result[variant] = {
            "bare_tokens_per_second": count / quartiles(bare)[1],
            "train_tokens_per_second": count / quartiles(whole)[1],
            "ratio": ratio[1],
            "ratio_q1": ratio[0],
            "ratio_q3": ratio[2],
        }
        print(f"noisin train over the bare step, {variant}: {ratio[1]:.3f} of its tokens/s")
    return result


def memory(settings: Sequence[Setting], device: str, count: int = 3) -> list[dict[str, Any]]:
    """Peak memory of each variant, in MiB, each in a process of its own.

    On a CPU the resident set: at its peak, and by how much steps raise it above what the
    imports took. On a GPU what torch had allocated at its peak.
    """
    rows = []
    for setting in settings:
        row: dict[str, Any] = {"setting": setting.name, "variants": {}}
        for variant in VARIANTS:
            options = {k: getattr(setting, k) for k in Setting.__dataclass_fields__}
            job = json.dumps({"variant": variant, "setting": options, "device": device, "n": count})
            command = [sys.executable, __file__, "--peak", job]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            row["variants"][variant] = json.loads(done.stdout)
        base = row["variants"]["torch"]
        for own in row["variants"].values():
            own["ratio"] = own["peak"] / base["peak"]
            own["ratio_above_imports"] = own["above_imports"] / max(base["above_imports"], 1e-9)
        print(f"{setting.name}: peak memory, above imports")
        for name, own in row["variants"].items():
            print(f"  {name:22} {own['peak']:8.0f} MiB {own['ratio']:6.3f}   "
                  f"{own['above_imports']:8.0f} MiB {own['ratio_above_imports']:6.3f}")  # fmt: skip
        rows.append(row)
    return rows


def peak(job: dict[str, Any]) -> None:
    """Prints the peak of one variant; runs in a process of its own."""

    def resident() -> float:
        try:  # a child's ru_maxrss starts at its parent's, VmHWM does not
            status = Path("/proc/self/status").read_text(encoding="utf-8")
            line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
            return int(line.split()[1]) / 1024
        except (OSError, StopIteration):
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before = resident()
    step = build(job["variant"], Setting(**job["setting"]), job["device"])
    for _ in range(job["n"]):
        step()
    if job["device"] == "cuda":
        most = torch.cuda.max_memory_allocated() / 2**20
        result = {"peak": most, "above_imports": most}
    else:
        result = {"peak": resident(), "above_imports": resident() - before}
    print(json.dumps(result))


def show(title: str, rows: dict[str, dict[str, float]]) -> None:
    print(title)
    for name, row in rows.items():
        print(
            f"  {name:22} {row['seconds'] * 1e3:9.2f} ms   ratio {row['ratio']:6.3f}"
            f"  [{row['ratio_q1']:.3f}, {row['ratio_q3']:.3f}]"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the record there")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="of torch; its own choice if omitted")
    parser.add_argument("--precision", default="32", choices=("32", "bf16-mixed"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="all if omitted")
    parser.add_argument("--settings", nargs="+", help="only those whose name starts so")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        peak(json.loads(args.peak))
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    halves = args.precision != "32"
    parts = args.parts or [part for part in PARTS if not (halves and part in SINGLE)]
    if halves and set(parts) & set(SINGLE):
        parser.error(f"--precision {args.precision} has no {' and no '.join(SINGLE)}")
    chosen = (SMALL,) if args.quick else SETTINGS
    if args.settings:
        chosen = tuple(s for s in chosen if s.name.startswith(tuple(args.settings)))
        if not chosen:
            parser.error(f"--settings names none of {', '.join(s.name for s in SETTINGS)}")
    chosen = tuple(setting.with_(precision=args.precision) for setting in chosen)
    single = (SMALL if args.quick else Setting()).with_(precision=args.precision)
    clock = Clock(args.device)
    torch.manual_seed(0)
    record: dict[str, Any] = {"schema": 1, **environment(), "device": args.device}
    record |= {"precision": args.precision, "rounds": args.rounds}
    few = max(2, args.rounds // 3)
    jobs: dict[str, Callable[[], Any]] = {
        "steps": lambda: steps(chosen, args.rounds, clock),
        "particles": lambda: particles(single, few, clock),
        "evaluation": lambda: evaluation(single, few, clock, windows=1 if args.quick else 4),
        "growth": lambda: growth(single, few, clock),
        "loop": lambda: loop(single, few, clock, windows=4 if args.quick else 40),
        "memory": lambda: memory(chosen, args.device),
    }
    for part in parts:
        record[part] = jobs[part]()
        if args.json:  # after each part, so that nothing measured is lost
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
