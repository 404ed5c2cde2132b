"""Frames of a video file at exact times, decoded as they are asked for, by PyAV (`pip install 'torchjepa[video]'`)."""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from math import floor
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from torchjepa.data.errors import DecodeError

# Where no index of keyframes is at hand, seeking is worth a try from so many seconds on, doubled when it gains nothing.
_LEAST_JUMP = 2
_LEAST_SAVED = 4  # frames that a seek must save: those decoded ahead are lost (48 against 57 ms a clip of 16)
# Packets looked at before one is decoded, which tells the frame that follows it on the screen: no codec in use puts
# more than 16 frames between the two.
_LOOK_AHEAD = 32


class Frame(NamedTuple):
    """A decoded frame.

    Args:
        seconds: when it appears, from the start of the video.
        pixels: uint8 `[h, w, c]`, upright.
    """

    seconds: float
    pixels: NDArray[np.uint8]


class VideoReader:
    """One video file, read forwards; a context manager.

    Times are seconds from the start of the video. The frame at time s is the one on the screen then: the last that
    begins at or before s, exact to half a tick of the file's clock. Frames turned by the camera are set upright.

    Args:
        path: the file; its first video stream is read.
        min_size: frames are reduced by the largest whole number that leaves this many pixels of their shorter side,
            each pixel the mean of those that it stands for, while their colours are converted; `None`: full size.
        num_threads: threads that decode; `None` leaves it to the decoder, 1 is for one of several worker processes.

    Attributes:
        num_decoded: frames decoded so far.

    Raises:
        DecodeError: no such file, not a video, or no video stream in it.
        ValueError: PyAV is missing.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, min_size: int | None = None, num_threads: int | None = None
    ) -> None:
        self.path, self.min_size = os.fspath(path), min_size
        self._av = import_av()
        self._container = self._guard(lambda: self._av.open(self.path, metadata_errors="replace"))
        self.num_decoded = 0
        if not self._container.streams.video:
            kinds = ", ".join(sorted({stream.type for stream in self._container.streams})) or "nothing"
            self._container.close()
            raise DecodeError(f"{self.path!r} holds no video, only {kinds}")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        if num_threads is not None:
            self._stream.thread_count = num_threads
        self._start = self._stream.start_time or 0
        self._ticks = 1 / self._stream.time_base  # in a second, and in a usual frame
        self._frame = max(1, round(self._ticks / (self._stream.average_rate or 25)))
        # A file's clock rounds: half a tick late is in time, unless that is a good part of a frame.
        self._slack = min(0.5, self._frame / 4)
        self._reformatter = self._av.video.reformatter.VideoReformatter()
        # To start threads for a small frame takes ten times as long as the frame; older PyAV starts none.
        self._on_one_thread = (
            {"threads": 1} if "threads" in (self._reformatter.reformat.__doc__ or "") else {}
        )
        self._targets: _Targets | None = None
        self._skips = self._is_thinned = False
        self._demux()
        self._shown: Any = None  # the frame on the screen, and the one after it
        self._following: Any = self._next()
        if self._following is None:
            self._container.close()
            raise DecodeError(f"{self.path!r} holds no frame that can be decoded")
        self._least_jump = Fraction(_LEAST_JUMP)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    @property
    def duration(self) -> float:
        """Seconds that the video lasts, as the file says."""
        return float(self._guard(self._duration))

    @property
    def frame_rate(self) -> float | None:
        """Frames a second, on average; `None` where the file does not say."""
        return float(self._stream.average_rate) if self._stream.average_rate else None

    @property
    def slack(self) -> float:
        """Seconds that a time may lie before a frame to be taken for the frame's own."""
        return float(self._slack / self._ticks)

    @property
    def end(self) -> float:
        """When the last frame read so far disappears, in seconds."""
        return float((self._end_of_shown() - self._start) / self._ticks)

    @property
    def num_channels(self) -> int:
        """1 where the file holds gray pictures, else 3."""
        return 1 if self._following.format.name.startswith("gray") else 3

    def frames(self) -> Iterator[Frame]:
        """Every frame that is still to come, in order."""
        self._continue()
        while self._following is not None:
            self._advance()
            yield self._shown_frame()

    def frames_at(self, times: Iterable[float | Fraction]) -> Iterator[Frame]:
        """The frame on the screen at each time, until a time lies beyond the end.

        Only frames between the keyframe before a time and that time are decoded, none of them twice, and of those
        not wanted only such as others are made from.

        Args:
            times: seconds, ascending.

        Raises:
            DecodeError: the file is damaged.
        """
        self._continue()
        targets = self._targets = _Targets(self._target(time) for time in times)
        last, frame = None, None
        try:
            while (target := targets.first()) is not None:
                self._move_to(target)
                if self._following is None and target >= self._end_of_shown():
                    return
                if frame is None or self._shown is not last:
                    last, frame = self._shown, self._shown_frame()
                yield frame
                targets.drop()
        finally:
            self._targets, self._is_thinned = None, not targets.is_exhausted

    def _target(self, time: float | Fraction) -> int:
        return floor(self._start + time * self._ticks + self._slack)

    def _duration(self) -> Fraction:
        if self._stream.duration is not None:
            return self._stream.duration * self._stream.time_base
        # The header's duration, if any, is that of the longest stream; the last packets say that of this one.
        with self._av.open(self.path, metadata_errors="replace") as file:
            stream = file.streams.video[0]
            if file.duration is not None:
                end = self._start + Fraction(file.duration, self._av.time_base) / stream.time_base
                file.seek(int(end), stream=stream, backward=True)
            ends = [p.pts + (p.duration or 0) for p in file.demux(stream) if p.pts is not None]
            return (max(ends) - self._start) * stream.time_base

    def _move_to(self, target: int) -> None:
        if self._jump_pays(target):
            self._jump(target)
        if self._shown is None:
            self._advance()
        while self._following is not None and self._following.pts <= target:
            self._advance()

    def _jump_pays(self, target: int) -> bool:
        if self._following is None or self._following.pts >= target:
            return False
        index: Any = getattr(self._stream, "index_entries", ())  # not in every PyAV
        if (
            len(index) and index[len(index) - 1].timestamp >= target
        ):  # some formats index only what has been read
            # It says when keyframes are decoded, which is before they are shown.
            place = index.search_timestamp(target - self._packets.delay, backward=True)
            return place >= 0 and index[place].timestamp > self._following.pts + _LEAST_SAVED * self._frame
        return (target - self._following.pts) * self._stream.time_base > self._least_jump

    def _jump(self, target: int) -> None:
        # A keyframe is found by when it is decoded, before it is shown: the first may be a step too far.
        before, back = self._following.pts, 0
        while True:
            aim = max(target - back, before)
            self._seek(aim)
            if aim == before or (self._following is not None and self._following.pts <= target):
                break
            back = max(2 * back, int(1 / self._stream.time_base))
        if self._following is not None and self._following.pts <= before:
            self._least_jump *= 2

    def _seek(self, aim: int) -> None:
        self._guard(lambda: self._container.seek(aim, stream=self._stream, backward=True))
        self._demux()
        self._shown, self._following = None, self._next()

    def _demux(self) -> None:
        self._packets = _Packets(iter(self._container.demux(self._stream)))
        self._decoded = deque[Any]()

    def _advance(self) -> None:
        self._shown, self._following = self._following, self._next()

    def _next(self) -> Any:
        frame = self._guard(self._decode)
        while frame is not None and frame.pts is None:
            frame = self._guard(self._decode)
        self.num_decoded += frame is not None
        return frame

    def _decode(self) -> Any:
        while not self._decoded:
            if (packet := self._packets.next(look_ahead=self._targets is not None)) is None:
                return None
            self._set_skipping(not self._is_wanted(packet.pts))
            self._decoded.extend(packet.decode())
        return self._decoded.popleft()

    def _is_wanted(self, pts: int | None) -> bool:
        if self._targets is None or pts is None or (end := self._packets.next_shown(pts)) is None:
            return True
        return self._targets.any_between(pts, end)

    def _set_skipping(self, skip: bool) -> None:
        # Pictures that no other is made from (most B-frames) are passed over by the decoder: half of its time.
        if skip != self._skips:
            self._stream.codec_context.skip_frame = "NONREF" if skip else "DEFAULT"
            self._skips = skip

    def _continue(self) -> None:
        # Frames may have been passed over for the sake of times that were then not asked for.
        if self._is_thinned:
            self._is_thinned, shown = False, self._shown.pts
            self._seek(shown)
            while self._following is not None and self._following.pts <= shown:
                self._advance()

    def _shown_frame(self) -> Frame:
        pixels = self._guard(lambda: self._convert(self._shown))
        turns = round(self._shown.rotation / 90)
        pixels = np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
        base = self._stream.time_base
        return Frame((self._shown.pts - self._start) * base.numerator / base.denominator, pixels)

    def _convert(self, frame: Any) -> NDArray[np.uint8]:
        factor = max(1, min(frame.width, frame.height) // self.min_size) if self.min_size else 1
        gray = frame.format.name.startswith("gray")
        converted = self._reformatter.reformat(
            frame,
            width=frame.width // factor,
            height=frame.height // factor,
            format="gray" if gray else "rgb24",
            interpolation="BILINEAR" if factor == 1 else "AREA",
            **self._on_one_thread,
        )
        pixels = converted.to_ndarray()
        return pixels[:, :, None] if gray else pixels

    def _end_of_shown(self) -> int:
        return self._shown.pts + (self._shown.duration or self._frame)

    def _guard(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # a broken file makes PyAV raise whatever its parser stumbled over
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            raise DecodeError(f"{self.path!r} cannot be decoded as a video: {reason}") from error


class _Targets:
    # Ascending ticks that are still to come, taken from their iterator no further than is asked for.
    def __init__(self, ticks: Iterator[int]) -> None:
        self._ticks, self._pulled = ticks, deque[int]()
        self.is_exhausted = False

    def first(self) -> int | None:
        if not self._pulled:
            self._pull()
        return self._pulled[0] if self._pulled else None

    def drop(self) -> None:
        self._pulled.popleft()

    def any_between(self, start: int, end: int) -> bool:
        while not self.is_exhausted and (not self._pulled or self._pulled[-1] < end):
            self._pull()
        place = bisect_left(self._pulled, start)
        if place == len(self._pulled):  # of what lies behind the last, nothing is passed over
            return True
        return self._pulled[place] < end

    def _pull(self) -> None:
        tick = next(self._ticks, None)
        if tick is None:
            self.is_exhausted = True
        else:
            self._pulled.append(tick)


class _Packets:
    # The packets of a stream in the order of decoding, and which frame follows which on the screen.
    def __init__(self, packets: Iterator[Any]) -> None:
        self._packets = packets
        self._ahead, self._behind = deque[Any](), deque[int]()
        self.delay = 0  # ticks from the decoding of the first to its appearance
        self._known: list[int] = []  # when the frames of both appear, sorted

    def next(self, look_ahead: bool) -> Any:
        while len(self._ahead) < (_LOOK_AHEAD if look_ahead else 1):
            if (packet := next(self._packets, None)) is None:
                break
            self._ahead.append(packet)
            if packet.pts is not None:
                if not self._known and packet.dts is not None:
                    self.delay = max(0, packet.pts - packet.dts)
                insort(self._known, packet.pts)
        if not self._ahead:
            return None
        packet = self._ahead.popleft()
        if packet.pts is not None:
            self._behind.append(packet.pts)
        if len(self._behind) > _LOOK_AHEAD:
            del self._known[bisect_left(self._known, self._behind.popleft())]
        return packet

    def next_shown(self, pts: int) -> int | None:
        place = bisect_right(self._known, pts)
        return self._known[place] if place < len(self._known) else None


def import_av() -> Any:
    """PyAV, or an error that says how to install it."""
    try:
        import av  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("Reading videos needs PyAV: pip install 'torchjepa[video]'.") from None
    return av
