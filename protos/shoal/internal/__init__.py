"""Contracts between the services; no promise is made to anyone outside."""
