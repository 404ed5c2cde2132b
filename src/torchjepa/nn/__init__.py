"""Networks: encoders over a token grid, the predictor, the projector and what they are made of."""

from torchjepa.nn.action_predictor import ActionPredictor
from torchjepa.nn.attentive import AttentiveClassifier, AttentivePooler
from torchjepa.nn.batchnorm import GlobalBatchNorm1d, GlobalBatchNorm2d
from torchjepa.nn.conv_stem import ConvStemViT
from torchjepa.nn.convnet import ConvEncoder
from torchjepa.nn.init import FanInStd
from torchjepa.nn.patch import patch_grid, patchify
from torchjepa.nn.pooling import MeanMaxPool, MeanPool, pool_by_name
from torchjepa.nn.positions import ResizedPositions, sincos_positions
from torchjepa.nn.predictor import Predictor
from torchjepa.nn.projector import Projector
from torchjepa.nn.recompute import recompute_activations
from torchjepa.nn.rope import RotaryPositions, rotary_angles
from torchjepa.nn.shared_context import SharedContextPredictor
from torchjepa.nn.vit import ViT

__all__ = [
    "ActionPredictor",
    "AttentiveClassifier",
    "AttentivePooler",
    "ConvEncoder",
    "ConvStemViT",
    "FanInStd",
    "GlobalBatchNorm1d",
    "GlobalBatchNorm2d",
    "MeanMaxPool",
    "MeanPool",
    "Predictor",
    "Projector",
    "ResizedPositions",
    "RotaryPositions",
    "SharedContextPredictor",
    "ViT",
    "patch_grid",
    "patchify",
    "pool_by_name",
    "recompute_activations",
    "rotary_angles",
    "sincos_positions",
]
