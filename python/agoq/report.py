"""Draw, follow or export a run: `python -m agoq.report RUN`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from agoq.command import UserError, run_command
from agoq.run_folder import Metrics, read_memory, read_metrics, read_summary

EXAMPLES = """\
examples:
  agoq report runs/demo                      draw runs/demo/report.png
  agoq report runs/demo --output demo.pdf    the format follows the name
  agoq report runs/demo --follow             a table of the steps while the run goes on
  agoq report runs/demo --to tensorboard     event files in runs/demo/tensorboard
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="agoq report", description="Show a run: loss, learning rate, gradient norm, speed and memory by owner.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run, such as runs/demo")
    parser.add_argument("--follow", action="store_true", help="print steps as they come, until the run ends")
    parser.add_argument("--to", choices=("png", "tensorboard"), default="png", help="what to make (default: png)")
    parser.add_argument("--output", type=Path, metavar="PATH",
                        help="picture or folder to write (default: RUN/report.png, RUN/tensorboard)")
    return parser.parse_args()


def read(run: Path) -> Metrics:
    metrics = read_metrics(run)
    if metrics.damaged_lines:
        print(f"{run / 'metrics.jsonl'}: left out {metrics.damaged_lines} lines that were only half written",
              file=sys.stderr)
    if not metrics.steps and not metrics.valid_loss:
        raise UserError(f"{run / 'metrics.jsonl'} holds no step yet")
    return metrics


def draw(run: Path, output: Path) -> None:
    from agoq.plots import draw_run  # matplotlib takes a second to load

    metrics, memory, summary = read(run), read_memory(run), read_summary(run)
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        draw_run(run.resolve().name, metrics, memory, summary, output)
    except ValueError as error:  # an ending that matplotlib does not know
        raise UserError(f"cannot draw '{output}': {error}") from None
    print(output)


def main() -> None:
    arguments = parse_arguments()
    run: Path = arguments.run
    if arguments.follow:
        from agoq.follow import follow

        follow(run)
    elif arguments.to == "tensorboard":
        from agoq.tensorboard_export import export

        folder = arguments.output or run / "tensorboard"
        count = export(read(run), folder)
        print(f"{count} scalars; look at them with: tensorboard --logdir {folder}")
    else:
        draw(run, arguments.output or run / "report.png")


if __name__ == "__main__":
    run_command("report", main)
