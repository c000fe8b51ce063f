"""Generated files are what the code generates."""

from __future__ import annotations

import pytest

from tools import generate
from vipscope.metrics import CATALOGUE
from vipscope.settings import environment_name, parser


def test_metrics_md_is_the_catalogue() -> None:
    page = generate.METRICS.read_text()
    assert page == generate.metrics_page(), "run `make generate`"
    for metric in CATALOGUE:
        assert page.count(f"| `{metric}` |") == 1


def test_each_section_of_the_catalogue_is_one_piece() -> None:
    headings = [line for line in generate.metrics_page().splitlines() if line.startswith("## ")]
    assert len(headings) == len(set(headings))


def test_what_is_generated_of_a_document_is_what_the_code_generates() -> None:
    for path, text in generate.documents().items():
        assert path.read_text() == text, "run `make generate`"


def test_every_flag_of_the_command_line_is_in_the_table() -> None:
    table = generate.flags_table(parser())
    for action in parser()._actions:
        for option in action.option_strings:
            if option in ("-h", "--help", "--version") or option.startswith("--no-"):
                continue
            assert f"`{environment_name(option.removeprefix('--'))}`" in table


def test_a_region_is_replaced_and_the_rest_kept() -> None:
    text = "a\n<!-- x begin -->\nold\n<!-- x end -->\nb\n"
    renewed = generate.replace_region(text, "x", "new \\1\n")
    assert renewed == "a\n<!-- x begin -->\nnew \\1\n<!-- x end -->\nb\n"
    assert generate.replace_region(renewed, "x", "old\n") == text


@pytest.mark.parametrize("text", ["", "<!-- x begin -->\n"])
def test_a_region_that_is_not_there_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="0 regions 'x'"):
        generate.replace_region(text, "x", "")
