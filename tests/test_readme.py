"""The README's table of methods is the registry's."""

from pathlib import Path

from diffmem.report.methods import all_methods, markdown_table

README = Path(__file__).parents[1] / "README.md"


def test_the_table_of_methods_is_current():
    text = README.read_text(encoding="utf-8")
    table = text.partition("`diffmem methods --markdown` -->")[2].partition("<!-- end of methods")[0].strip()
    assert table == markdown_table(all_methods())
