"""A real Chromium, driven by its DevTools protocol through the websocket client of aiohttp."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
from matplotlib.image import imread
from numpy.typing import NDArray

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-port=0",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)
MICROPHONE = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")

FIELD = "document.querySelector('input[type=file]')"


def find_chromium() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Chromium:
    """`async with Chromium(folder) as browser: tab = await browser.open(url)`."""

    def __init__(self, folder: Path, heard: Path | None = None) -> None:
        """heard: a WAV file that its microphone hears, again and again."""
        self.folder, self.options = folder, OPTIONS
        if heard is not None:
            self.options += (*MICROPHONE, f"--use-file-for-fake-audio-capture={heard}")

    async def __aenter__(self) -> Chromium:
        program = find_chromium()
        assert program is not None
        self.process = subprocess.Popen(
            [program, *self.options, f"--user-data-dir={self.folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        file = self.folder / "DevToolsActivePort"
        for _ in range(1200):
            if file.exists() and len(lines := file.read_text().split()) == 2:
                break
            await asyncio.sleep(0.05)
        self.session = aiohttp.ClientSession()
        address = f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        self.socket = await self.session.ws_connect(address, max_msg_size=0)
        self.numbers, self.answers, self.tabs = itertools.count(1), {}, {}
        self.reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.socket.close()  # ends the reading; a cancelled one leaves its connection open
        await self.reading
        await self.session.close()
        self.process.terminate()
        self.process.wait()

    async def open(self, url: str, width: int = 1280, *, dark: bool = False) -> Tab:
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        tab = self.tabs[attached["sessionId"]] = Tab(self, attached["sessionId"])
        for domain in ("Page", "Network", "Runtime", "DOM"):
            await tab.call(f"{domain}.enable")
        await tab.resize(width)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await tab.call("Emulation.setEmulatedMedia", features=[scheme])
        await tab.call("Page.navigate", url=url)
        return tab

    async def call(self, method: str, session: str | None = None, **params: Any) -> Any:
        number = next(self.numbers)
        self.answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params}
        await self.socket.send_json(message | ({"sessionId": session} if session else {}))
        return await asyncio.wait_for(self.answers[number], 60)

    async def _read(self) -> None:
        async for message in self.socket:
            read = json.loads(message.data)
            if (number := read.get("id")) in self.answers:
                self.answers.pop(number).set_result(read.get("result", read.get("error")))
            elif tab := self.tabs.get(read.get("sessionId")):
                tab.note(read)


class Tab:
    """One page: what it asked for, and what it complained of."""

    def __init__(self, browser: Chromium, session: str) -> None:
        self.browser, self.session = browser, session
        self.requests: list[str] = []
        self.complaints: list[str] = []

    def note(self, event: dict[str, Any]) -> None:
        if event["method"] == "Network.requestWillBeSent":
            self.requests.append(event["params"]["request"]["url"])
        if event["method"] == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(event["params"]["exceptionDetails"])[:500])

    async def call(self, method: str, **params: Any) -> Any:
        return await self.browser.call(method, self.session, **params)

    async def resize(self, width: int, height: int = 900) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    async def js(self, expression: str) -> Any:
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"].get("value")

    async def until(self, expression: str, seconds: float = 60) -> Any:
        """The value of an expression as soon as it is true."""
        for _ in range(round(seconds / 0.1)):
            if value := await self.js(expression):
                return value
            await asyncio.sleep(0.1)
        text = await self.js("document.body.innerText")
        raise AssertionError(f"never true: {expression}; the page: {text}; {self.complaints}")

    async def upload(self, path: Path, field: str = FIELD) -> None:
        """Choose a file in a field for files."""
        await self.until(f"!!{field}")
        found = await self.call("Runtime.evaluate", expression=field)
        await self.call(
            "DOM.setFileInputFiles", files=[str(path)], objectId=found["result"]["objectId"]
        )

    async def seen(self, element: str) -> NDArray[Any]:
        """The pixels (height, width, RGB) of an element, 0 to 1, as they are on the screen."""
        await self.call("Page.bringToFront")  # others are not painted
        await self.js(f"{element}.scrollIntoView()")
        find = f"(r => [r.x + scrollX, r.y + scrollY, r.width, r.height])({element}"
        box = await self.js(find + ".getBoundingClientRect())")
        clip = dict(zip(("x", "y", "width", "height"), box, strict=True), scale=1)
        shot = await self.call("Page.captureScreenshot", format="png", clip=clip)
        return imread(io.BytesIO(base64.b64decode(shot["data"])))[..., :3]

    async def picture(self, path: Path) -> None:
        """The whole page, however long."""
        size = await self.js("document.documentElement.scrollHeight")
        width = await self.js("window.innerWidth")
        await self.resize(width, max(300, size))
        await asyncio.sleep(0.5)
        shot = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))
