"""Many views of a sample: a few large crops and several small ones (SwAV, DINO, LeJEPA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from torchjepa.data.photometric import Photometric
from torchjepa.data.transforms import Crops, Preprocessing, SampleKeys, check_crop, coloured, random_crops


def local_image_size(image_size: int, multiple: int = 16) -> int:
    """The side of local views beside global ones of image_size: 3/7 of it, as 96 is of 224.

    Args:
        image_size: side of the global views in pixels.
        multiple: of what the result is to be the nearest multiple, the patch size say; at least once.
    """
    return max(round(3 * image_size / (7 * multiple)), 1) * multiple


@dataclass(frozen=True)
class MultiCropTransform:
    """Global views of the full size, then local views of a smaller one, augmented independently.

    A global view shows most of the image, a local one a detail: 2 at 224 pixels and 6 at 96, as in DINO and
    LeJEPA. Draws are keyed by view, and those of the first two global views are TwoViewTransform's.

    Args:
        preprocessing: gives the size of global views, channels and normalisation.
        num_global: global views of each sample, at least 1; 2 (LeJEPA).
        num_local: local views of each sample, 0 or more; 6 (LeJEPA).
        global_scale: share of the image's area that a global view covers, drawn uniformly; (0.3, 1) (LeJEPA).
        local_scale: the same of a local view; (0.05, 0.3) (LeJEPA).
        local_size: side of a local view in pixels. `None` takes the multiple of 16 nearest to 3/7 of the
            global size, 96 for 224 (LeJEPA). A vision transformer needs a multiple of its patch, which the
            encoder checks.
        ratio: width / height of a crop, drawn uniformly in the logarithm.
        flip_probability: chance of a horizontal mirror image.
        colour: what happens to the colours of the first global view, of the other global views and of the
            local views; the defaults are DINO's three, which LeJEPA takes over.

    Raises:
        ValueError: a number of views, a size or a range outside of these.
    """

    preprocessing: Preprocessing
    num_global: int = 2
    num_local: int = 6
    global_scale: tuple[float, float] = (0.3, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.3)
    local_size: int | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    colour: tuple[Photometric, Photometric, Photometric] = (
        Photometric(blur_probability=1.0),
        Photometric(blur_probability=0.1, solarise_probability=0.2),
        Photometric(blur_probability=0.5),
    )

    def __post_init__(self) -> None:
        if self.num_global < 1 or self.num_local < 0:
            raise ValueError(
                "MultiCropTransform: num_global must be at least 1 and num_local at least 0, got "
                f"{self.num_global} and {self.num_local}."
            )
        if self.local_size is not None and self.local_size < 1:
            raise ValueError(f"MultiCropTransform: local_size must be at least 1, got {self.local_size}.")
        for scale in (self.global_scale, self.local_scale):
            check_crop(scale, self.ratio, self.flip_probability)

    def crop(self, images: Sequence[NDArray[np.uint8]], keys: SampleKeys) -> Crops:
        """Random resized crops of each image uint8 `[h, w, c]`, in a worker.

        Returns:
            Global crops `[num_global, b, h, w, c]` and, where there are any, local ones
            `[num_local, b, h', w', c]`.
        """
        large = self.preprocessing
        size = self.local_size or local_image_size(large.image_size)
        small = replace(large, image_size=size)
        first, last = self.num_global, self.num_global + self.num_local
        groups = [(range(first), self.global_scale, large), (range(first, last), self.local_scale, small)]
        return tuple(
            random_crops(images, keys, views, scale, self.ratio, self.flip_probability, sized)
            for views, scale, sized in groups
            if len(views)
        )

    def finish(self, crops: Crops, keys: SampleKeys) -> tuple[Tensor, ...]:
        """The views with their colours changed and normalised, `[b, c, h, w]`, the global ones first."""
        first, other, local = self.colour
        colours = [first] + [other] * (self.num_global - 1) + [local] * self.num_local
        return coloured(chain.from_iterable(crops), keys, colours, self.preprocessing)
