"""NVIDIA's NeMo-Gym rows ("nemotron SWE"): schema only, not tried on real rows. A row of another family, wrapped: its rule and image are
that family's."""

from typing import Any

from ..fields import Broken, mapping


def inner_row(row: dict[str, Any]) -> dict[str, Any]:
    """The row inside responses_create_params.metadata.instance_dict."""
    metadata = mapping(row, "responses_create_params").get("metadata")
    if not isinstance(metadata, dict):
        raise Broken("responses_create_params.metadata: missing")
    try:
        found = mapping(metadata, "instance_dict")
    except Broken as broken:
        raise Broken(f"responses_create_params.metadata.{broken}") from None
    if "responses_create_params" in found:
        raise Broken("responses_create_params.metadata.instance_dict: a wrapped row inside a wrapped row")
    return found
