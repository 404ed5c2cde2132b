"""Images from folders, arrays and arithmetic; views of them; streams of batches; clips of videos."""

from torchjepa.data.arrays import ArraySource
from torchjepa.data.decode import decode_image
from torchjepa.data.errors import DataError, DecodeError, ErrorLog, WorkerKilledError
from torchjepa.data.images import EXTENSIONS, FolderSource
from torchjepa.data.loading import BatchStream, EvalStream
from torchjepa.data.multicrop import MultiCropTransform
from torchjepa.data.photometric import Photometric
from torchjepa.data.procedural.digits import DigitsSource
from torchjepa.data.source import ImageSource, Subset
from torchjepa.data.splits import DataSplit, open_data, open_source
from torchjepa.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Crops,
    MaskedViewTransform,
    Preprocessing,
    SampleKeys,
    TwoViewTransform,
    ViewTransform,
)
from torchjepa.data.videos import (
    VIDEO_EXTENSIONS,
    Clip,
    Frame,
    VideoReader,
    clip_windows,
    find_videos,
    read_clip,
)

__all__ = [
    "ArraySource",
    "BatchStream",
    "Clip",
    "Crops",
    "DataError",
    "DataSplit",
    "DecodeError",
    "DigitsSource",
    "ErrorLog",
    "EvalStream",
    "EXTENSIONS",
    "FolderSource",
    "Frame",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "ImageSource",
    "MaskedViewTransform",
    "MultiCropTransform",
    "Photometric",
    "Preprocessing",
    "SampleKeys",
    "Subset",
    "TwoViewTransform",
    "VIDEO_EXTENSIONS",
    "VideoReader",
    "ViewTransform",
    "WorkerKilledError",
    "clip_windows",
    "decode_image",
    "find_videos",
    "open_data",
    "open_source",
    "read_clip",
]
