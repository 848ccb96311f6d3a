"""Every `robustft` command that a page shows has a verb and options that there are."""

import re

import pytest

from .pages import PAGES, name, text

pytest.importorskip("yaml")

from robustft.cli import app
from robustft.cli.app import VERBS
from robustft.cli.parser import Parser, add_options

# At a line's beginning in code, after a prompt, a run of torchrun's, or in backticks.
COMMAND = re.compile(r"(?:^ {4}|^\$ |^|`|-m )robustft ([a-z][a-z-]*)((?: [^`\n]*)?)", re.MULTILINE)


def flags(verb):
    actions = add_options(Parser(), app.found(VERBS[verb].options)).values()
    return {"--help", *(text for action in actions for text in action.option_strings)}


def wrong(whole):
    """What is no verb or option, of the commands in a page's text. Verbs in prose are of a known
    name or none, so only those in code count as unknown."""
    joined = re.sub(r"\\\n\s*", "", whole)
    found = []
    for command in COMMAND.finditer(joined):
        verb, rest = command[1], re.split(r"\s#|\s\||\s&&", command[2])[0]
        in_code = command[0].startswith(("    ", "$ ", "`"))
        pair = f"{verb} {(rest.split() or [''])[0]}"  # "data ls" is one verb
        verb = pair if pair in VERBS else verb
        groups = {name.split()[0] for name in VERBS if " " in name}
        if verb in ("doctor", *groups) or (verb not in VERBS and not in_code):
            continue
        if verb not in VERBS:
            found.append(f"robustft {verb}")
            continue
        given = re.findall(r"(?<=\s)--[a-z][a-z-]*", rest)
        found += [f"robustft {verb} {flag}" for flag in given if flag not in flags(verb)]
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_of_a_page_exist(page):
    assert wrong(text(page)) == []


def test_a_verb_or_an_option_that_is_none_is_found():
    page = "    robustft trian\n\n`robustft train --methods x` robustft is\n\n"
    page += "    torchrun --nproc-per-node 2 -m robustft train --lr 1 \\\n        --rate 2\n"
    assert wrong(page) == [
        "robustft trian",
        "robustft train --methods",
        "robustft train --rate",
    ]
