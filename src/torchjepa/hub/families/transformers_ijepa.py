"""transformers' `IJepaModel` and `IJepaForImageClassification`, as `save_pretrained` writes them."""

from __future__ import annotations

from torchjepa.hub import infer, layouts
from torchjepa.hub.families.ijepa import HEADS
from torchjepa.hub.family import Family, Network, PositionTable
from torchjepa.hub.keymap import JOIN, KeyMap, Rule, inside, renamed, same

_BLOCK: KeyMap = (
    Rule(
        "attn.qkv.{p}", tuple(f"attention.attention.{name}.{{p}}" for name in ("query", "key", "value")), JOIN
    ),
    *renamed(
        {
            "norm1.{p}": "layernorm_before.{p}",
            "attn.proj.{p}": "attention.output.dense.{p}",
            "norm2.{p}": "layernorm_after.{p}",
            "mlp.fc1.{p}": "intermediate.dense.{p}",
            "mlp.fc2.{p}": "output.dense.{p}",
        }
    ),
)
# The names in memory since transformers 5, which `state_dict` gives and `save_pretrained` does not write.
_BLOCK_IN_MEMORY: KeyMap = (
    Rule("attn.qkv.{p}", tuple(f"attention.{name}_proj.{{p}}" for name in "qkv"), JOIN),
    *renamed(
        {
            "norm1.{p}": "layernorm_before.{p}",
            "attn.proj.{p}": "attention.o_proj.{p}",
            "norm2.{p}": "layernorm_after.{p}",
        }
    ),
    *same("mlp.fc1.{p}", "mlp.fc2.{p}"),
)

FAMILY = Family(
    name="transformers_ijepa",
    title="I-JEPA of transformers",
    tells_encoders=False,
    # convert_ijepa_to_hf.py reads "encoder" from the official files.
    origin="transformers' conversions of the released models were made from the online encoder, the papers evaluate "
    "the target encoder, which is in the official files",
    wrapper="ijepa.",
    config={"hidden_act": ("gelu", "gelu"), "layer_norm_eps": (1e-6, 1e-12), "qkv_bias": (True, True)},
    networks={
        "encoder": Network(
            architecture="ViT",
            rules=(
                Rule(
                    "patch_embed.weight", ("embeddings.patch_embeddings.projection.weight",), layouts.PATCHES
                ),
                Rule("patch_embed.bias", ("embeddings.patch_embeddings.projection.bias",)),
                # Written with `encoder.`; read without, which is taken off all names then.
                *inside("blocks.{i}.", "encoder.layer.{i}.", _BLOCK),
                *inside("blocks.{i}.", "layer.{i}.", _BLOCK),
                *inside("blocks.{i}.", "layers.{i}.", _BLOCK_IN_MEMORY),
                *renamed({"norm.{p}": "layernorm.{p}"}),
            ),
            infer=infer.vit,
            signature={"embeddings.patch_embeddings.projection.weight": 4},
            heads=HEADS,
            group="",
            table=PositionTable("embeddings.position_embeddings", ("wh",)),
            unused={
                "embeddings.mask_token": "transformers' own, I-JEPA has none in its encoder",
                "pooler.dense.weight": "transformers' own, I-JEPA has no pooler",
                "pooler.dense.bias": "transformers' own, I-JEPA has no pooler",
            },
            config_heads="num_attention_heads",
            config_sizes={"embed_dim": "hidden_size", "depth": "num_hidden_layers"},
        ),
        "classifier": Network(
            architecture="Linear",
            rules=renamed({"{p}": "classifier.{p}"}),
            infer=infer.linear,
            signature={"classifier.weight": 2},
            heads_by=(),
            group="",
        ),
    },
)
