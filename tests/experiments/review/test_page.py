"""The page of a review, driven in a real browser as a person drives it."""

import json
import shutil
import time

import pytest
from tests.experiments.review.made import review_run, served

from diffmem.report.digest import build_digest
from diffmem.report.review.labels import read_labels
from diffmem.runs.store import RunStore

selenium = pytest.importorskip("selenium.webdriver", reason="needs selenium")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver")
HOSTILE = {
    "p0000": "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>",
    "p0001": "</script><script>document.title='broken'</script> \u202eabc",
    "p0002": "a" * 900,
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = selenium.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


class Page:
    """What a person sees and does."""

    def __init__(self, browser, server):
        self.browser, self.server = browser, server
        browser.get(server.address)
        self.until("return document.getElementById('review').dataset.state === 'ready'")

    def run(self, script):
        return self.browser.execute_script(script)

    def until(self, script, seconds=30):
        end = time.monotonic() + seconds
        while not (found := self.run(script)):
            assert time.monotonic() < end, script
            time.sleep(0.02)
        return found

    def press(self, *keys):
        from selenium.webdriver.common.action_chains import ActionChains

        for key in keys:
            ActionChains(self.browser).send_keys(key).perform()

    def kept(self, count):
        self.until(f"return Number(document.getElementById('review').dataset.kept || 0) >= {count}")

    @property
    def at(self):
        return int(self.run("return document.getElementById('review').dataset.at"))

    def choose(self, value):
        self.run(
            f"const s = document.getElementById('filter'); s.value = {json.dumps(value)}; s.dispatchEvent(new Event('change'))"
        )


def said(server):
    """Number of the pair -> category, as the run holds them now."""
    return {
        number: pair["category"]
        for number, pair in enumerate(server.session.pairs()["pairs"])
        if pair["category"] is not None
    }


@pytest.fixture
def page(tmp_path, browser):
    browser.set_window_size(1400, 1000)
    with served(review_run(tmp_path / "run", texts=HOSTILE)) as server:
        yield Page(browser, server)


def test_keys_label_undo_goes_back_and_notes_are_kept(page):
    page.press("1", "2", "3", "4", "5")
    page.kept(5)
    everything = ["copy", "altered copy", "same subject", "unrelated", "cannot say"]
    assert said(page.server) == dict(enumerate(everything)) and page.at == 5
    page.press("z")
    page.kept(6)
    assert page.at == 4 and said(page.server) == dict(enumerate(everything[:4]))
    page.press("n")
    page.press("not ", "sure")
    page.press("\ue007", "2")
    page.kept(8)
    pair = page.server.session.pairs()["pairs"][4]
    assert (pair["category"], pair["note"]) == ("altered copy", "not sure")
    assert RunStore(page.server.session.folder).read("labels").num_rows == 8, "nothing is ever changed, only added"


def test_a_reload_goes_on_where_the_reviewer_was(page):
    page.press("1", "4")
    page.kept(2)
    again = Page(page.browser, page.server)
    assert again.at == 2
    assert "2 labelled" in again.run("return document.getElementById('position').textContent")


def test_filters_and_search_choose_the_pairs(page):
    page.press("1", "4", "1")
    page.kept(3)
    page.choose("copy")
    assert page.at == 0
    page.press("\ue014")
    assert page.at == 2
    page.choose("open")
    assert page.at == 3
    page.press("4")
    page.kept(4)
    assert page.at == 4
    page.choose("all")
    place = next(i for i, p in enumerate(page.server.session.pairs()["pairs"]) if p["prompt"] == "prompt 7")
    page.press("/")
    page.press(*"prompt 7")
    page.until(f"return document.getElementById('review').dataset.at === '{place}'")
    page.choose("cannot say")
    assert "no such pair" in page.run("return document.getElementById('position').textContent")


def test_captions_are_text_and_nothing_is_asked_of_the_network(page):
    page.browser.get_log("performance")  # what the browser asked for before
    page = Page(page.browser, page.server)
    for place in range(12):
        page.run("document.getElementById('about').open = true")
        page.press("\ue014")
        assert page.browser.title == "Review of run", place
    page.choose("all")
    texts = {p["prompt"] for p in page.server.session.pairs()["pairs"]}
    assert any("<img src=x" in text for text in texts), "the hostile prompts are among the pairs"
    assert page.run("return document.querySelectorAll('#prompt *').length") == 0
    asked = set()
    for entry in page.browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.add(message["params"]["request"]["url"])
    assert len(asked) > 10
    assert all(url.startswith(page.server.address) for url in asked), asked
    problems = [one["message"] for one in page.browser.get_log("browser") if one["level"] == "SEVERE"]
    assert not [text for text in problems if "favicon" not in text], problems


def test_the_copied_part_is_outlined_and_laid_over(page):
    page.choose("called")
    page.until("return document.getElementById('training').dataset.loaded === 'yes'")
    points = page.run("return [...document.querySelectorAll('.frame polygon')].map(p => p.getAttribute('points'))")
    assert points == ["1,0 0,0 0,1 1,1", "0,0 0.5,0 0.5,1 0,1"]
    page.press("o")
    box = page.run(
        "const f = document.querySelector('#generated .frame').getBoundingClientRect();"
        "const o = document.querySelector('img.over').getBoundingClientRect();"
        "return [(o.left - f.left) / f.width, (o.right - f.left) / f.width, (o.top - f.top) / f.height, o.height / f.height]"
    )
    # x = -2 x' - 1: the training picture's left half, mirrored, fills the frame and its right half lies beyond its left edge.
    assert box == pytest.approx([-1, 1, 0, 1], abs=0.02)
    assert page.run("return getComputedStyle(document.querySelector('img.over')).opacity") == "0.5"
    page.press("f")
    seen = {page.until("return getComputedStyle(document.querySelector('img.over')).opacity") for _ in range(60)}
    seen |= {page.until("return document.getElementById('stage').classList.contains('flip') ? '1' : false")}
    assert "1" in seen
    page.press("v", "b")
    assert page.run("return document.querySelectorAll('.frame polygon').length") == 0


@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_scrolls_sideways_and_the_keys_are_in_sight(page, width):
    page.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 850, "deviceScaleFactor": 1, "mobile": False}
    )
    try:
        page.until("return document.getElementById('training').dataset.loaded === 'yes'")
        assert page.run("return document.documentElement.scrollWidth") <= width
        places = page.run(
            "return [...document.querySelectorAll('#categories button')].map(b => b.getBoundingClientRect().bottom)"
        )
        assert len(places) == 5 and max(places) <= 850
        inside = page.run(
            "return [...document.querySelectorAll('#review button')].every(b => b.scrollWidth <= b.clientWidth + 1)"
        )
        assert inside
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_server_that_is_gone_is_told_and_the_label_is_not_shown_as_kept(tmp_path, browser):
    with served(review_run(tmp_path / "run")) as server:
        page = Page(browser, server)
        page.press("1")
        page.kept(1)
    page.press("1")
    page.kept(2)
    assert "was not kept" in page.run("return document.getElementById('problem').textContent")
    assert "1 labelled" in page.run("return document.getElementById('position').textContent")
    assert len(read_labels(server.session.folder).current) == 1


def test_five_thousand_pairs_load_few_pictures(tmp_path, browser):
    """How much work a pair is does not grow with their number: pictures asked for, elements in the page, rows written."""
    folder = review_run(tmp_path / "run", count=5200, called=40, side=16, training=40)
    with served(folder, below=5000) as server:
        assert len(server.session) == 5040
        asked = []
        picture = server.session.picture
        server.session.picture = lambda *which: asked.append(which) or picture(*which)
        page = Page(browser, server)
        before = page.run("return document.querySelectorAll('*').length")
        for _ in range(10):
            page.press("4")
        page.kept(10)
        page.until("return document.getElementById('training').dataset.loaded === 'yes'")
        assert page.run("return document.querySelectorAll('*').length") <= before + 4
        assert len(set(asked)) <= 2 * (10 + 4), "the pairs that were seen, and those that come next"
        page.choose("called")
        page.until("return document.getElementById('training').dataset.loaded === 'yes'")
        assert server.session.pairs()["pairs"][page.at]["called"]
        assert len(said(server)) == 10
    assert build_digest(folder, methods=False).review.labels == 10
