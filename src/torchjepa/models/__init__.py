"""Ways to wire a JEPA from its parts; every model is a learner that a bare loop can train."""

from torchjepa.models.ijepa import IJEPA
from torchjepa.models.joint_embedding import JointEmbedding
from torchjepa.models.lejepa import LeJEPA
from torchjepa.models.masked import MaskedJEPA
from torchjepa.models.targets import LayerNormTargets, PositionStandardize, TargetNorm
from torchjepa.models.vjepa import VJEPA
from torchjepa.models.vjepa2 import VJEPA2

__all__ = [
    "IJEPA",
    "JointEmbedding",
    "LeJEPA",
    "LayerNormTargets",
    "MaskedJEPA",
    "PositionStandardize",
    "TargetNorm",
    "VJEPA",
    "VJEPA2",
]
