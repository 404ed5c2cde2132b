"""Ways to wire a JEPA from its parts; every model is a learner that a bare loop can train."""

from torchjepa.models.ijepa import IJEPA
from torchjepa.models.joint_embedding import JointEmbedding
from torchjepa.models.lejepa import LeJEPA
from torchjepa.models.targets import LayerNormTargets, PositionStandardize, TargetNorm

__all__ = ["IJEPA", "JointEmbedding", "LeJEPA", "LayerNormTargets", "PositionStandardize", "TargetNorm"]
