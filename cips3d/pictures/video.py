"""Videos (MP4, H.264) that are encoded while their frames are made."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from PIL import Image

from cips3d.errors import UserError
from cips3d.files import atomic_file
from cips3d.pictures.grids import PAPER

QUALITY = 6.5  # imageio-ffmpeg's scale of 1 to 10; x264's crf 17, where losses cannot be seen

# Colours are converted by a matrix that the file names; players guess that of files that do not.
COLORS = "scale=out_color_matrix=bt709:out_range=tv,setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709"
OUTPUT_PARAMETERS = ["-vf", COLORS, "-movflags", "+faststart"]  # the index first: plays while it loads


def import_ffmpeg() -> ModuleType:
    """imageio-ffmpeg, which brings an ffmpeg with it.

    Raises:
        UserError: it is not installed, or its ffmpeg cannot be run.
    """
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise UserError(
            "an .mp4 needs imageio-ffmpeg; install it with pip install 'cips3d[video]', or give a .gif or .webp"
        ) from error
    try:
        imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise UserError(
            "imageio-ffmpeg finds no ffmpeg to run; install one, or give a .gif or .webp instead of an .mp4"
        ) from error
    return imageio_ffmpeg


def write_video(path: Path, frames: Iterable[Image.Image], fps: float) -> None:
    """Write frames as an MP4, one by one as they come, whole or not at all.

    Frames with odd sides get a white row or column, since H.264's colours have half the resolution. Encoding goes into
    a hidden folder beside `path`, and the finished file from there to its name.

    Args:
        path: of the video.
        frames: of one size.
        fps: frames a second.

    Raises:
        UserError: imageio-ffmpeg is missing, or the video cannot be written.
        ValueError: there are no frames, or they differ in size.
    """
    ffmpeg = import_ffmpeg()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=path.parent) as folder:
        encoded = Path(folder) / path.name
        count = _encode(ffmpeg, encoded, frames, fps)
        if _frames_in(ffmpeg, encoded) != count:
            raise UserError(f"--out {path} cannot be written: ffmpeg failed; is there space left on the disk?")
        with encoded.open("rb") as whole, atomic_file(path) as file:
            shutil.copyfileobj(whole, file)


def _encode(ffmpeg: ModuleType, path: Path, frames: Iterable[Image.Image], fps: float) -> int:
    """Encode, and return how many frames there were."""
    writer, size, count = None, (0, 0), 0
    try:
        for frame in frames:
            if writer is None:
                size = frame.size
                even = (size[0] + size[0] % 2, size[1] + size[1] % 2)
                writer = ffmpeg.write_frames(
                    str(path),
                    even,
                    fps=fps,
                    quality=QUALITY,
                    macro_block_size=1,
                    ffmpeg_log_level="error",
                    output_params=[*OUTPUT_PARAMETERS],
                )
                writer.send(None)
            if frame.size != size:
                raise ValueError(f"frames must have one size, got {size} and {frame.size}")
            padded = Image.new("RGB", even, (PAPER, PAPER, PAPER))
            padded.paste(frame)
            try:
                writer.send(padded.tobytes())
            except OSError as error:
                raise UserError(
                    f"--out {path.name}: ffmpeg stopped at frame {count}; is there space left on the disk?"
                ) from error
            count += 1
    finally:
        if writer is not None:
            writer.close()
    if count == 0:
        raise ValueError("frames must hold at least one picture, got none")
    return count


def _frames_in(ffmpeg: ModuleType, path: Path) -> int:
    """Frames of a video; 0 where it is none."""
    if not path.exists():
        return 0
    try:
        count: int = ffmpeg.count_frames_and_secs(str(path))[0]
    except RuntimeError:
        return 0
    return count
