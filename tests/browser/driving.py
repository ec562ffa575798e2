"""The labelling server in a thread, a real browser, and a person at its keyboard."""

import contextlib
import json
import shutil
import socket
import tempfile
import threading
import time
from contextlib import closing

import uvicorn
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from rlhf_jax.feedback.server import app as server
from rlhf_jax.feedback.server import run as server_run
from rlhf_jax.feedback.store import open_store
from rlhf_jax.feedback.store.add import add_annotator, add_items
from rlhf_jax.feedback.store.assign import Rules
from rlhf_jax.feedback.store.read import judgements

PLAIN = Rules(gold_rate=0.0, repeat_rate=0.0)
FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --no-proxy-server --disable-dev-shm-usage --hide-scrollbars"""
PATIENCE = 20  # seconds; only ever waited for in full when something is wrong


def until(true, what):
    """Wait until `true()` is; an AssertionError that says what was waited for."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = true()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {PATIENCE} s for {what}")


class Site:
    """A store with items, and a server for it that can be stopped and started again at the same address."""

    def __init__(self, folder, items, names=("ann",), port=0, **asked):
        self.db = folder / "judgements.sqlite"
        self.asked = {"rules": PLAIN} | asked
        with closing(open_store(self.db)) as con:
            add_items(con, items)
            self.tokens = {name: add_annotator(con, name) for name in names}
        self.port = port
        self.start()

    def start(self):
        listening = server_run.bind("127.0.0.1", self.port)
        self.port = listening.getsockname()[1]
        app = server.app(server.Settings(self.db, **self.asked))
        config = uvicorn.Config(app, log_level="warning", lifespan="off", ws="none", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listening]}, daemon=True)
        self.thread.start()
        until(lambda: self.server.started, "the server")

    def stop(self):
        self.server.should_exit = True
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            raise AssertionError("the server still listens")

    @property
    def origin(self):
        return f"http://127.0.0.1:{self.port}"

    def link(self, name="ann"):
        return f"{self.origin}/#{self.tokens[name]}"

    def query(self, sql, *values):
        with closing(open_store(self.db)) as con:
            return [dict(row) for row in con.execute(sql, values)]

    def judged(self):
        """What stands, in the order of judging."""
        with closing(open_store(self.db)) as con:
            return judgements(con)

    def drafts(self):
        return [json.loads(row["draft"]) for row in self.query("SELECT draft FROM draft")]


class Browser:
    """One window. Every request that it makes is kept for `requests`."""

    def __init__(self):
        self.profile = tempfile.mkdtemp(prefix="rlhf-jax-browser-")
        options = webdriver.ChromeOptions()
        found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        driver = shutil.which("chromedriver")
        assert found and driver, "these tests need chromium and chromedriver: apt-get install chromium chromium-driver"
        options.binary_location = found
        for flag in (*FLAGS.split(), f"--user-data-dir={self.profile}", "--window-size=1280,800"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        self.driver.set_script_timeout(PATIENCE)

    def quit(self):
        self.driver.quit()
        shutil.rmtree(self.profile, ignore_errors=True)

    def open(self, link):
        """As a person does who was sent the link, in a tab that has seen nothing yet."""
        self.driver.get("about:blank")
        self.driver.get(link)
        self.ready()

    def js(self, script, *values):
        return self.driver.execute_script(f"return {script}", *values)

    def ready(self):
        until(lambda: self.js("Boolean(document.querySelector('.cards, .plain'))"), "an item")

    def text(self, selector):
        return self.js("document.querySelector(arguments[0])?.textContent ?? null", selector)

    def texts(self, selector):
        return self.js("[...document.querySelectorAll(arguments[0])].map((node) => node.textContent)", selector)

    def responses(self):
        """The texts of the cards, in the order shown."""
        return self.texts(".card .text, .card .empty")

    def press(self, *keys):
        """Keys one after the other, wherever the focus is. "ctrl+z" holds the control key."""
        for key in keys:
            held = key.startswith("ctrl+")
            chain = ActionChains(self.driver, duration=0)
            if held:
                chain.key_down(Keys.CONTROL).send_keys(key[5:]).key_up(Keys.CONTROL).perform()
            else:
                chain.send_keys(key).perform()

    def submit(self):
        """Enter, then wait for another page than this one."""
        self.mark()
        self.press(Keys.ENTER)
        self.next()

    def mark(self):
        self.js("document.querySelector('.cards, .plain').setAttribute('data-seen', '')")

    def next(self):
        gone = "Boolean(document.querySelector('.cards, .plain')) && !document.querySelector('[data-seen]')"
        until(lambda: self.js(gone), "the next page")

    def look(self, *, width=1280, height=800, dark=False, still=False):
        """A screen of this size; the preferences of the person before it."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        wanted = {"prefers-color-scheme": "dark" if dark else "light"}
        wanted["prefers-reduced-motion"] = "reduce" if still else "no-preference"
        features = [{"name": name, "value": value} for name, value in wanted.items()]
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def requests(self):
        """Addresses asked for since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def complaints(self):
        """What the browser's console holds since the last call: errors of scripts, of loading, of the content policy."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
