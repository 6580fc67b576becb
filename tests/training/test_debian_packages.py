"""Are Debian's package lists read as they are written?"""

from __future__ import annotations

from shoal.training.debian import paragraphs, parse_packages

STANZAS = """\
Package: ale
Version: 1.2-1
Source: brewing (1.2)
Section: contrib/games
Homepage: https://example.org/ale
Tag: game::toys,
 role::program
Description: brews ale
 Brews ale from
 what there is.
 .
 It can do:
  * bitter, which is
    not sweet
  * mild
 .
 Run
   ale --brew
 and wait.
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
    assert (ale.name, ale.source, ale.version) == ("ale", "brewing", "1.2-1")
    assert (ale.section, ale.homepage) == ("contrib/games", "https://example.org/ale")
    assert ale.summary == "brews ale"
    assert ale.description == (
        "Brews ale from what there is.\n\n"
        "It can do:\n* bitter, which is not sweet\n* mild\n\n"
        "Run\nale --brew and wait."
    )
    # A long text that the lists hold apart takes the place of the short one.
    assert (short.summary, short.description) == ("says more", "Much more.")
    assert short.source == "short"


def test_nothing_gives_nothing() -> None:
    assert list(parse_packages([], {})) == []
    assert paragraphs("") == paragraphs("\n.\n") == ""
