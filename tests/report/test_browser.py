"""The report in a real browser: no script of a prompt runs, nothing is asked of the network, the layout holds."""

import http.server
import json
import re
import shutil
import subprocess
import threading

import pytest
from tests.report.made import small_run
from tests.report.test_html import HOSTILE

from diffmem.report.html import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--virtual-time-budget=2000",
)  # fmt: skip

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")


def browse(tmp_path, *arguments):
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.fixture
def asked():
    """A server that a hostile prompt tries to reach: its address, and the paths that were asked for."""
    paths = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            paths.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            """Quiet."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", paths
    server.shutdown()


def test_hostile_prompts_run_nothing_load_nothing_and_fit_the_screen(tmp_path, asked):
    address, paths = asked
    hostile = {
        **HOSTILE,
        "a": f"</script><script>document.title='broken';fetch('{address}/a')</script>",
        "b": f"<img src='{address}/b' onerror=\"document.title='broken'\"><link rel=stylesheet href='{address}/c'>",
    }
    small_run(tmp_path / "run", hostile)
    report = write_report(tmp_path / "run")
    page = browse(tmp_path, "--window-size=1400,1000", "--dump-dom", report.as_uri())
    assert "<title>Memorization report: model</title>" in page
    assert 'aria-label="Filter the rows of the table"' in page, "our own script runs under the policy"
    assert len(re.findall(r"<script", page)) == 1
    assert paths == []
    # A parent page measures the report in frames as wide as a phone and a screen: neither scrolls sideways.
    measure = tmp_path / "measure.html"
    frames = "".join(f'<iframe src="{report.as_uri()}" width="{w}" height="900"></iframe>' for w in (400, 1400))
    measure.write_text(
        f"<body>{frames}<script>onload=()=>{{document.title=JSON.stringify([...document.querySelectorAll('iframe')]"
        ".map(f=>[f.contentDocument.documentElement.scrollWidth,f.clientWidth]))}</script>",
        encoding="utf-8",
    )
    page = browse(tmp_path, "--allow-file-access-from-files", "--dump-dom", measure.as_uri())
    sizes = json.loads(re.search(r"<title>(\[\[.*?\]\])</title>", page)[1])
    assert len(sizes) == 2
    for needed, given in sizes:
        assert needed <= given


def test_the_canary_itself_works(tmp_path, asked):
    address, paths = asked
    bare = tmp_path / "bare.html"
    bare.write_text(f"<title>sound</title><p>{HOSTILE['a']}<img src='{address}/b'>", encoding="utf-8")
    assert "<title>broken</title>" in browse(tmp_path, "--dump-dom", bare.as_uri())
    assert paths == ["/b"]
