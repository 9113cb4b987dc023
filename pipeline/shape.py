"""What of a model decides its memory and its work; reads a config.json, loads nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import ModelConfig, Placement
from .model_folder import read_entries, refuse_experts


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a dense transformer."""

    parameters: float
    layers: int
    hidden: int
    kv_width: int
    vocabulary: int
    embeddings: float
    """Parameters of the embedding and the head, once where they are tied."""
    source: str
    """Where the figures come from, for a person."""

    @property
    def body(self) -> float:
        """Parameters that each token is multiplied with; the embedding is only looked up."""
        return self.parameters - self.embeddings

    @property
    def head(self) -> float:
        """Parameters that each scored token is multiplied with."""
        return float(self.vocabulary * self.hidden)


def model_shape(model: ModelConfig, placement: Placement) -> Shape:
    """From the model's config.json where it is at hand, else from the number of parameters."""
    if (model.path / "config.json").is_file():
        return _shape_of_folder(model.path)
    if placement.parameters_b is None:
        raise ValueError(f"model.path = {str(model.path)!r} is not at hand and placement.parameters_b is not set: the size is unknown")
    return _shape_of_count(placement.parameters_b * 1e9)


def _shape_of_folder(folder: Path) -> Shape:
    found: Any = read_entries(folder)
    refuse_experts(found)
    hidden, layers, vocabulary = found["hidden_size"], found["num_hidden_layers"], found["vocab_size"]
    head = found.get("head_dim") or hidden // found["num_attention_heads"]
    kv_width = head * found.get("num_key_value_heads", found["num_attention_heads"])
    attention = 2 * hidden * head * found["num_attention_heads"] + 2 * hidden * kv_width
    embeddings = vocabulary * hidden * (1 if found.get("tie_word_embeddings") else 2)
    parameters = embeddings + layers * (attention + 3 * hidden * found["intermediate_size"] + 2 * hidden) + hidden
    return Shape(parameters, layers, hidden, kv_width, vocabulary, embeddings, f"{folder}/config.json")


def _shape_of_count(parameters: float) -> Shape:
    """A Llama-like model: H / L near 102, 12 H^2 parameters a layer, 8 key/value heads of 128, as in Qwen2.5-72B (L 80, H 8192)."""
    hidden = round((parameters * 102 / 12) ** (1 / 3) / 128) * 128 or 128
    layers = max(1, round(parameters / (12 * hidden**2)))
    embeddings = min(2 * 152_064 * hidden, parameters / 2)
    return Shape(parameters, layers, hidden, min(1024, hidden), 152_064, embeddings, f"estimated from {parameters / 1e9:g} B parameters")
