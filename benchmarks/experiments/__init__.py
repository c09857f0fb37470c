"""Experiments behind decisions in docs/decisions; each is a program."""
