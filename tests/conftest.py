"""Settings of all tests: property tests draw the same examples every time and never fail for being slow."""

from hypothesis import settings

settings.register_profile("repeatable", max_examples=30, deadline=None, derandomize=True)
settings.load_profile("repeatable")
