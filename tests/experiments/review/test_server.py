"""Who may read and label: the page's own address, host and origin, and nobody else; what is sent is never trusted."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.experiments.review.made import review_run, served

import diffmem
from diffmem.cli.app import main
from diffmem.report.digest import build_digest
from diffmem.report.review.labels import read_labels
from diffmem.runs.facts import read_fact, write_fact
from diffmem.runs.store import RunStore

ORIGIN = object()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = review_run(tmp_path_factory.mktemp("review") / "run")
    with served(folder) as server:
        yield server


def ask(server, method, place, headers=None, body=None, token=None):
    """(status, headers, body) of a request as a browser makes it, with changes."""
    host = f"127.0.0.1:{server.server_port}"
    path = f"/{server.token if token is None else token}/{place}"
    sent = {"Host": host}
    if method == "POST":
        sent |= {
            "Origin": f"http://{host}",
            "Content-Type": "application/json",
            "Content-Length": str(len(body or b"")),
        }
    for name, value in (headers or {}).items():
        sent[name] = value
        if value is None:
            del sent[name]
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.putrequest(
        method, path if not place.startswith("RAW") else place[3:], skip_host=True, skip_accept_encoding=True
    )
    for name, value in sent.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


def label(server, pair=0, category="copy", headers=None, **more):
    return ask(server, "POST", "label", headers, json.dumps({"pair": pair, "category": category} | more).encode())


def kept(server):
    return RunStore(server.session.folder).read("labels").num_rows


def test_the_page_asks_nothing_of_anybody_else(server):
    status, headers, page = ask(server, "GET", "")
    assert status == 200 and headers["Cache-Control"] == "no-store" and headers["X-Frame-Options"] == "DENY"
    policy = page.decode().split('Content-Security-Policy" content="')[1].split('"')[0].replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; img-src 'self'; ") and "unsafe" not in policy
    assert "connect-src 'self'" in policy and "http" not in policy
    assert "http" not in page.decode().replace("http://www.w3.org/2000/svg", "").replace('http-equiv="', "")


@pytest.mark.parametrize("place", ["", "pairs", "generated/0", "label"])
@pytest.mark.parametrize("token", ["", "wrong", "é%00"])
def test_a_wrong_token_sees_nothing(server, place, token):
    status, _, body = ask(server, "GET", place, token=token.replace("é", "%C3%A9"))
    assert status == 404 and body == b"Not Found"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "evil.example:80", "", None])
def test_another_host_is_refused(server, host):
    """A name that an attacker points at this machine (DNS rebinding) is not the page's own."""
    assert ask(server, "GET", "pairs", {"Host": host})[0] == 421
    before = kept(server)
    assert label(server, headers={"Host": host})[0] == 421 and kept(server) == before


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Origin": None}, {"Origin": "null"}, {"Origin": "https://127.0.0.1"},
     {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}],
)  # fmt: skip
def test_another_origin_cannot_label(server, headers):
    before = kept(server)
    assert label(server, headers=headers)[0] == 403 and kept(server) == before


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_form_cannot_label(server, kind):
    before = kept(server)
    assert label(server, headers={"Content-Type": kind})[0] == 415 and kept(server) == before


@pytest.mark.parametrize(
    "place",
    ["../../etc/passwd", "..%2f..%2fetc/passwd", "generated/../../manifest.json", "generated/-1", "generated/99999",
     "training/0/../../x", "generated/0?x=1", "other/0", "RAWhttp://127.0.0.1/", "RAW//etc/passwd", "RAW/", "generated/1e3",
     "generated/9999999999", "facts/copies.json"],
)  # fmt: skip
def test_no_path_leads_anywhere_else(server, place):
    assert ask(server, "GET", place)[0] in (400, 404)


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 400), (b"[]", 400), (b"{", 400), (b'{"pair": "0", "category": "copy"}', 400), (b"\xff", 400),
     (b'{"pair": true, "category": "copy"}', 400), (b'{"pair": 0, "category": 3}', 400), (b"[" * 50_000, 400),
     (b'{"pair": 0, "category": "copy", "note": 1}', 400), (b'{"pair": 99, "category": "copy"}', 409),
     (b'{"pair": -1, "category": "copy"}', 409), (b'{"pair": 0, "category": "maybe"}', 409),
     (b'{"pair": 0, "category": "copy", "note": "' + b"a" * 4001 + b'"}', 409)],
)  # fmt: skip
def test_what_is_no_label_is_refused_and_the_server_goes_on(server, body, status):
    before = kept(server)
    assert ask(server, "POST", "label", body=body)[0] == status
    assert kept(server) == before and ask(server, "GET", "pairs")[0] == 200


def test_a_body_too_large_or_of_no_length_is_not_read(server):
    assert ask(server, "POST", "label", {"Content-Length": "99999999"}, b"{}")[0] == 413
    assert ask(server, "POST", "label", {"Content-Length": None}, b"{}")[0] == 413
    assert ask(server, "POST", "label", {"Content-Length": "-5"}, b"{}")[0] == 413


def test_pictures_come_without_what_their_files_held(server):
    for side in ("generated", "training"):
        status, headers, body = ask(server, "GET", f"{side}/0")
        assert status == 200 and headers["Content-Type"] == "image/png" and body.startswith(b"\x89PNG")
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_a_label_is_in_the_run_when_it_is_answered(server):
    before = kept(server)
    status, _, body = label(server, 3, "altered copy", note="<script>alert(1)</script>")
    assert status == 200 and json.loads(body)["category"] == "altered copy"
    assert kept(server) == before + 1
    shown = json.loads(ask(server, "GET", "pairs")[2])["pairs"][3]
    assert (shown["category"], shown["note"]) == ("altered copy", "<script>alert(1)</script>")


def test_two_reviewers_do_not_see_each_other_before_they_decide(tmp_path):
    folder = review_run(tmp_path / "run")
    with served(folder) as one, served(folder, "bert") as two:
        assert label(one, 0, "copy")[0] == 200
        assert label(two, 0, "unrelated")[0] == 200
    with served(folder) as one, served(folder, "carl") as three:
        assert one.session.pairs()["pairs"][0]["others"] == {"bert": "unrelated"}
        assert three.session.pairs()["pairs"][0]["others"] == {}
    assert build_digest(folder, methods=False).review.disputed == 1


def test_labels_are_found_after_the_training_set_was_indexed_under_another_name(tmp_path):
    folder = review_run(tmp_path / "run")
    with served(folder) as server:
        assert label(server, 1, "copy")[0] == 200
    fact = read_fact(folder, "copies")
    write_fact(folder, "copies", fact | {"train": "another"})
    with served(folder) as server:
        assert server.session.attached == 1 and server.session.done == 1
    with served(folder) as server:
        assert server.session.attached == 0 and server.session.done == 1
    assert len(read_labels(folder).current) == 1


def test_a_run_of_0_1_0_is_reviewed_and_its_labels_are_found_again(tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(Path(__file__).parents[2] / "fixtures" / "runs_0_1_0" / "audit", folder)
    with served(folder) as server:
        count = len(server.session)
        for number in range(count):
            server.session.label(number, "unrelated", "")
    with served(folder) as server:
        assert server.session.done == count > 9
    found = build_digest(folder, methods=False)
    assert all(stratum.used == stratum.drawn for stratum in found.review.strata)
    assert found.verdict.by != "review" and found.copies.images_copied == 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_command_ends_and_nothing_is_lost(tmp_path, how):
    folder = review_run(tmp_path / "run")
    env = {**os.environ, "PYTHONPATH": str(Path(diffmem.__file__).parents[1])}
    command = [sys.executable, "-m", "diffmem.cli.app", "review", str(folder), "--reviewer", "anna"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    lines = [process.stdout.readline() for _ in range(2)]
    assert lines[0].startswith("12 pairs, 0 labelled by anna")
    address = lines[1].strip()

    class Server:
        server_port, token = int(address.split(":")[2].split("/")[0]), address.split("/")[3]

    for pair in range(3):
        assert label(Server, pair)[0] == 200
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    assert len(read_labels(folder).current) == 3
    if how is not signal.SIGKILL:
        assert process.returncode == 0 and "3 of 12 pairs are labelled by anna" in out and err == ""


def test_the_command_writes_and_adds_files_and_refuses_what_makes_no_sense(tmp_path, capsys):
    one, two, file = review_run(tmp_path / "one"), review_run(tmp_path / "two"), tmp_path / "l.csv"
    with served(one) as server:
        assert label(server, 0, "copy")[0] == 200
    assert main(["review", str(one), "--csv", str(file)]) == 0
    assert main(["review", str(two), "--add", str(file)]) == 0
    assert "1 labels added" in capsys.readouterr().out
    assert build_digest(two, methods=False).verdict.by == "review"
    for words in (
        [],
        ["--csv", str(file), "--reviewer", "a"],
        ["--reviewer", "a", "--sample", "-1"],
        ["--reviewer", " "],
    ):
        assert main(["review", str(one), *words]) == 2
    assert main(["review", str(tmp_path)]) == 2
