"""A real server in a process of its own, which a test may kill."""

import http.client
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SERVE = """
import json, sys
from rlhf_jax.feedback.store.assign import Rules
from rlhf_jax.feedback.server.app import app
from rlhf_jax.feedback.server.run import bind, link, serve
from rlhf_jax.feedback.server.settings import Settings

db, port, rules = sys.argv[1], int(sys.argv[2]), Rules(**json.loads(sys.argv[3]))
listening = bind(port=port)
print(link(listening), flush=True)
serve(app(Settings(db, rules=rules)), listening)
"""


def start(db: Path, port: int = 0, rules: str = '{"gold_rate": 0, "repeat_rate": 0}') -> tuple[subprocess.Popen, str]:
    """The process and its address, once it answers."""
    command = [sys.executable, "-c", SERVE, str(db), str(port), rules]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert url.startswith("http://127.0.0.1:"), process.communicate(timeout=10)
    until = time.monotonic() + 60
    while True:
        try:
            page = http.client.HTTPConnection("127.0.0.1", port_of(url), timeout=5)
            page.request("GET", "/")
            assert page.getresponse().status == 200
            page.close()
            return process, url
        except OSError:
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.05)


def port_of(url: str) -> int:
    return int(url.rstrip("/").rpartition(":")[2])


def stop(process: subprocess.Popen) -> tuple[str, str]:
    """Kill the process, if it still runs; what it had written."""
    process.kill()
    out, err = process.communicate(timeout=30)
    return out, err
