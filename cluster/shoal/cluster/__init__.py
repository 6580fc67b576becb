"""Hosts the services on Ray: places, watches, heals and scales them."""
