"""Encoders on their way in and out: anyone's checkpoints opened, ours saved to a folder and loaded from one."""

from torchjepa.hub.encode import Encoded, EncodeOptions, encode, stream_encoded
from torchjepa.hub.encoder import LoadedEncoder, load_encoder, save_encoder
from torchjepa.hub.load import Pretrained, load
from torchjepa.hub.report import LoadReport
from torchjepa.hub.save import push_to_hub, save
from torchjepa.hub.states import export_state

__all__ = [
    "EncodeOptions",
    "Encoded",
    "LoadReport",
    "LoadedEncoder",
    "Pretrained",
    "encode",
    "export_state",
    "load",
    "load_encoder",
    "push_to_hub",
    "save",
    "save_encoder",
    "stream_encoded",
]
