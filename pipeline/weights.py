"""What a set of weights is, in words that learner and engine can compare: names, shapes, types, digests; knows neither of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Digests = Mapping[str, str]
"""Name of a weight as in the safetensors -> its type, shape and hash."""


Layout = Mapping[str, tuple[int, ...]]
"""Name of a weight as in the safetensors -> its shape."""


def read_layout(folder: Path) -> Layout:
    """Name -> shape of all weights in a model folder, from the headers of its safetensors files."""
    return {name: shape for file in sorted(folder.glob("*.safetensors")) for name, shape in _read_header(file).items()}


def _read_header(file: Path) -> dict[str, tuple[int, ...]]:
    """8 bytes of length, then JSON."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def check_layout(base: Path, ours: Layout) -> None:
    """ValueError where weights have other names or shapes than the folder that the engine was started from; a tied head may be absent."""
    theirs = read_layout(base)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name) and not (name == "lm_head.weight" and name not in ours and is_tied(base)):
            raise ValueError(f"{name} is {_shape(ours.get(name))}, but {_shape(theirs.get(name))} in {base}: the engine could not take it")


def is_tied(folder: Path) -> bool:
    """Whether the head is the embedding, by config.json."""
    return bool(json.loads((folder / "config.json").read_text()).get("tie_word_embeddings", False))


def digest(weight: Any) -> str:
    """Type, shape and hash of a torch tensor; -0 and numbers too small for the processor's bfloat16 products count as 0."""
    import torch
    import xxhash

    whole = weight.detach().to("cpu").contiguous()
    whole = whole.masked_fill(whole.abs() < torch.finfo(whole.dtype).tiny, 0.0)
    hashed = xxhash.xxh3_128_hexdigest(whole.view(-1).view(torch.uint8).numpy())
    return f"{str(whole.dtype).removeprefix('torch.')} {list(whole.shape)} {hashed}"


def describe_difference(sent: Digests, held: Digests) -> str:
    """ "" where both are the same, else a clause that names the first weights that differ."""
    wrong = [name for name in sorted(sent.keys() | held.keys()) if sent.get(name) != held.get(name)]
    if not wrong:
        return ""
    first = wrong[0]
    return (
        f"{len(wrong)} of {len(sent.keys() | held.keys())} weights differ, first {first}: "
        f"the learner sent {sent.get(first, 'none')}, the engine holds {held.get(first, 'none')}"
    )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))
