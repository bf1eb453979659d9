"""Legible networks: named, nested, and a forward that walks its children."""
