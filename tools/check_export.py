#!/usr/bin/env python3
"""Load an exported folder with transformers, in fp32, and print the logits of some tokens.

    python tools/check_export.py runs/demo/export 1 2 3
    python tools/check_export.py runs/demo/export 1 2 3 --same-as meta-llama/Llama-3.2-1B

Prints one line a position: the best next tokens with their logits. With --same-as the logits of a second folder are
compared, and a difference above 1e-4 ends with status 1.
"""

from __future__ import annotations

import argparse
import sys

import torch
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-4


def logits_of(folder: str, tokens: list[int]) -> torch.Tensor:
    """[tokens, vocabulary]; a tensor that the folder lacks or has in excess is an error, not a warning."""
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                                         output_loading_info=True)
    wrong = {key: names for key, names in report.items() if names}
    if wrong:
        sys.exit(f"{folder} does not fit its config.json: {wrong}")
    with torch.inference_mode():
        return model.eval()(torch.tensor([tokens])).logits[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a folder with config.json and safetensors")
    parser.add_argument("tokens", nargs="+", type=int, help="token ids of one sequence")
    parser.add_argument("--same-as", metavar="FOLDER", help="another folder whose logits must agree")
    parser.add_argument("--top", type=int, default=5, help="logits to print of each position")
    arguments = parser.parse_args()

    logits = logits_of(arguments.folder, arguments.tokens)
    best = logits.topk(min(arguments.top, logits.shape[-1]))
    for position, (values, tokens) in enumerate(zip(best.values.tolist(), best.indices.tolist())):
        print(f"{position:5}  " + "  ".join(f"{token}: {value:.6f}" for token, value in zip(tokens, values)))
    print(f"mean {logits.mean().item():.6f}, root mean square {logits.square().mean().sqrt().item():.6f}")
    if arguments.same_as:
        difference = (logits - logits_of(arguments.same_as, arguments.tokens)).abs().max().item()
        print(f"largest difference to {arguments.same_as}: {difference:.3g}")
        sys.exit(difference > TOLERANCE)


if __name__ == "__main__":
    main()
