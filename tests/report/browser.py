"""A headless Chromium that tells what a page did: errors, requests, and how it looks."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any


def find_chromium() -> tuple[str | None, str | None]:
    """Paths of the browser and of its driver, None for what is not there."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None), shutil.which("chromedriver")


class Browser:
    """One page at a time, at a width and in a colour scheme."""

    def __init__(self, binary: str, driver: str) -> None:
        from selenium.webdriver import Chrome, ChromeOptions
        from selenium.webdriver.chrome.service import Service

        options = ChromeOptions()
        options.binary_location = binary
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--hide-scrollbars"):  # fmt: skip
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = Chrome(options=options, service=Service(driver))
        self.driver.set_script_timeout(300)

    def quit(self) -> None:
        self.driver.quit()

    def open(self, page: Path, width: int = 1440, scheme: str = "light") -> None:
        self.requests()
        self.errors()
        command = self.driver.execute_cdp_cmd
        command(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        command("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get(page.as_uri())
        self.driver.execute_script("try{localStorage.clear()}catch(e){}")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def draw_all(self) -> int:
        """Scroll through the page until every visible chart is drawn; how many there are.

        A chart is drawn when the browser paints a frame with it in view, and a busy machine may go
        without a frame for seconds: a minute passes before a chart counts as one that never comes.
        """
        script = """
        const done = arguments[arguments.length - 1];
        const charts = [...document.querySelectorAll('.chart')].filter(c => c.offsetParent);
        let at = 0, since = performance.now();
        (function next() {
          while (at < charts.length && charts[at].querySelector('.main-svg')) {
            at++;
            since = performance.now();
          }
          if (at === charts.length) { scrollTo({top: 0, behavior: 'instant'}); done(at); return; }
          if (performance.now() - since > 60000) {
            const box = charts[at].getBoundingClientRect();
            done(`${charts[at].id} is not drawn at ${box.x},${box.y} ${box.width}x${box.height}`);
            return;
          }
          charts[at].scrollIntoView({block: 'center', behavior: 'instant'});
          setTimeout(next, 25);
        })();"""
        found = self.driver.execute_async_script(script)
        assert isinstance(found, int), found
        return found

    def errors(self) -> list[str]:
        """What the console has complained of since the last look."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses asked for since the last look."""
        messages = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def screenshot(self, path: Path) -> None:
        size = self.run("return [innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
        shot = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip}
        )
        path.write_bytes(base64.b64decode(shot["data"]))
