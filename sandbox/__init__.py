"""Isolated machines; knows nothing of tasks or models."""

from .base import WORKDIR, Backend, ExecResult, Image, Limits, ResourceExhausted, Sandbox, SandboxError

__all__ = ["WORKDIR", "Backend", "ExecResult", "Image", "Limits", "ResourceExhausted", "Sandbox", "SandboxError"]
