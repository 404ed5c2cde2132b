"""Images from folders, arrays and arithmetic; views of them; streams of batches; clips of videos."""

from torchjepa.data.arrays import ArraySource
from torchjepa.data.clips import ClipTransform, middle_clip
from torchjepa.data.decode import decode_image
from torchjepa.data.errors import DataError, DecodeError, ErrorLog, WorkerKilledError
from torchjepa.data.images import EXTENSIONS, FolderSource
from torchjepa.data.index import VIDEO_EXTENSIONS
from torchjepa.data.loading import BatchStream, EvalStream, read_input
from torchjepa.data.multicrop import MultiCropTransform
from torchjepa.data.photometric import Photometric
from torchjepa.data.procedural.digits import DigitsSource
from torchjepa.data.procedural.moving_digits import MovingDigitsSource
from torchjepa.data.source import ImageSource, Source, Subset, Task, VideoInfo, VideoSource, tasks_of
from torchjepa.data.splits import DataSplit, open_data, open_source, open_videos
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
from torchjepa.data.video_reader import Frame, VideoReader
from torchjepa.data.video_source import VideoFolderSource, VideoTableSource, open_video_source
from torchjepa.data.videos import (
    Clip,
    clip_windows,
    find_videos,
    read_clip,
)

__all__ = [
    "ArraySource",
    "BatchStream",
    "Clip",
    "ClipTransform",
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
    "MovingDigitsSource",
    "MultiCropTransform",
    "Photometric",
    "Preprocessing",
    "SampleKeys",
    "Source",
    "Subset",
    "Task",
    "TwoViewTransform",
    "VIDEO_EXTENSIONS",
    "VideoFolderSource",
    "VideoInfo",
    "VideoReader",
    "VideoSource",
    "VideoTableSource",
    "ViewTransform",
    "WorkerKilledError",
    "clip_windows",
    "decode_image",
    "find_videos",
    "middle_clip",
    "open_data",
    "open_source",
    "open_video_source",
    "open_videos",
    "read_clip",
    "read_input",
    "tasks_of",
]
