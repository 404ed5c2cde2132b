"""Small networks of every kind that can be exported, as loaded from a folder."""

from pathlib import Path

from torchjepa.data import Preprocessing
from torchjepa.hub import LoadedEncoder
from torchjepa.nn import ActionPredictor, Predictor, RotaryPositions, ViT

OFFICIAL = Path(__file__).parents[1] / "fixtures" / "official"
RELEASED = RotaryPositions("released")
PICTURES = Preprocessing(image_size=16)
CLIPS = Preprocessing(image_size=16, num_frames=4)


def image_source(pool: str = "mean") -> LoadedEncoder:
    """I-JEPA's: an image encoder with its predictor."""
    encoder = ViT(patch_size=4, image_size=16, embed_dim=24, depth=2, num_heads=2, seed=1).eval()
    predictor = Predictor(encoder_dim=24, embed_dim=12, depth=2, num_heads=2, seed=1).eval()
    return LoadedEncoder(encoder, pool, PICTURES, {}, {"predictor": predictor})


def video_encoder(depth: int = 1) -> ViT:
    """V-JEPA 2's, with heads of 12 channels."""
    return ViT(
        patch_size=(2, 4, 4), embed_dim=24, depth=depth, num_heads=2, positions=RELEASED, seed=1
    ).eval()


def video_source() -> LoadedEncoder:
    """V-JEPA 2's: a video encoder with its predictor."""
    predictor = Predictor(
        encoder_dim=24, embed_dim=12, depth=1, num_heads=2, positions=RELEASED, num_mask_tokens=3, seed=1
    ).eval()
    return LoadedEncoder(video_encoder(), "mean", CLIPS, {}, {"predictor": predictor})


def action_source() -> LoadedEncoder:
    """V-JEPA 2-AC's: a video encoder with the predictor that knows actions."""
    predictor = ActionPredictor(
        encoder_dim=24, embed_dim=24, depth=1, num_heads=2, action_dim=3, state_dim=2, seed=1
    ).eval()
    return LoadedEncoder(video_encoder(), "mean", CLIPS, {}, {"predictor": predictor})
