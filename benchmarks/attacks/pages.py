"""Hostile prompts, ids, captions and file names on every page: nothing runs, nothing is loaded, nothing is shown unescaped.

    python benchmarks/attacks/pages.py [--seconds 300] [--limit 100]

Every payload goes in as a prompt, a prompt's id, the name of a training image, its caption and the name of the model's folder.
The page is parsed: no script but its own, no handler, no address outside the file, no element that a harmless page lacks.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
import time
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

from common import Inputs, Tally, command, opened_once
from tests.tiny import picture

PAYLOADS = (
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onmouseover='alert(1)", "javascript:alert(1)",
    "</title><svg/onload=alert(1)>", "</style><script src=//evil.example/x></script>", "{{7*7}}{% raw %}", "${7*7}#{7*7}",
    "<!--<script>-->", "]]><x/>", "<a href='http://evil.example'>x</a>", "<iframe srcdoc='<script>1</script>'>",
    "<base href=//evil.example>", "<meta http-equiv=refresh content='0;url=//evil.example'>", "\u202e<b>txet", "\x1b[31m<i>",
    "<math><mtext></table><mglyph><style><img src onerror=1>", "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<svg><use href='data:x'/>",
    "a\u2028</script>\u2029b", "+ADw-script+AD4-", "%3Cscript%3E", "\ufeff<script>", "<style>@import'//evil.example'</style>",
    "<object data=x>", "<form action=//evil.example><input name=a autofocus onfocus=alert(1)>",
)  # fmt: skip
CHARTS = {"svg", "rect", "line", "text", "title", "path", "circle", "g"}
VERBS = ("audit", "extract", "mitigate", "match", "generate")
ALLOWED_ADDRESS = re.compile(r"(data:image/(png|jpeg);base64,|#)")
ADDRESSES = {"src", "href", "action", "data", "srcset", "poster", "xlink:href", "formaction", "background", "srcdoc"}


class Page(HTMLParser):
    """Tags of a page, and what must not be in one."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.wrong = Counter(), []
        self.scripts, self._in_script = set(), False
        self.feed(text)

    def handle_data(self, data):
        if self._in_script:
            self.scripts.add(data)

    def handle_endtag(self, tag):
        self._in_script = False

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self._in_script = tag == "script"
        for name, value in attrs:
            if name.startswith("on") or name == "srcdoc":
                self.wrong.append(f"{tag} {name}")
            if (
                name in ADDRESSES
                and not ALLOWED_ADDRESS.match(value or "#")
                and not (tag == "a" and not re.match(r"\w+:|//", value))
            ):
                self.wrong.append(f"{tag} {name}={value[:60]}")
            if name == "style" and re.search(r"url\(|expression|import", value or ""):
                self.wrong.append(f"{tag} style={value[:60]}")
        if tag in ("iframe", "object", "embed", "base", "form", "input", "link", "math", "mglyph"):
            self.wrong.append(tag)
        if tag == "meta" and dict(attrs).get("http-equiv", "").lower() not in ("", "content-security-policy"):
            self.wrong.append("meta http-equiv")


def inputs_of(inputs, folder, payload):
    """A model, prompts and training images that carry the payload wherever text goes."""
    named = re.sub(r"[/\x00]", "_", payload)[:80]
    folder.mkdir(parents=True)
    model = folder / f"model {named}"
    model.symlink_to(inputs.model)
    train = folder / "train"
    train.mkdir(parents=True)
    rows = []
    for i in range(6):
        name = f"{i}{named}.png"
        picture(i).save(train / name, format="PNG")
        rows.append({"file_name": name, "text": f"{payload} {i}"})
    (train / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = folder / "prompts.jsonl"
    prompts.write_text(
        "".join(
            json.dumps({"id": f"{payload}{i}", "prompt": f"{payload} {i}", "label": bool(i)}) + "\n" for i in range(2)
        )
    )
    return model, train, prompts


def commands(verb, model, train, prompts, out):
    short = ("--prompts", prompts, "--id", "id", "--images-per-prompt", 2, "--steps", 1, "--quiet", "--out", out)
    return {
        "audit": [("audit", model, *short, "--train", train, "--draws", 1, "--labels", "label")],
        "extract": [("extract", model, *short, "--clique", 2, "--edge", "-1", "--train", train)],
        "mitigate": [("mitigate", model, *short, "--method", "random-tokens:count=1", "--train", train)],
        "match": [("match", train, "--train", train, "--metrics", "--out", out, "--quiet")],
        "generate": [("generate", model, *short)],
    }[verb]


def run(limit=None, seconds=None):
    """The campaign: {"trials", "failures", ...}."""
    tally, begun, usual, scripts = Tally("pages"), time.time(), {}, {}
    with tempfile.TemporaryDirectory() as scratch, opened_once():
        folder = Path(scratch)
        inputs = Inputs.make(folder / "inputs")
        for verb in VERBS:
            usual[verb], scripts[verb] = set(), set()
            for text in pages(verb, inputs, folder / "harmless", "a red fox", tally):
                usual[verb] |= Page(text).tags.keys()
                scripts[verb] |= Page(text).scripts
        tally.outcomes.clear()
        for payload in PAYLOADS:
            for verb in VERBS:
                if (seconds is not None and time.time() - begun > seconds) or (limit or 10**9) <= sum(
                    tally.outcomes.values()
                ):
                    break
                for text in pages(verb, inputs, folder / "trial", payload, tally):
                    page = Page(text)
                    strange = sorted(
                        page.tags.keys() - usual[verb] - {"svg", "rect", "line", "text", "title", "path", "circle", "g"}
                    )
                    if page.wrong or strange:
                        tally.add(
                            "something runs or is loaded",
                            f"{verb} {payload!r}: {page.wrong[:3]} {strange[:3]}",
                            wrong=True,
                        )
                    elif re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\u202a-\u202e\u2066-\u2069]", text):
                        tally.add("a steering character", f"{verb} {payload!r}", wrong=True)
                    else:
                        tally.add("harmless")
    return tally.result(payloads=len(PAYLOADS), seconds=round(time.time() - begun))


def pages(verb, inputs, folder, payload, tally):
    """The pages that a verb writes with a payload everywhere, as they are, blurred and with hashed prompts."""
    model, train, prompts = inputs_of(inputs, folder / "in", payload)
    out = folder / "run"
    for words in commands(verb, model, train, prompts, out):
        code, _, err = command(*words)
        if code == 70 or (code and not err.strip()):
            tally.add(f"exit {code}", f"{verb} {payload!r}: {err.strip()[-200:]}", wrong=True)
    for number, more in enumerate(((), ("--redact", "blur"), ("--redact", "hash", "--hash-prompts"))):
        page = folder / f"page{number}.html"
        code, _, err = command("report", out, "--out", page, *more)
        if code == 70 or (code and not err.strip()):
            tally.add(f"report: exit {code}", f"{verb} {payload!r}: {err.strip()[-200:]}", wrong=True)
        elif code == 0:
            yield page.read_text(encoding="utf-8")
    shutil.rmtree(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seconds", type=float)
    options = parser.parse_args()
    print(json.dumps(run(options.limit, options.seconds), indent=1))


if __name__ == "__main__":
    main()
