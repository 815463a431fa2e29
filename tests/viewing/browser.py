"""A real browser without a window: Chromium, driven by Selenium."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from PIL import Image
from viewer_picture import NoBrowserError, open_browser

PATIENCE = 30.0  # seconds until what does not happen counts as failed
SIZE = (760, 560)

Found = TypeVar("Found")


class Browser:
    """One browser with a profile of its own.

    Args:
        folder: of the profile and of downloads.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self.driver = open_browser(folder, SIZE)
        except NoBrowserError as error:
            pytest.skip(str(error))
        self.downloads = folder / "downloads"

    def close(self) -> None:
        self.driver.quit()

    def wait(self, found: Callable[[], Found | None], what: str) -> Found:
        """What `found` gives, as soon as it is true."""
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        waiting = WebDriverWait(self.driver, PATIENCE, 0.05, [StaleElementReferenceException])
        return waiting.until(lambda _: found(), f"no {what}: the page says {self.text!r}")

    @property
    def text(self) -> str:
        """All that can be read on the page."""
        from selenium.webdriver.common.by import By

        return str(self.driver.find_element(By.TAG_NAME, "body").text)

    def requested(self) -> set[str]:
        """Addresses that the page asked for since the last question; not those within the browser."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = {"Network.requestWillBeSent": "request", "Network.webSocketCreated": None}
        urls: set[str] = set()
        for message in messages:
            if message["method"] in sent:
                inner = sent[message["method"]]
                urls.add((message["params"] if inner is None else message["params"][inner])["url"])
        return {url for url in urls if url.partition(":")[0] in ("http", "https", "ws", "wss")}

    def picture(self) -> np.ndarray:
        """The square in the middle of the canvas that a picture fills, in 0 to 255."""
        from selenium.webdriver.common.by import By

        canvas = self.driver.find_element(By.TAG_NAME, "canvas")
        shot = Image.open(io.BytesIO(canvas.screenshot_as_png)).convert("RGB")
        side = min(shot.size)
        left, top = (shot.width - side) // 2, (shot.height - side) // 2
        return np.asarray(shot.crop((left, top, left + side, top + side)))

    def shows(self, expected: np.ndarray) -> bool:
        """True where the picture is this one, but for enlargement, and for a note of the page in its upper left."""
        grid = 16
        seen, wanted = (
            np.asarray(Image.fromarray(pixels).resize((grid, grid), Image.Resampling.BOX), dtype=float)
            for pixels in (self.picture(), expected)
        )
        # Averages over a 16th of the side; bilinear enlargement moves them by less than the difference of neighbours.
        return bool(np.abs(seen - wanted)[grid // 2 :].mean() < 4)

    def drag(self, *moves: tuple[int, int]) -> None:
        """Press in the middle of the picture, move step by step, and stay there."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.by import By

        hand = ActionChains(self.driver, duration=20)
        hand.move_to_element(self.driver.find_element(By.TAG_NAME, "canvas")).click_and_hold()
        for move in moves:
            hand.move_by_offset(*move)
        hand.perform()

    def move(self, *move: int) -> None:
        """Move the mouse by pixels."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver, duration=20).move_by_offset(*move).perform()

    def let_go(self) -> None:
        """Let the mouse button go."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).release().perform()

    def press(self, label: str) -> None:
        """Press the button of this name."""
        from selenium.webdriver.common.by import By

        button = f"//button[normalize-space(.)='{label}']"
        self.wait(lambda: self.driver.find_elements(By.XPATH, button), f"button {label}")[0].click()

    def enter(self, label: str, text: str) -> None:
        """Put a text into the first field of this name."""
        from selenium.webdriver.common.keys import Keys

        self.type(label, text, Keys.ENTER)

    def type(self, label: str, *keys: str) -> None:
        """Replace what the first field of this name has, and stay in it."""
        from selenium.webdriver.common.by import By
        from selenium.webdriver.common.keys import Keys

        path = f"(//label[normalize-space(.)='{label}'])[1]/following::input[not(@type='hidden')][1]"
        field = self.wait(lambda: self.driver.find_elements(By.XPATH, path), f"field {label}")[0]
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(*keys)
