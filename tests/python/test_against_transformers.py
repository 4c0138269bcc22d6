"""Model folders: what `agoq eval` computes of them is what transformers computes, or the folder is refused by name."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = Path(os.environ.get("AGOQ_PROGRAM", ROOT / "build" / "agoq"))
pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason=f"{PROGRAM} is not built")

Config = dict[str, Any]
SEQUENCE = 48  # longer than every window and every original context here
SIZES: Config = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
                 "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
                 "initializer_range": 0.3, "eos_token_id": 2}
FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "olmo": "Olmo",
            "olmo2": "Olmo2"}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ORIGINAL = "original_max_position_embeddings"


def agoq(*arguments: object, status: int = 0) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, errors="replace",
                          env=environment, check=False, timeout=120)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens.bin"
    np.random.default_rng(5).integers(0, SIZES["vocab_size"], 4 * SEQUENCE + 1).astype("<u2").tofile(path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder of each family with random weights, large enough for every mistake to show in the loss."""
    folders: dict[str, Path] = {}

    def build(family: str) -> Path:
        if family not in folders:
            torch.manual_seed(1)
            folders[family] = tmp_path_factory.mktemp(family)
            config = getattr(transformers, FAMILIES[family] + "Config")(**SIZES)
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if parameter.dim() == 1:
                        parameter.uniform_(0.7, 1.3) if "norm" in name else parameter.normal_(0, 0.3)
            model.save_pretrained(folders[family])
        return folders[family]
    return build


@pytest.fixture
def folder(weights: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """The family's weights beside a changed config.json. A value of ... removes the key."""
    def build(family: str, change: Config | None = None) -> Path:
        target = Path(shutil.copytree(weights(family), tmp_path / "model", dirs_exist_ok=True))
        config = json.loads((target / "config.json").read_text()) | (change or {})
        if "rope_scaling" in config or "rope_theta" in config and "rope_parameters" not in (change or {}):
            config.pop("rope_parameters", None)  # the key of transformers 5 for what these two are in transformers 4
        config = {key: value for key, value in config.items() if value is not ...}
        (target / "config.json").write_text(json.dumps(config))
        return target
    return build


def reference(model_folder: Path, tokens: Path) -> float:
    """Nats a token, over whole sequences."""
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    ids = torch.from_numpy(np.fromfile(tokens, "<u2").astype(np.int64))
    inputs, targets = ids[:-1].view(-1, SEQUENCE), ids[1:].view(-1)
    with torch.no_grad():
        logits = model(inputs).logits.double()
    return float(torch.nn.functional.cross_entropy(logits.view(len(targets), -1), targets))


def ours(source: Path, tokens: Path, *flags: object) -> float:
    return json.loads(agoq("eval", source, "--data-path", tokens, "--seq-length", SEQUENCE, "--device", "cpu", "--json",
                           *flags))["loss"]


def same(loss: float) -> Any:
    return pytest.approx(loss, abs=2e-5)


COMPUTED: list[tuple[str, Config]] = [
    *((family, {}) for family in FAMILIES),
    ("llama", {"hidden_act": "swish"}),
    ("llama", {"rope_theta": 777.0}),
    ("llama", {"rope_theta": 777.0, "rope_parameters": {"rope_type": "default"}}),
    ("llama", {"rope_theta": 777.0, "rope_parameters": {"rope_type": "default", "rope_theta": 55.0}}),
    ("llama", {"rope_theta": 777.0, "rope_scaling": {"type": "linear", "factor": 3.0}}),
    ("llama", {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 3.0, "rope_theta": 55.0}}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 55.0}}),
    ("llama", {"rope_scaling": {}, "rope_theta": 55.0}),
    ("llama", {"rope_scaling": LLAMA3 | {ORIGINAL: 24}}),
    ("llama", {"rope_scaling": LLAMA3, ORIGINAL: 24}),
    ("llama", {"rope_scaling": LLAMA3 | {ORIGINAL: 24}, ORIGINAL: 24}),
    ("llama", {"rope_scaling": LLAMA3, "max_position_embeddings": 64}),
    ("llama", {"rope_parameters": LLAMA3 | {"rope_theta": 55.0}, ORIGINAL: 24}),
    ("llama", {ORIGINAL: 24}),
    ("llama", {"rms_norm_eps": 0.05}),
    ("llama", {"rms_norm_eps": ...}),
    ("mistral", {"sliding_window": 7}),
    ("mistral", {"sliding_window": None}),
    ("mistral", {"sliding_window": ...}),
    ("mistral", {"sliding_window": 7, "rope_scaling": LLAMA3, ORIGINAL: 24}),
    ("qwen2", {"sliding_window": 7}),
    ("qwen2", {"sliding_window": 7, "use_sliding_window": True, "layer_types": ...}),
    ("qwen2", {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 0, "layer_types": ...}),
    ("qwen2", {"sliding_window": 7, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}),
    ("qwen2", {"attention_bias": False}),
    ("qwen3", {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 0, "layer_types": ...}),
    ("qwen3", {"rope_scaling": {"rope_type": "linear", "factor": 3.0}, "rope_theta": 1e6}),
    ("olmo", {"rope_theta": 55.0}),
    ("olmo", {"rms_norm_eps": 0.05}),
    ("olmo2", {"rms_norm_eps": 0.05}),
    ("olmo2", {"rms_norm_eps": ...}),
    ("olmo2", {"rope_theta": 55.0}),
]


@pytest.mark.parametrize(("family", "change"), COMPUTED, ids=str)
def test_the_loss_is_that_of_transformers(family: str, change: Config, folder: Callable[..., Path],
                                          tokens: Path) -> None:
    built = folder(family, change)
    assert ours(built, tokens) == same(reference(built, tokens))


# Keys with which transformers computes something else, or refuses to load.
REFUSED: list[tuple[str, Config]] = [
    ("llama", {"is_causal": False}),
    ("qwen3", {"is_causal": False}),
    ("llama", {"per_layer_config": {"0": {"num_key_value_heads": 4}}}),
    ("olmo", {"clip_qkv": 0.05}),
    ("llama", {"attention_bias": True}),
    ("llama", {"mlp_bias": True}),
    ("llama", {"rope_scaling": LLAMA3 | {ORIGINAL: 24}, ORIGINAL: 48}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "partial_rotary_factor": 0.5}}),
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 24}}),
    ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}),
    ("qwen2", {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 1, "layer_types": ...}),
    ("llama", {"num_attention_heads": 6, "num_key_value_heads": 3}),
    ("llama", {"hidden_act": "gelu"}),
]


@pytest.mark.parametrize(("family", "change"), REFUSED, ids=str)
def test_what_would_be_computed_otherwise_is_refused(family: str, change: Config, folder: Callable[..., Path],
                                                     tokens: Path) -> None:
    message = agoq("eval", folder(family, change), "--data-path", tokens, "--device", "cpu", status=1)
    assert "config.json: " in message
    assert any(key in message for key in change)


def test_ignored_keys_are_as_if_they_were_not_there(folder: Callable[..., Path], tokens: Path, tmp_path: Path) -> None:
    plain = reference(folder("llama"), tokens)
    strange = folder("llama", {"is_causal": False, "logit_scale": 0.5})
    assert reference(strange, tokens) != same(plain)
    assert "logit_scale" in agoq("plan", strange, "--ignore-config-keys", "is_causal", status=1)
    flag = ("--ignore-config-keys", "is_causal,logit_scale")
    agoq("plan", strange, *flag)
    agoq("inspect", strange, *flag)
    assert ours(strange, tokens, *flag) == same(plain)
    agoq("export", strange, tmp_path / "exported", "--dtype", "fp32", *flag)
    assert reference(tmp_path / "exported", tokens) == same(plain)
    run = tmp_path / "run"
    agoq("train", "--model", strange, "--data-path", tokens, "--device", "cpu", "--seq-length", SEQUENCE, "--lr", 0,
         "--train-iters", 1, "--valid-fraction", 0, "--save", run, *flag)
    assert 'ignore-config-keys = "is_causal,logit_scale"' in (run / "config.toml").read_text()
    assert ours(run, tokens) == same(plain)


IDLE: Config = {
    "_name_or_path": "somewhere", "name_or_path": "somewhere", "transformers_version": "4.31.0", "_commit_hash": "1f",
    "dtype": "float16", "torch_dtype": "float16", "use_bfloat16": True, "_attn_implementation": "eager",
    "attn_implementation": "eager", "_attn_implementation_autoset": True, "_flash_attn_2_enabled": False,
    "experts_implementation": None, "gradient_checkpointing": False, "chunk_size_feed_forward": 4, "pretraining_tp": 2,
    "torchscript": True, "tf_legacy_loss": True, "unsloth_fixed": True, "unsloth_version": "2025.1",
    "agoq_tokenizer": None, "use_cache": False, "return_dict": True, "output_attentions": True,
    "output_hidden_states": True, "output_scores": True, "return_dict_in_generate": True,
    "tie_last_hidden_states": False, "tokenizer_class": "LlamaTokenizer", "prefix": "x", "bos_token_id": 3,
    "eos_token_id": [4, 5], "pad_token_id": 6, "sep_token_id": 7, "unk_token_id": 8, "decoder_start_token_id": 9,
    "forced_bos_token_id": 10, "forced_eos_token_id": 11, "is_decoder": True, "max_sequence_length": 16,
    "max_length": 5, "min_length": 2, "max_new_tokens": 3, "min_new_tokens": 1, "do_sample": True,
    "early_stopping": True, "num_beams": 2, "num_beam_groups": 1, "num_return_sequences": 1, "diversity_penalty": 0.5,
    "length_penalty": 0.5, "repetition_penalty": 1.5, "exponential_decay_length_penalty": [1, 1.5],
    "temperature": 0.1, "top_k": 3, "top_p": 0.1, "min_p": 0.1, "typical_p": 0.5, "epsilon_cutoff": 0.1,
    "eta_cutoff": 0.1, "no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 2, "bad_words_ids": [[1]],
    "remove_invalid_values": True, "suppress_tokens": [1], "begin_suppress_tokens": [1], "id2label": {"0": "a"},
    "label2id": {"a": 0}, "num_labels": 1, "problem_type": "regression", "classifier_dropout": 0.5,
    "finetuning_task": "x", "task_specific_params": {"x": {}}, "max_window_layers": 1,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_known_to_change_nothing_change_nothing(family: str, folder: Callable[..., Path], tokens: Path) -> None:
    plain = reference(folder(family), tokens)
    idle = dict(IDLE)
    if family.startswith("qwen"):
        idle.pop("max_window_layers")  # which is read there
    changed = folder(family, idle)
    assert reference(changed, tokens) == same(plain)
    assert ours(changed, tokens) == same(plain)


def test_every_key_of_the_list_is_in_the_test_above() -> None:
    source = (ROOT / "src" / "model" / "config_keys.cc").read_text()
    table = source[source.index("auto kIdle ="):source.index("struct IdleKey")]
    assert set(re.findall(r'"(\w+)"', table)) == IDLE.keys() - {"max_window_layers"}


SAVED = {
    "llama2": ("llama", {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}),
    "codellama": ("llama", {"max_position_embeddings": 16384, "rope_parameters": {"rope_type": "default",
                                                                                  "rope_theta": 1e6}}),
    "llama3": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "bos_token_id": 128000}),
    "llama3.1": ("llama", {"max_position_embeddings": 131072, "eos_token_id": [128001, 128008],
                           "rope_parameters": LLAMA3 | {ORIGINAL: 8192, "rope_theta": 5e5}}),
    "llama3.2": ("llama", {"tie_word_embeddings": True, "max_position_embeddings": 131072,
                           "rope_parameters": LLAMA3 | {ORIGINAL: 8192, "rope_theta": 5e5, "factor": 32.0}}),
    "mistral-0.1": ("mistral", {"sliding_window": 4096}),
    "mistral-0.3": ("mistral", {"sliding_window": None, "rope_parameters": {"rope_type": "default",
                                                                            "rope_theta": 1e6}}),
    "qwen2": ("qwen2", {"sliding_window": 131072, "use_sliding_window": False}),
    "qwen2.5": ("qwen2", {"tie_word_embeddings": True, "max_window_layers": 21, "use_mrope": False}),
    "qwen3": ("qwen3", {"head_dim": 128, "max_window_layers": 36, "sliding_window": None}),
    "olmo": ("olmo", {"clip_qkv": None, "pad_token_id": 1, "eos_token_id": 50279}),
    "olmo2": ("olmo2", {"rms_norm_eps": 1e-6, "pad_token_id": 100277, "eos_token_id": 100257,
                        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
}


@pytest.mark.parametrize("name", SAVED)
def test_configs_as_transformers_saves_them_load(name: str, tmp_path: Path) -> None:
    family, given = SAVED[name]
    config = getattr(transformers, FAMILIES[family] + "Config")(**SIZES | {"vocab_size": 130000} | given)
    config.architectures = [FAMILIES[family] + "ForCausalLM"]
    config.save_pretrained(tmp_path)
    agoq("inspect", tmp_path / "config.json")


def store(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize("family", ["llama", "qwen3", "olmo2"])
def test_the_stored_head_decides_whether_it_is_tied(family: str, folder: Callable[..., Path], tokens: Path,
                                                    tmp_path: Path) -> None:
    untied = folder(family, {"tie_word_embeddings": True})
    expected = reference(untied, tokens)
    assert ours(untied, tokens) == same(expected)
    run, exported = tmp_path / "run", tmp_path / "exported"
    agoq("train", "--model", untied, "--data-path", tokens, "--device", "cpu", "--seq-length", SEQUENCE, "--lr", 0,
         "--train-iters", 1, "--valid-fraction", 0, "--save", run)
    assert ours(run, tokens) == same(expected)
    agoq("export", run, exported, "--dtype", "fp32")
    assert json.loads((exported / "config.json").read_text())["tie_word_embeddings"] is False
    assert reference(exported, tokens) == same(expected)

    store(untied, lambda t: t.update({HEAD: t[EMBEDDING].clone()}))  # an equal copy
    tied = reference(untied, tokens)
    assert tied != same(expected)
    assert ours(untied, tokens) == same(tied)
    parameters = json.loads(agoq("plan", untied, "--json"))["parameters"]
    store(untied, lambda t: t.pop(EMBEDDING))  # the head alone
    assert reference(untied, tokens) == same(tied)
    assert ours(untied, tokens) == same(tied)
    store(untied, lambda t: t.update({EMBEDDING: t[HEAD] * 2}))
    assert json.loads(agoq("plan", untied, "--json"))["parameters"] == parameters + 300 * 64


def test_the_index_of_shards_decides(folder: Callable[..., Path], tokens: Path) -> None:
    from safetensors.torch import load_file, save_file

    sharded = folder("llama")
    expected = ours(sharded, tokens)
    tensors = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    first = {name: tensor for name, tensor in tensors.items() if "layers.0" in name}
    rest = {name: tensor for name, tensor in tensors.items() if name not in first}
    stale = {name: tensor + 1 for name, tensor in first.items()}
    save_file(first, sharded / "a.safetensors", {"format": "pt"})
    save_file(rest | stale | {"unlisted": torch.ones(3)}, sharded / "b.safetensors", {"format": "pt"})
    places = dict.fromkeys(first, "a.safetensors") | dict.fromkeys(rest, "b.safetensors")
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert ours(sharded, tokens) == same(expected)


def test_more_positions_reach_checkpoint_export_eval_and_generate(folder: Callable[..., Path], tmp_path: Path) -> None:
    short = folder("llama", {"rope_scaling": LLAMA3, "max_position_embeddings": 32})
    text, run, exported = tmp_path / "text.txt", tmp_path / "run", tmp_path / "exported"
    text.write_text("The miller counts his 365 sacks and the river runs. " * 40)
    agoq("train", "--model", short, "--data-path", text, "--tokenizer", "byte", "--device", "cpu", "--seq-length", 96,
         "--max-position-embeddings", 128, "--train-iters", 1, "--save", run)
    agoq("eval", run, "--data-path", text, "--seq-length", 120, "--device", "cpu")
    agoq("generate", run, "--prompt", "a" * 90, "--max-new-tokens", 20, "--seq-length", 120, "--device", "cpu")
    agoq("export", run, exported, "--dtype", "fp32")
    config = transformers.AutoConfig.from_pretrained(exported)
    assert config.max_position_embeddings == 128
    assert config.rope_parameters[ORIGINAL] == 32, "the old length was its default"
