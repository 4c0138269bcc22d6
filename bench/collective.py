#!/usr/bin/env python3
"""Gradients summed over 2, 4, 8 GPUs of this machine, as many as there are: `agoq bench collective` for each number of
ranks, over NVLink or PCIe by NCCL's messages, with NCCL's ways within a machine switched off, as if the network lay between
the GPUs, and in place, in each other's memory. Writes bench/results/collectives.md after every run: the conditions, speedups
over NCCL's sums, errors, all times, and the runs that failed or took longer than --limit.

  bench/collective.py
  bench/collective.py --sizes 32MiB,256MiB --seconds 4
  bench/collective.py --share --ranks 2 4       # ranks share GPU 0
  bench/collective.py --device cpu --ranks 2 --sizes 1MiB --output -
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import record
import support

# Between GPUs of one machine: our codes by NCCL's messages, as between machines, and in each other's memory.
LINKS = {"messages of NCCL": ([], {}), "P2P and shared memory off": ([], {"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1"}),
         "in place": (["--gpu-transport", "direct"], {})}
SHARED = {"host memory": ([], {}), "direct": (["--gpu-transport", "direct"], {})}  # a GPU
ON_CPU = {"host memory": ([], {})}
FORMS = ("exchange", "reduce", "all-reduce")
ABOUT = """\
Every rank has a Gaussian gradient of its own; sizes are counted in fp32. `exchange`: each rank gets the partial sums of all ranks for its slice,
encoded, as the sharded optimizer (ZeRO-1) reads them; `reduce`: their fp32 sum, encoded once, too; `all-reduce`: that of all
slices on all ranks. Times are medians, of the slowest rank; all methods take turns in one run. Algorithm bandwidth is the
gradient's bytes in fp32 over the time, bus bandwidth what a rank must send in the wire's format, a share (W - 1) / W of the
gradient, twice for all-reduce. Speedups are over NCCL's ncclReduceScatter and ncclAllReduce, or, where ranks have no GPU of their
own, over our exchange of fp32 and bf16. The error is L2, relative to the same sum in fp64. The ring in fp8 is what 8 bits give
without our exchange: partial sums are rounded at every hop."""


def main():
    options = parse_options()
    gpus = support.visible_gpus() if options.device == "cuda" else []
    ranks = options.ranks or [w for w in (2, 4, 8) if w <= len(gpus)]
    if not ranks:
        sys.exit(f"{len(gpus)} GPUs here: nothing to sum over; --share lets ranks share one, --device cpu --ranks 2 does without")
    links = ON_CPU if options.device == "cpu" else SHARED if options.share else LINKS
    runs, failures = [], []  # (ranks, link, what was measured), (ranks, link, why not)
    for world in ranks:
        for link, how in links.items():
            result = run(world, *how, gpus[:1 if options.share else world], options)
            (failures if "failed" in result else runs).append((world, link, result))
            print(f"{world} ranks, {link}: {result.get('failed', 'done')}", file=sys.stderr, flush=True)
            if runs and options.output != "-":
                write(record.ROOT / options.output, document(runs, failures, options))
    if options.output == "-":
        print(document(runs, failures, options))
    return 0 if runs else 1


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", help="processes of a run (default: 2 4 8, as there are GPUs)")
    parser.add_argument("--sizes", help="of gradients, counted in fp32 (default: those of the program)")
    parser.add_argument("--seconds", type=float, default=10, help="a method is measured for a twentieth of it (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=300, help="seconds after which a run is given up (default: %(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--share", action="store_true", help="all ranks on the first GPU")
    parser.add_argument("--agoq", default="build/agoq", help="the program, from the root of the repository (default: %(default)s)")
    parser.add_argument("--output", default="bench/results/collectives.md", help="from the root; -: print it (default: %(default)s)")
    options = parser.parse_args()
    if options.output != "-":
        record.refuse_machine_paths(parser, sys.argv[1:])
    support.check_program(options.agoq)
    return options


def run(world, flags, variables, gpus, options):
    """What the program has written; or {"failed": why}."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "sums.json"
        words = [options.agoq, "bench", "collective", "--device", options.device, "--seconds", f"{options.seconds:g}", "--json", out,
                 "--threads", support.threads_each(world), "--distributed-timeout-minutes", 3, *flags]
        words += ["--sizes", options.sizes] if options.sizes else []
        with support.Ranks(words, world, gpus, variables) as ranks:
            ranks.until(lambda: False, options.limit)  # all have ended, or one has failed
            if any(status != 0 for status in ranks.wait(5)):
                return {"failed": ranks.failure()}
        return json.loads(out.read_text())


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def document(runs, failures, options):
    options.name, options.command = "collectives", ["bench/collective.py", *sys.argv[1:]]
    conditions = record.machine()
    parts = [ABOUT]
    if failures:
        parts += ["## Failed", "\n".join(f"- {world} ranks, {link}: {result['failed']}" for world, link, result in failures)]
    if runs:
        found = runs[0][2]
        conditions |= {"device": found["device"], "NCCL": found["nccl"] or "not in this build"}
        parts += ["## Speedups", speedups(runs), "## Errors", errors(runs)]
    for world, link, result in runs:
        variables = " ".join(f"{name}={value}" for name, value in result["nccl_variables"].items())
        parts += [f"## {world} ranks, {link}", f"{result['link']}{'; ' if variables else ''}{variables}", times(result)]
    return record.document(options, conditions, "\n\n".join(parts))


def speedups(runs):
    rows = []
    for world, link, result in runs:
        for entry in ours(result):
            rows.append([world, link, size(entry["bytes"]), entry["sum"], entry["wire"], *(factor(entry, rival) for rival in ("fp32", "bf16"))])
    return table(["ranks", "link", "gradient", "sum", "wire", "over fp32", "over bf16"], rows)


# An error depends neither on the link nor, but for chance, on the size: those of the largest gradient.
def errors(runs):
    most = {world: largest(result["sums"]) for world, _, result in runs if result["sums"]}
    methods = dict.fromkeys(method(entry) for entries in most.values() for entry in entries)
    rows = []
    for name in sorted(methods, key=lambda name: FORMS.index(name[0])):
        found = {world: entry["error"] for world, entries in most.items() for entry in entries if method(entry) == name}
        rows.append([" ".join(name), *(f"{found[w]:.2e}" if w in found else "" for w in most)])
    return table(["sum", *(f"W = {w}" for w in most)], rows)


def largest(sums):
    most = max(entry["bytes"] for entry in sums)
    return [entry for entry in sums if entry["bytes"] == most]


def times(result):
    rows = [[size(e["bytes"]), e["sum"], e["by"], e["wire"], f"{e['ms']:.4f}", f"{e['least_ms']:.4f}",
             f"{e['algorithm_bytes_per_second'] / 1e9:.1f}", f"{e['bus_bytes_per_second'] / 1e9:.1f}", factor(e, "fp32"), factor(e, "bf16")]
            for e in sorted(result["sums"], key=lambda e: (e["bytes"], FORMS.index(e["sum"])))]
    skipped = [f"{size(s['bytes'])} was skipped: {s['why']}." for s in result["skipped"]]
    header = ["gradient", "sum", "by", "wire", "ms", "least ms", "algorithm GB/s", "bus GB/s", "over fp32", "over bf16"]
    return "\n\n".join([table(header, rows), *skipped])


def ours(result):
    return [e for e in result["sums"] if e["by"] == "AGoQ" and e["wire"] in ("int8", "fp8")]


def method(entry):
    return entry["sum"], entry["by"], entry["wire"]


def factor(entry, rival):
    speedup = entry.get(f"speedup_over_{rival}")
    return f"{speedup:.2f}x" if speedup else ""


def size(n):
    unit = next((unit for unit in ("GiB", "MiB", "KiB") if n >= SIZES[unit]), "KiB")
    return f"{n / SIZES[unit]:g} {unit}"


SIZES = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}


def table(header, rows):
    lines = [header, ["---" if name in ("link", "sum", "by", "wire") else "---:" for name in header], *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
