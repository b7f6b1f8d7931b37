"""The options of prompts reach the list that they belong to, or are refused."""

import re

import pytest
from PIL import Image

from diffmem.cli.app import VERBS, build_app, main
from diffmem.cli.options import PromptOptions
from diffmem.errors import UsageError


@pytest.mark.parametrize("name", ["column", "id", "labels", "captions", "encoding"])
def test_options_of_files_are_refused_for_typed_prompts(name):
    with pytest.raises(UsageError, match=f"--{name} belongs to --prompts"):
        PromptOptions(**{name: "txt"}).load(("a red fox",))


def test_ids_and_labels_of_a_file(tmp_path):
    (tmp_path / "p.csv").write_text("id,caption,known\n1,one,yes\n1,two,no\n")
    prompts = PromptOptions(prompts=tmp_path / "p.csv", id="none", labels="known").load(())
    assert [(p.id, p.label) for p in prompts] == [("000000", True), ("000001", False)]
    prompts = PromptOptions(prompts=tmp_path / "p.csv", id="id").load(())
    assert [(p.id, p.label) for p in prompts] == [("1", None), ("1#2", None)]


def test_which_captions_count_is_asked_and_answered_on_the_command_line(tmp_path, capsys):
    Image.radial_gradient("L").resize((8, 8)).save(tmp_path / "1.png")
    (tmp_path / "1.txt").write_text("1dog, solo")
    (tmp_path / "1.caption").write_text("sks dog\x1b[31m")
    command = ["score", "testbed:digits", "--prompts", str(tmp_path), "--score", "text-uppercase", "--json"]
    assert main(command) == 2
    assert "--captions caption|txt" in capsys.readouterr().err
    assert main([*command, "--captions", "caption"]) == 0
    said = capsys.readouterr()
    assert "sks dog" in said.out and "\x1b" not in said.err


def test_notes_of_the_data_are_said_once_and_cannot_steer_a_terminal(tmp_path, capsys):
    for folder in ("train", "made"):
        (tmp_path / folder).mkdir()
        for i in range(3):
            Image.linear_gradient("L").rotate(90 * i).resize((8, 8)).save(tmp_path / folder / f"{i}.png")
    (tmp_path / "train" / "bell\x07.dng").write_bytes(b"x")
    (tmp_path / "train" / "page.png").write_bytes(b"<html>")
    assert main(["match", str(tmp_path / "made"), "--train", str(tmp_path / "train"), "--quiet"]) == 0
    said = capsys.readouterr().err
    assert said.count("raw file") == 1 and said.count("page.png") == 1 and "\x07" not in said


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_says_in_words_what_it_does(verb):
    app = build_app(VERBS, verb)[verb]
    for command in [app, *(app[name] for name in app if not name.startswith("-"))]:
        if command.default_command is None:
            continue
        described = re.findall(r"^ +(\w+): ", command.default_command.__doc__ or "", re.MULTILINE)
        for argument in command.assemble_argument_collection():
            name = argument.names[0].removeprefix("--").replace("-", "_").lower() if argument.names else ""
            if (
                argument.parameter.show is False
                or not argument.parse
                or name == "*"
                or name in described
                or name.startswith("empty_")
            ):
                continue
            help = argument.parameter.help or ""
            assert len(help.split()) > 1, f"diffmem {verb} {argument.names}: {help!r}"
            assert not re.match(r"(of|to|in|for|likewise)\b", help), f"half a sentence: {argument.names} {help!r}"
