"""Are Debian's package lists read as they are written?"""

from __future__ import annotations

from shoal.training.debian import parse_packages

STANZAS = """\
Package: ale
Source: brewing (1.2)
Section: contrib/games
Homepage: https://example.org/ale
Description: brews ale
 Brews ale from
 what there is.
 .
 It can do:
  * bitter
  * mild
Description-md5: 0f

Package: ale
Description: comes again

Package: short
Description: says little
Description-md5: aa

Package: silent
Section: admin
"""


def test_fields_and_paragraphs_are_read() -> None:
    ale, short = parse_packages(STANZAS.splitlines(), {"aa": "says more\n Much more."})
    assert (ale.name, ale.source, ale.section) == ("ale", "brewing", "games")
    assert ale.homepage == "https://example.org/ale"
    assert ale.summary == "brews ale"
    assert ale.description == "Brews ale from what there is.\n\nIt can do:\n* bitter\n* mild"
    # A long text that the lists hold apart takes the place of the short one.
    assert (short.summary, short.description) == ("says more", "Much more.")
    assert short.source == "short"


def test_nothing_gives_nothing() -> None:
    assert list(parse_packages([], {})) == []
