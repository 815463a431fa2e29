"""A picture of the viewer's page, taken by a real browser without a window.

    python benchmarks/viewer_picture.py viewer.webp runs/00000-tiny --seed 3     # then what cips3d.viewer takes

It needs Debian's chromium and chromium-driver, or the like, and selenium (`pip install 'cips3d[test]'`).
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from PIL import Image

from cips3d.errors import UserError
from cips3d.pictures import save_image
from cips3d.process.ending import exit_on_user_error
from cips3d.viewer import Options, check_options, exhibit_of, model_of, title_of
from cips3d.viewing import Gallery, open_server

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

PROGRAMS = ("chromium", "chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",  # it may run as root
    "--disable-gpu",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",  # WebGL on a CPU
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SIZE = (1080, 800)
PATIENCE = 120.0  # seconds until what does not happen counts as failed
SETTLING = 1.0  # seconds from the page's last word to its last pixel


class NoBrowserError(UserError):
    """A program or library that drives the browser is missing."""


def open_browser(folder: Path, size: tuple[int, int]) -> Chrome:
    """Chromium without a window, and with a profile of its own.

    Args:
        folder: where its profile and its downloads, `downloads`, go.
        size: width and height of the page.

    Raises:
        NoBrowserError: something that it takes is missing.
    """
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise NoBrowserError(f"no {' and '.join(missing)}: apt-get install chromium chromium-driver")
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError as error:
        raise NoBrowserError("no selenium: pip install 'cips3d[test]'") from error
    downloads = folder / "downloads"
    downloads.mkdir(parents=True)
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which(PROGRAMS[0]) or ""
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={size[0]},{size[1]}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(shutil.which(PROGRAMS[1])))


def viewer_picture(arguments: Sequence[str], out: Path, *, size: tuple[int, int] = SIZE) -> None:
    """Photograph the viewer's page, once the picture on it is as fine as it gets.

    Args:
        arguments: of `python -m cips3d.viewer`.
        out: .png, .webp or .jpg.
        size: width and height of the page in pixels.

    Raises:
        UserError: the model cannot be shown, or there is no browser.
    """
    options = tyro.cli(Options, args=arguments)
    check_options(options)
    exhibit = exhibit_of(options, model_of(options))
    gallery = Gallery(open_server("127.0.0.1", 0, title_of(options, exhibit)), exhibit)
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            browser = open_browser(Path(folder), size)
            try:
                browser.get(gallery.address)
                close_notes(browser)
                wait_for(browser, f"{exhibit.largest} × {exhibit.largest} pixels")
                shown = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
            finally:
                browser.quit()
    finally:
        gallery.close()
    save_image(out, shown)


def close_notes(browser: Chrome) -> None:
    """Of what the page says about the browser itself, that it has no graphics card."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    note = ".mantine-Notification-closeButton"
    buttons = WebDriverWait(browser, PATIENCE).until(lambda _: browser.find_elements(By.CSS_SELECTOR, note), "no note")
    for button in buttons:
        button.click()


def wait_for(browser: Chrome, words: str) -> None:
    """Until the page says so."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, PATIENCE).until(
        lambda _: words in browser.find_element(By.TAG_NAME, "body").text, f"the page does not say {words!r}"
    )
    time.sleep(SETTLING)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the picture: .png, .webp or .jpg")
    options, of_viewer = parser.parse_known_args(arguments)

    def command() -> int:
        viewer_picture(of_viewer, options.out)
        return 0

    return exit_on_user_error(command)


if __name__ == "__main__":
    raise SystemExit(main())
