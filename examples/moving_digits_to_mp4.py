"""Write the embedded moving digits as mp4 files with tables of labels: what a folder of your own may look like.

    python examples/moving_digits_to_mp4.py videos --train 2000 --test 500
    jepa train vjepa-digits --data videos/train.csv --test-data videos/test.csv

A table has a column `path`, relative to itself, and a column `label_NAME` for each way to label the videos.
"""

import argparse
import csv
from pathlib import Path

import av
import numpy as np

from torchjepa.data import MovingDigitsSource

FRAME_RATE = 8


def write_videos(source: MovingDigitsSource, table: Path) -> None:
    """The videos of a source as mp4 files in a folder beside a table of their labels."""
    folder = table.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", *(f"label_{name}" for name in source.tasks)])
        for index in range(len(source)):
            path = folder / f"{index:05d}.mp4"
            write_video(path, source.frames(index))
            labels = [task.classes[task.labels[index]] for task in source.tasks.values()]
            rows.writerow([path.relative_to(table.parent).as_posix(), *labels])


def write_video(path: Path, frames: np.ndarray) -> None:
    """Gray frames uint8 `[t, h, w, 1]` as an H.264 file."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=FRAME_RATE)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "10"}
        for pixels in np.repeat(frames, 3, axis=3):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=500)
    arguments = parser.parse_args()
    write_videos(MovingDigitsSource("train", arguments.train), arguments.folder / "train.csv")
    write_videos(MovingDigitsSource("test", arguments.test), arguments.folder / "test.csv")
