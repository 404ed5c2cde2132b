"""transformers' `VJEPA2Model` and `VJEPA2ForVideoClassification`."""

from __future__ import annotations

from torch import Tensor, nn

from torchjepa.hub import infer, layouts
from torchjepa.hub.families.vjepa2 import ENCODER_HEADS
from torchjepa.hub.family import Family, Network
from torchjepa.hub.keymap import JOIN, KeyMap, Reshape, Rule, Shape, inside, renamed, same


def _with_one_more_axis(network: nn.Module, tokens: Tensor) -> Shape:
    return (len(tokens), 1, 1, tokens.shape[-1])


_BLOCK: KeyMap = (
    Rule("attn.qkv.{p}", tuple(f"attention.{name}.{{p}}" for name in ("query", "key", "value")), JOIN),
    *renamed({"attn.proj.{p}": "attention.proj.{p}"}),
    *same("norm1.{p}", "norm2.{p}", "mlp.fc1.{p}", "mlp.fc2.{p}"),
)
_POOLER_NORMS: KeyMap = (
    *renamed({"norm1.{p}": "layer_norm1.{p}", "norm2.{p}": "layer_norm2.{p}"}),
    *same("mlp.fc1.{p}", "mlp.fc2.{p}"),
)
_POOLER_BLOCK: KeyMap = (
    Rule("attn.qkv.{p}", tuple(f"self_attn.{name}_proj.{{p}}" for name in "qkv"), JOIN),
    *renamed({"attn.proj.{p}": "self_attn.out_proj.{p}"}),
    *_POOLER_NORMS,
)
_CROSS: KeyMap = (
    *renamed({"q.{p}": "cross_attn.q_proj.{p}"}),
    Rule("kv.{p}", tuple(f"cross_attn.{name}_proj.{{p}}" for name in "kv"), JOIN),
    *_POOLER_NORMS,
)

FAMILY = Family(
    name="transformers_vjepa2",
    title="V-JEPA 2 of transformers",
    tells_encoders=False,
    # convert_vjepa2_to_hf.py takes what torch.hub gives, which was "encoder" then.
    origin="transformers' conversions were made from what torch.hub gave, the online encoder then; the official files "
    "hold both",
    wrapper="vjepa2.",
    image_size=256,
    num_frames=64,
    frame_rate=4.0,
    config={"hidden_act": ("gelu", "gelu"), "layer_norm_eps": (1e-6, 1e-6), "qkv_bias": (True, True)},
    networks={
        "encoder": Network(
            architecture="ViT",
            rules=(
                Rule("patch_embed.weight", ("embeddings.patch_embeddings.proj.weight",), layouts.PATCHES),
                Rule("patch_embed.bias", ("embeddings.patch_embeddings.proj.bias",)),
                *inside("blocks.{i}.", "layer.{i}.", _BLOCK),
                *renamed({"norm.{p}": "layernorm.{p}"}),
            ),
            infer=infer.vit,
            signature={"embeddings.patch_embeddings.proj.weight": 5},
            heads=ENCODER_HEADS,
            group="encoder",
            fixed=layouts.RELEASED_ROTARY,
            config_heads="num_attention_heads",
            config_sizes={"embed_dim": "hidden_size", "depth": "num_hidden_layers"},
        ),
        "predictor": Network(
            architecture="Predictor",
            rules=(
                Rule("mask_token", ("embeddings.mask_tokens",), Reshape(_with_one_more_axis)),
                *renamed({"embed.{p}": "embeddings.predictor_embeddings.{p}", "norm.{p}": "layernorm.{p}"}),
                *inside("blocks.{i}.", "layer.{i}.", _BLOCK),
                *same("proj.{p}"),
            ),
            infer=infer.predictor,
            signature={"embeddings.mask_tokens": 4},
            heads={(384, 12): 12},
            group="predictor",
            fixed=layouts.RELEASED_ROTARY,
            config_heads="pred_num_attention_heads",
            config_sizes={
                "embed_dim": "pred_hidden_size",
                "depth": "pred_num_hidden_layers",
                "num_mask_tokens": "pred_num_mask_tokens",
            },
        ),
        "classifier": Network(
            architecture="AttentiveClassifier",
            rules=(
                *renamed({"pooler.queries": "pooler.query_tokens", "linear.{p}": "classifier.{p}"}),
                *inside("pooler.blocks.{i}.", "pooler.self_attention_layers.{i}.", _POOLER_BLOCK),
                *inside("pooler.cross.", "pooler.cross_attention_layer.", _CROSS),
            ),
            infer=infer.attentive_classifier,
            signature={"pooler.query_tokens": 3, "pooler.cross_attention_layer.cross_attn.q_proj.weight": 2},
            heads_by=("embed_dim",),
            heads={(width,): heads for (width, _), heads in ENCODER_HEADS.items()},
            group="",
            fixed={"norm_eps": 1e-6},
            config_heads="num_attention_heads",
            config_sizes={"embed_dim": "hidden_size"},
        ),
    },
)
