"""Isolated machines; knows nothing of tasks or models."""

from .base import WORKDIR, Backend, ExecResult, Image, Limits, ResourceExhausted, Sandbox, SandboxError
from .checkout import checkout_tree
from .desk import SealError
from .fake import DyingSandbox, FakeBackend, FakeSandbox, HangingSandbox
from .images import ensure_environment, environment_name
from .open import open_backend
from .pool import Pool
from .repo import DIFF_BYTES, apply_patch, diff, make_tree, tree_hash
from .seal import seal, seal_all, sealed
from .traces import Secret

__all__ = [
    "DIFF_BYTES",
    "WORKDIR",
    "Backend",
    "DyingSandbox",
    "ExecResult",
    "FakeBackend",
    "FakeSandbox",
    "HangingSandbox",
    "Image",
    "Limits",
    "Pool",
    "ResourceExhausted",
    "Sandbox",
    "SandboxError",
    "SealError",
    "Secret",
    "apply_patch",
    "checkout_tree",
    "diff",
    "ensure_environment",
    "environment_name",
    "make_tree",
    "open_backend",
    "seal",
    "seal_all",
    "sealed",
    "tree_hash",
]
