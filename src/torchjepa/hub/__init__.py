"""Encoders on their way out: saved to a folder and loaded from one."""

from torchjepa.hub.encoder import LoadedEncoder, load_encoder, save_encoder

__all__ = ["LoadedEncoder", "load_encoder", "save_encoder"]
