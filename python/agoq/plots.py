"""Drawing a run: loss, learning rate, gradient norm, speed, and memory by owner."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from agoq.run_folder import Memory, Metrics, Record

SMOOTHING = 0.9
TWENTY = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
COLOURS = [*TWENTY[::2], *TWENTY[1::2]]  # the strong ones first

UNITS = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)]


def smooth(values: list[float]) -> list[float]:
    """Exponential moving average that starts without bias and steps over NaN."""
    average, weight, result = 0.0, 0.0, []
    for value in values:
        if not math.isnan(value):
            average = SMOOTHING * average + (1 - SMOOTHING) * value
            weight = SMOOTHING * weight + (1 - SMOOTHING)
        result.append(average / weight if weight else math.nan)
    return result


def draw_loss(axes: Any, metrics: Metrics) -> None:
    steps, losses = metrics.series("loss")
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=0.8, label="training")
    axes.plot(steps, smooth(losses), color="tab:blue", label="training, smoothed")
    steps, losses = metrics.evaluations()
    if steps:
        axes.plot(steps, losses, color="tab:orange", marker="o", markersize=4, label=f"held out: {losses[-1]:.4f}")
    axes.set_ylabel("loss (nats per token)")
    axes.legend()


def draw_series(axes: Any, metrics: Metrics, key: str, label: str, log: bool = False) -> None:
    steps, values = metrics.series(key)
    axes.plot(steps, values, color="tab:green", linewidth=0.9)
    if log and any(value > 0 for value in values):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_ylabel(label)


def unit_of(size: float) -> tuple[str, int]:
    return next((name, scale) for name, scale in UNITS if size >= scale or scale == 1)


def draw_memory(axes: Any, memory: Memory) -> None:
    bars = [("allocated", memory.allocated), ("planned", memory.predicted), ("bf16/fp32", memory.reference)]
    bars = [(name, sizes) for name, sizes in bars if sizes]
    names = list(dict.fromkeys(owner for _, sizes in bars for owner in sizes))
    unit, scale = unit_of(max((sum(sizes.values()) for _, sizes in bars), default=0))
    bottom = [0.0] * len(bars)
    for at, owner in enumerate(names):
        heights = [sizes.get(owner, 0) / scale for _, sizes in bars]
        axes.bar(range(len(bars)), heights, bottom=bottom, width=0.6, label=owner, color=COLOURS[at % len(COLOURS)])
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    for at, total in enumerate(bottom):
        axes.text(at, total, f"{total:,.1f}", ha="center", va="bottom")
    axes.set_xticks(range(len(bars)), [name for name, _ in bars])
    axes.set_ylabel(f"memory of rank {memory.rank} by owner ({unit})")
    axes.margins(y=0.1)
    axes.legend(*(reversed(part) for part in axes.get_legend_handles_labels()), fontsize=8, loc="upper left",
                bbox_to_anchor=(1.01, 1))


def describe(summary: Record | None) -> str:
    if not summary:
        return ""
    labels = {"valid_loss": "held-out loss {:.4f}", "tokens": "{:,.0f} tokens", "tokens_per_second": "{:,.0f} tokens/s",
              "bytes_per_parameter": "{:.2f} bytes/parameter",
              "saved_bytes_per_token_layer": "{:,.0f} saved bytes per token and layer"}
    return "    ".join(form.format(summary[key]) for key, form in labels.items()
                       if isinstance(summary.get(key), (int, float)))


def draw_run(name: str, metrics: Metrics, memory: Memory | None, summary: Record | None, output: Path) -> None:
    """One picture of the run; the format follows the name of the file."""
    figure = plt.figure(figsize=(15, 8), layout="constrained")
    grid = figure.add_gridspec(2, 3)
    draw_loss(figure.add_subplot(grid[0, :2] if memory else grid[0, :]), metrics)
    if memory:
        draw_memory(figure.add_subplot(grid[0, 2]), memory)
    draw_series(figure.add_subplot(grid[1, 0]), metrics, "lr", "learning rate")
    draw_series(figure.add_subplot(grid[1, 1]), metrics, "grad_norm", "gradient norm", log=True)
    draw_series(figure.add_subplot(grid[1, 2]), metrics, "tokens_per_second", "tokens/s")
    for axes in figure.axes:
        axes.set_axisbelow(True)
        of_steps = not axes.get_ylabel().startswith("memory")
        axes.grid(alpha=0.3, axis="both" if of_steps else "y")
        axes.set_xlabel("step" if of_steps else "")
    figure.suptitle("\n".join(line for line in (name, describe(summary)) if line))
    figure.savefig(output, dpi=110)
    plt.close(figure)
