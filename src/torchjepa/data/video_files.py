"""What frames are read from: a video file or a folder of images."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from torchjepa.data.clips import USUAL_RATE
from torchjepa.data.decode import decode_image
from torchjepa.data.errors import DecodeError
from torchjepa.data.index import VIDEOS
from torchjepa.data.source import ChooseTimes, VideoInfo
from torchjepa.data.video_reader import Frame, VideoReader

_TORCHCODEC_BYTES = 2**25
_MISSING_SHARE = 0.1  # of what a file announces: the end that may be missing, for headers count roughly
_MISSING_FRAMES = 2
_LATE = 1e-6  # of a frame: a time that is a frame's own may be rounded down


class OpenVideo(Protocol):
    """A video that is open: a context manager."""

    @property
    def duration(self) -> float:
        """Seconds that it lasts."""
        ...

    @property
    def frame_rate(self) -> float | None:
        """Frames a second, on average; `None` where it does not say."""
        ...

    @property
    def num_channels(self) -> int:
        """1 where its pictures are gray, else 3."""
        ...

    def frames_at(self, times: Iterable[float]) -> Iterator[Frame]:
        """The frame on the screen at each time, ascending seconds, until a time lies beyond the end."""
        ...

    def __enter__(self) -> OpenVideo: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class FrameFolder:
    """A folder of images that are the frames of a video, in the order of the numbers that end their names.

    Args:
        path: the folder.
        frame_rate: frames a second.
        min_size: short side that JPEGs keep when they are decoded at reduced size (see `decode_image`).

    Raises:
        DecodeError: it cannot be listed, or holds no images with numbers.
    """

    def __init__(self, path: str, frame_rate: float, *, min_size: int | None = None) -> None:
        self.path, self.frame_rate, self.min_size = path, frame_rate, min_size
        try:
            names = [name for name in os.listdir(path) if name.lower().endswith(VIDEOS.frames)]
        except OSError as error:
            raise DecodeError(f"{path!r} cannot be read: {error.strerror}") from error
        numbered = [
            (int(found[1]), name)
            for name in names
            if name[0] != "." and (found := re.search(r"(\d+)\.\w+$", name))
        ]
        if not numbered:
            raise DecodeError(f"{path!r} holds no images whose names end in numbers")
        self._names = [name for _, name in sorted(numbered)]

    def __enter__(self) -> FrameFolder:
        return self

    def __exit__(self, *error: Any) -> None: ...

    @property
    def duration(self) -> float:
        """Seconds that it lasts."""
        return len(self._names) / self.frame_rate

    @property
    def slack(self) -> float:
        """Seconds that a time may lie before a frame to be taken for the frame's own."""
        return _LATE / self.frame_rate

    @property
    def end(self) -> float:
        """When the last frame disappears, in seconds."""
        return self.duration

    @property
    def num_channels(self) -> int:
        """1 where its first picture is gray, else 3."""
        return self._decode(0).shape[2]

    def frames(self) -> Iterator[Frame]:
        """Every frame, in order."""
        return (Frame(number / self.frame_rate, self._decode(number)) for number in range(len(self._names)))

    def frames_at(self, times: Iterable[float]) -> Iterator[Frame]:
        """The frame on the screen at each time, until a time lies beyond the end."""
        last, frame = None, None
        for time in times:
            number = int(time * self.frame_rate + _LATE)
            if number >= len(self._names):
                return
            if frame is None or number != last:
                last, frame = number, Frame(number / self.frame_rate, self._decode(number))
            yield frame

    def _decode(self, number: int) -> Any:
        try:
            return decode_image(os.path.join(self.path, self._names[number]), self.min_size)
        except DecodeError as error:
            raise DecodeError(f"{self._names[number]}: {error}") from error


class TorchcodecVideo:
    """A video file read by torchcodec: the frames of `VideoReader`, bit for bit.

    Args:
        path: the file.
        decoders: the module `torchcodec.decoders`.

    Raises:
        DecodeError: the file cannot be decoded.
    """

    num_channels = 3

    def __init__(self, path: str, decoders: Any) -> None:
        self.path = path
        self._decoder = self._guard(
            lambda: decoders.VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1)
        )
        self._facts = self._decoder.metadata

    def __enter__(self) -> TorchcodecVideo:
        return self

    def __exit__(self, *error: Any) -> None: ...

    @property
    def duration(self) -> float:
        """Seconds that it lasts."""
        return float(self._facts.end_stream_seconds - self._facts.begin_stream_seconds)

    @property
    def frame_rate(self) -> float | None:
        """Frames a second, on average."""
        return self._facts.average_fps

    def is_plain(self, min_size: int | None) -> bool:
        """Whether its frames come as `VideoReader` gives them: in colour, upright as they are, at full size."""
        facts = self._facts
        colours = getattr(facts, "pixel_format", None) or "gray"
        turned = getattr(facts, "rotation", None)
        large = min_size is not None and min(facts.height, facts.width) >= 2 * min_size
        return not (large or turned or colours.startswith("gray"))

    def frames_at(self, times: Iterable[float]) -> Iterator[Frame]:
        """The frame on the screen at each time, until a time lies beyond the end."""
        begin, end = self._facts.begin_stream_seconds, self._facts.end_stream_seconds
        wanted = [time + begin for time in times if time + begin < end]
        found = self._guard(lambda: self._decoder.get_frames_played_at(wanted))
        for seconds, pixels in zip(found.pts_seconds.tolist(), found.data.numpy(), strict=True):
            yield Frame(seconds - begin, pixels)

    def _guard(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:
            raise DecodeError(f"{self.path!r} cannot be decoded as a video: {error}") from error


def open_video(path: str, *, min_size: int | None, frame_folder_rate: float) -> OpenVideo:
    """Open a video, on one thread where it is a file.

    Where torchcodec is installed it reads what it reads as fast and to the same bits: colour files of up to 32 MB
    (it looks through all of a file first) whose frames are neither turned nor reduced. PyAV reads the others.

    Args:
        path: a video file or a folder of frames.
        min_size: short side that frames keep when they are decoded at reduced size.
        frame_folder_rate: frames a second of a folder of frames.

    Raises:
        DecodeError: it cannot be opened.
    """
    if os.path.isdir(path):
        return FrameFolder(path, frame_folder_rate, min_size=min_size)
    decoders = _import_torchcodec()
    if decoders is not None and os.path.isfile(path) and os.path.getsize(path) <= _TORCHCODEC_BYTES:
        with suppress(DecodeError):  # PyAV says in one line what is wrong
            video = TorchcodecVideo(path, decoders)
            if video.is_plain(min_size):
                return video
    return VideoReader(path, min_size=min_size, num_threads=1)


@cache
def _import_torchcodec() -> Any:
    try:
        import torchcodec.decoders  # pyright: ignore[reportMissingImports]
    except (
        ImportError,
        OSError,
        RuntimeError,
    ):  # not installed, or without the libraries that it was built for
        return None
    return torchcodec.decoders


class FoundFrames(NamedTuple):
    """The frames that some clips of a video show.

    Args:
        kept: what is kept of each, in the order of their times; of a frame met at several times, once for each.
        seconds: when each appears, from the start of the video.
        places: for each clip, where its frames are among those, int64 `[t]`.
    """

    kept: list[Any]
    seconds: list[float]
    places: list[NDArray[np.int64]]


def find_frames(
    video: OpenVideo,
    choose: ChooseTimes,
    *,
    start: float = 0.0,
    end: float | None = None,
    keep: Callable[[NDArray[np.uint8]], Any] | None = None,
) -> FoundFrames:
    """The frames of one or several clips of a video, in one pass.

    Args:
        video: the video.
        choose: gives the times of each clip, in seconds from `start`. Beyond the end the last frame is taken.
        start: where the sample starts, in seconds.
        end: where it ends; with the video by default.
        keep: from a frame uint8 `[h, w, c]` to what is kept of it; the frame itself by default.

    Raises:
        DecodeError: the sample starts behind the video's end, or the file is cut off before a time.
    """
    duration, rate = video.duration, video.frame_rate
    end = duration if end is None else min(end, duration)
    if not start < end:
        raise DecodeError(f"it lasts {duration:.2f} s, and {start:g} to {end:g} s are wanted")
    frame = 1 / (rate or USUAL_RATE)
    # Half a frame before the end the last one is on the screen for sure.
    latest = max(end - frame / 2, start)
    times = [np.clip(clip + start, start, latest) for clip in choose(VideoInfo(end - start, rate))]
    wanted, places = np.unique(np.concatenate(times), return_inverse=True)
    kept, seconds, last, value = [], [], None, None
    for found in video.frames_at(wanted.tolist()):
        if found is not last:
            last, value = found, found.pixels if keep is None else keep(found.pixels)
        kept.append(value)
        seconds.append(found.seconds)
    slack = max(_MISSING_SHARE * duration, _MISSING_FRAMES * frame)
    if not kept or (len(kept) < len(wanted) and wanted[len(kept)] < duration - slack):
        raise DecodeError(f"it is cut off: {duration:.2f} s are announced, the end is missing")
    lengths = np.cumsum([len(clip) for clip in times])
    return FoundFrames(kept, seconds, np.split(places.clip(max=len(kept) - 1), lengths[:-1]))
