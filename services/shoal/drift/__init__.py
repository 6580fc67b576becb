"""Drift: are questions, passages and answers still like those of before? Pure, on numpy alone."""
