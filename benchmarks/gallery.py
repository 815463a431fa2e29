"""Run the commands on a trained model and show what they give, in benchmarks/results/gallery/ and the README.

    python -m cips3d.train                              # the default run
    python benchmarks/gallery.py runs/00000-tiny        # about ten minutes on two cores

The README's part between `<!-- gallery -->` and `<!-- end of gallery -->` is rewritten, every command as it was run.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from io import StringIO
from pathlib import Path

import readme
from PIL import Image
from readme import README, RESULTS, ROOT
from viewer_picture import viewer_picture

from cips3d.data.heads import load_heads
from cips3d.errors import UserError
from cips3d.process.ending import exit_on_user_error
from cips3d.train import main as train_command

FOLDER = RESULTS / "gallery"
RUN, STYLE, PHOTO = "runs/00000-tiny", "runs/00001-finetune", "photo.png"  # as the README calls them
PHOTO_SEED, PHOTO_INDEX = 77, 5  # of a head that was never trained on
NEGATIVES = 1024
# The published rates are for 256² and days; these show something in two minutes.
FAST_FINE_TUNING = (
    "--steps 500 --batch-size 8 --r1-gamma 0.1 --stages.0.lr-inr 1e-3 --stages.0.lr-mapping 2e-4 "
    "--stages.0.lr-discriminator 4e-3 --reports.metrics-interval 0 --reports.turntable-frames 2"
)


@dataclass(frozen=True)
class Example:
    """A command, and the picture or text that shows what it gave."""

    title: str
    command: str
    picture: str
    """name in the gallery; without `shown` the command's own --out, or, ending in .txt, what it told"""
    shown: str | None = None
    """path of the picture beside or inside what --out names"""

    @property
    def is_text(self) -> bool:
        return self.picture.endswith(".txt")


EXAMPLES = (
    Example(
        "Views of the same faces",
        "render RUN --seeds 0-5 --yaw -0.45 -0.2 0 0.2 0.45 --truncation 0.8 --resolution 96 --out views.png",
        "views.png",
    ),
    Example(
        "A circle around them",
        "render RUN --seeds 0-3 --trajectory circle --resolution 96 --out circle.webp",
        "circle.webp",
    ),
    Example(
        "Nearer, with a wider angle",
        "render RUN --seeds 0-3 --trajectory dolly --resolution 96 --out dolly.webp",
        "dolly.webp",
    ),
    Example("Depth", "render RUN --seeds 0-5 --kind depth --resolution 96 --out depth.png", "depth.png"),
    Example("Normals", "render RUN --seeds 0-5 --kind normals --resolution 96 --out normals.png", "normals.png"),
    Example(
        "Shapes (rows) in the looks of others (columns)",
        "render RUN --seeds 0-3 --mix 4-9 --resolution 96 --out mixed.png",
        "mixed.png",
    ),
    Example(
        "One look turns into the next, the shape stays",
        "render RUN --seeds 0-5 --interpolate appearance --resolution 96 --out looks.webp",
        "looks.webp",
    ),
    Example("A mesh", "mesh RUN --seed 3 --truncation 0.8 --out head.glb", "head.png", shown="head.preview.png"),
    Example(
        "A photograph found again in the model, its weights tuned to it",
        "invert RUN PHOTO --tune --out inverted/",
        "inverted.png",
        shown="inverted/inversion.png",
    ),
    Example(
        "The same, turned",
        "render inverted/tuned.safetensors --latent inverted/latent.safetensors --trajectory yaw --resolution 96 "
        "--out turned.webp",
        "turned.webp",
    ),
    Example(
        "Directions that the weights themselves prefer",
        "edit RUN --seeds 3 --resolution 96 --out edited.png",
        "edited.png",
    ),
    Example(
        "Towards another domain, block by block",
        "stylise RUN STYLE --seeds 0-3 --resolution 96 --out stylised.png",
        "stylised.png",
    ),
    Example(
        "How good its pictures are, and how 3-D",
        "evaluate RUN --data heads --metrics frechet,consistency,smoothness,symmetry,pose --images 2048",
        "figures.txt",
    ),
    Example("In the browser", "viewer RUN --seed 3 --truncation 0.8", "viewer.webp"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run of the preset tiny")
    parser.add_argument("--style", type=Path, help="a model fine-tuned from it; default: one is made")
    parser.add_argument("--only", nargs="+", metavar="PICTURE", help="make these anew and keep the others")
    options = parser.parse_args(arguments)

    def command() -> int:
        with tempfile.TemporaryDirectory() as scratch:
            make_all(options.run, options.style, options.only, Path(scratch))
        write_section()
        return 0

    return exit_on_user_error(command)


def make_all(run: Path, style: Path | None, only: list[str] | None, scratch: Path) -> None:
    """Run the examples; their files go to a scratch folder and the pictures from there to the gallery."""
    unknown = set(only or ()) - {example.picture for example in EXAMPLES}
    if unknown:
        names = ", ".join(example.picture for example in EXAMPLES)
        raise UserError(f"--only {sorted(unknown)[0]} is not in the gallery; choose from {names}")
    chosen = [example for example in EXAMPLES if only is None or example.picture in only]
    words = {word for example in chosen for word in example.command.split()}
    places = {"RUN": str(run.resolve())}
    if "PHOTO" in words:
        places["PHOTO"] = str(photo(scratch / "photo.png"))
    if "STYLE" in words:
        places["STYLE"] = str((style or fine_tuned(run, scratch)).resolve())
    FOLDER.mkdir(parents=True, exist_ok=True)
    for example in chosen:
        module, *words_of = example.command.split()
        arguments = [places.get(word) or placed(word, scratch) for word in words_of]
        if module == "viewer":  # goes on until it is stopped
            viewer_picture(arguments, FOLDER / example.picture)
            continue
        command: Callable[[Sequence[str]], int] = import_module(f"cips3d.{module}").main
        with redirect_stdout(StringIO()) as told:
            code = command(arguments)
        if code != 0:
            raise UserError(f"`{example.command}` failed; the pictures before it are made anew, the others are not")
        if example.is_text:
            (scratch / example.picture).write_text(told.getvalue().replace(places["RUN"], RUN))
        shutil.copyfile(scratch / (example.shown or example.picture), FOLDER / example.picture)


def placed(word: str, scratch: Path) -> str:
    """A word of a command, with files in the scratch folder."""
    is_file = Path(word).suffix in {".png", ".webp", ".glb", ".safetensors"} or word.endswith("/")
    return str(scratch / word) if is_file else word


def photo(path: Path) -> Path:
    """A head that is in no set that models train on."""
    Image.fromarray(load_heads(64, PHOTO_INDEX + 1, seed=PHOTO_SEED)[PHOTO_INDEX].permute(1, 2, 0).numpy()).save(path)
    return path


def fine_tuned(run: Path, scratch: Path) -> Path:
    """A model fine-tuned from the run's, with its NeRF frozen, on heads in the colours of a negative."""
    data, out = scratch / "negatives", scratch / "finetune"
    data.mkdir()
    heads = load_heads(32, NEGATIVES)
    for index in range(NEGATIVES):
        Image.fromarray(255 - heads[index].permute(1, 2, 0).numpy()).save(data / f"{index:04d}.png")
    flags = f"--preset finetune --init-from {run} --data {data} --out {out} --workers 0 {FAST_FINE_TUNING}"
    if train_command(flags.split()) != 0:
        raise UserError(f"fine-tuning {run} failed; give a fine-tuned model by --style")
    return out


def write_section() -> None:
    """Rewrite the gallery in the README."""
    parts = []
    for example in EXAMPLES:
        command = example.command
        for name, shown in (("RUN", RUN), ("STYLE", STYLE), ("PHOTO", PHOTO)):
            command = re.sub(rf"\b{name}\b", shown, command)
        if example.is_text:
            content = f"```\n{(FOLDER / example.picture).read_text().rstrip()}\n```"
        else:
            content = f"![{example.title}]({(FOLDER / example.picture).relative_to(ROOT).as_posix()})"
        parts.append(f"{example.title}: `python -m cips3d.{command}`\n\n{content}\n\n")
    text = README.read_text()
    found = len(readme.names(text, "gallery"))
    if found != 1:
        raise UserError(f"{README} has {found} places for the gallery; mark one by <!-- gallery --> and its end")
    readme.write(readme.filled(text, "gallery", lambda _: "\n" + "".join(parts)))


if __name__ == "__main__":
    raise SystemExit(main())
