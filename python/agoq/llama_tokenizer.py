"""What transformers 5 makes of a tokenizer.json whose class is LlamaTokenizer: it keeps vocabulary, merges and
post-processor, and cuts text into words in its own way. So " a" is one token for it where the file alone says two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agoq.json_file import Settings, read_json

SPACE = "\u2581"
DEFAULTS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def is_llama(folder: Path, inner: Any) -> bool:
    """Mistral's folders name the class too, and are read as the file says; so are byte-level files (LLaMA-3)."""
    from tokenizers import models

    family = str(read_json(folder / "tokenizer_config.json").get("tokenizer_class"))
    model_type = str(read_json(folder / "config.json").get("model_type"))
    return (family.removesuffix("Fast") == "LlamaTokenizer" and isinstance(inner.model, models.BPE)
            and not model_type.startswith(("mistral", "qwen2")) and "ByteLevel" not in repr(inner.pre_tokenizer))


def rebuild(inner: Any, config: Settings) -> None:
    from tokenizers import decoders, pre_tokenizers

    prefix = config.get("add_prefix_space") is not False
    scheme = ("always" if config.get("legacy") else "first") if prefix else "never"
    inner.model.unk_token, inner.model.fuse_unk, inner.model.byte_fallback = None, True, True
    inner.normalizer = None
    inner.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False)
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    inner.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
