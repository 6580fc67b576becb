"""Typed metadata, and the language that searches filter by it.

Below the table, so that the writer checks values, the broker filters, and shards evaluate them by
the same words. Semantics are two-valued: a term about an absent field is false, `!=` too, and `!`
turns false into true, whatever it came from.
"""
