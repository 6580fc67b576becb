"""Turns a query into an answer: encode, search, merge, fetch, rerank."""
