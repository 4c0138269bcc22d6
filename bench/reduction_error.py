#!/usr/bin/env python3
"""Runs build/bench/reduction_error and writes what it found to FOLDER: reduction_error.md, tables with the conditions, and
reduction_error.svg, the errors over the number of ranks. Needs matplotlib (python/requirements.txt, `make venv`).

  .venv/bin/python bench/reduction_error.py bench/results
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import record

INPUTS = {  # in the program's words: ours
    "independent": "Independent Gaussian gradients, nothing in common",
    "correlated": "Gaussian, half of the noise's size in common",
    "heavy-tailed": "The same from Student's t, 3 degrees of freedom",
}
NOT_DRAWN = "fp32 ring"  # orders of magnitude below the others
ABOUT = """\
Gradients of {rows} x {cols} numbers are summed over W ranks and compared with the sum of the same fp32 numbers in fp64.
QuanGrad runs in the program's own exchange, `src/parallel/gradient_exchange`, with a thread as each rank: a rank's gradient is encoded
once, stochastically unless said otherwise, and added in fp32; sharded (ZeRO-1) that is all, the all-reduce form encodes the sum
once more. A ring rounds every rank's gradient and, at every hop, the sum so far to its format, to nearest; that is what summing in bf16
means in a ring of NCCL, and what it would mean in fp8 with a scale for each block of 128."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where to write, from the root of the repository")
    parser.add_argument("--program", default="build/bench/reduction_error", help="(default: %(default)s)")
    options = parser.parse_args()
    done = subprocess.run([options.program], cwd=record.ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{options.program} failed with status {done.returncode}; nothing is written")
    found = json.loads(done.stdout)

    options.name, options.command = "reduction_error", ["bench/reduction_error.py", options.folder]
    folder = record.ROOT / options.folder
    folder.mkdir(parents=True, exist_ok=True)
    draw(found["results"], folder / "reduction_error.svg")
    (folder / "reduction_error.md").write_text(record.document(options, record.machine(), report(found)))


def report(found):
    parts = [ABOUT.format(**found), "![errors over the number of ranks](reduction_error.svg)", "## Relative L2 error"]
    parts += tables(found["results"], "error", "{:.1e}")
    parts += ["## Signed error", "What the sum lost (-) or gained (+) in size, as a share of it: Σ error · sign(exact) / Σ |exact|. "
              "Rounding without bias leaves what chance leaves: about 2e-5 in int8 and 1e-4 in fp8."]
    parts += tables(found["results"], "signed", "{:+.0e}")
    return "\n\n".join(parts)


def tables(results, key, form):
    for name, title in INPUTS.items():
        here = [result for result in results if result["input"] == name]
        ranks = unique(result["ranks"] for result in here)
        rows = [["sum", *(f"W = {w}" for w in ranks)], ["---", *("---:" for _ in ranks)]]
        rows += [[method, *(form.format(y) for y in list(series(here, method, key))[1])] for method in methods(here)]
        yield f"{title}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw(results, path):
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "reduction_error", "font.size": 9})
    figure, panels = plt.subplots(1, len(INPUTS), figsize=(11, 4.2), sharey=True, layout="constrained")
    for axes, (name, title) in zip(panels, INPUTS.items()):
        here = [result for result in results if result["input"] == name and result["method"] != NOT_DRAWN]
        for method in methods(here):
            axes.loglog(*series(here, method, "error"), style_of(method), color=colour_of(method), label=method)
        ranks = unique(result["ranks"] for result in here)
        axes.set_xticks(ranks, ranks)
        axes.set_xticks([], minor=True)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("ranks")
    panels[0].set_ylabel("relative L2 error of the sum")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, metadata={"Date": None})


def style_of(method):
    return "--" if "nearest" in method else ":" if "all-reduce" in method else "-"


def colour_of(method):
    colours = {"QuanGrad int8": "tab:blue", "QuanGrad fp8": "tab:green", "bf16": "tab:orange", "fp8": "tab:red"}
    return next(colour for start, colour in colours.items() if method.startswith(start))


def series(results, method, key):
    return zip(*((result["ranks"], result[key]) for result in results if result["method"] == method))


def methods(results):
    return unique(result["method"] for result in results)


def unique(items):
    return list(dict.fromkeys(items))


if __name__ == "__main__":
    main()
