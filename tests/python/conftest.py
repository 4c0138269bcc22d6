"""Fixtures: the package on the path, a small real tokenizer, and commands run as the program runs them."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent.parent / "python"
sys.path.insert(0, str(PACKAGE))

PROGRAM = Path(os.environ.get("AGOQ_PROGRAM", PACKAGE.parent / "build" / "agoq"))

Done = subprocess.CompletedProcess[bytes]
Run = Callable[..., Done]
Refuse = Callable[..., str]

SAMPLE = """The river ran slowly past the old mill, and nobody in the village remembered who had built it.
"Twelve years," said the miller, "and 365 days in each; that makes 4,380 mornings."
  An indented line, a tab\tand some accents: café, naïve, Zürich, 東京, Ωmega.

Don't they'll we've it's: short forms; semi-colons... and ellipses!
"""

CHATML = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
          "+ '<|im_end|>' + '\\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


@pytest.fixture(scope="session", autouse=True)
def blas_core() -> None:
    """Name the kernels of OpenBLAS for which the program would start itself once more: each of its starts counts."""
    if PROGRAM.is_file():
        report = subprocess.run([PROGRAM, "doctor"], capture_output=True, encoding="utf-8", check=False).stdout
        if found := re.search(r"kernels for (\w+)", report):
            os.environ.setdefault("OPENBLAS_CORETYPE", found[1])


def checked(done: Done, status: int) -> Done:
    assert done.returncode == status, done.stderr.decode()
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


@pytest.fixture
def run_process() -> Run:
    """Run `python -m agoq <command>`; a status other than the expected one fails the test."""
    def call(command: str, *arguments: object, stdin: bytes = b"", status: int = 0) -> Done:
        return checked(subprocess.run([sys.executable, "-m", "agoq", command, *map(str, arguments)], input=stdin,
                                      capture_output=True, env=os.environ | {"PYTHONPATH": str(PACKAGE)}, check=False),
                       status)
    return call


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """The same within this process, which saves the start of an interpreter."""
    from agoq.command import run_command

    def call(command: str, *arguments: object, stdin: bytes = b"", status: int = 0) -> Done:
        out, err = io.BytesIO(), io.BytesIO()
        ended = 0
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [f"agoq {command}", *map(str, arguments)])
            for name, stream in (("stdin", io.BytesIO(stdin)), ("stdout", out), ("stderr", err)):
                patch.setattr(sys, name, io.TextIOWrapper(stream, "utf-8", write_through=True))
            try:
                run_command(command, lambda: import_module(f"agoq.{command}").main())
            except SystemExit as end:  # as the interpreter does at its end
                if isinstance(end.code, str):
                    print(end.code, file=sys.stderr)
                ended = end.code if isinstance(end.code, int) else int(end.code is not None)
            result = Done(sys.argv, ended, out.getvalue(), err.getvalue())
        return checked(result, status)
    return call


@pytest.fixture
def refuse() -> Refuse:
    """Call `agoq data` in this process; it must refuse, and its message is returned."""
    from agoq import data
    from agoq.command import UserError

    def call(*arguments: object) -> str:
        with pytest.raises(UserError) as caught:
            data.main(["--quiet", "--workers", "1", *map(str, arguments)])
        return str(caught.value)
    return call


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE with chat tokens, trained here, laid out as a Hugging Face folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("tokenizer")
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    inner.train_from_iterator([SAMPLE] * 4, trainer)
    inner.save(str(folder / "tokenizer.json"))
    inner.model.save(str(folder))  # vocab.json and merges.txt, for the GPT-2 layout
    settings = {"eos_token": {"content": "<|endoftext|>"}, "bos_token": None, "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def sample() -> str:
    return SAMPLE
