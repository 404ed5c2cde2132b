"""The attentive probes of V-JEPA 2 and V-JEPA as released: `classifiers.<n>`, one for each setting that was tried."""

from __future__ import annotations

from torchjepa.hub import infer, layouts
from torchjepa.hub.family import Family, Network
from torchjepa.hub.keymap import inside, renamed, same

_NEVER_APPLIED = "V-JEPA's probe holds this layer and never applies it"

FAMILY = Family(
    name="vjepa2_probe",
    title="attentive probe",
    image_size=256,
    num_frames=16,
    networks={
        "classifier": Network(
            architecture="AttentiveClassifier",
            rules=(
                *renamed({"pooler.queries": "pooler.query_tokens"}),
                *inside("pooler.blocks.{i}.", "pooler.blocks.{i}.", layouts.BLOCK),
                *inside(
                    "pooler.cross.",
                    "pooler.cross_attention_block.",
                    (
                        *renamed({"q.{p}": "xattn.q.{p}", "kv.{p}": "xattn.kv.{p}"}),
                        *same("norm1.{p}", "norm2.{p}", "mlp.fc1.{p}", "mlp.fc2.{p}"),
                    ),
                ),
                *same("linear.{p}"),
            ),
            infer=infer.attentive_classifier,
            signature={"pooler.query_tokens": 3, "pooler.cross_attention_block.xattn.kv.weight": 2},
            heads_by=("embed_dim",),
            heads={(1024,): 16, (1280,): 16, (1408,): 16, (1664,): 16},
            group="classifiers.0",
            prefix="module.",
            fixed={"norm_eps": 1e-5},
            unused={
                f"pooler.cross_attention_block.xattn.proj.{leaf}": _NEVER_APPLIED
                for leaf in ("weight", "bias")
            },
        ),
    },
)
