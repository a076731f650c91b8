"""Settings of all tests: property tests draw the same examples every time and never fail for being slow."""

import os

from hypothesis import settings

# Tests choose backends by the built-in costs, whatever was measured on this machine; read when the package is imported.
os.environ["RSN2_CPU_COSTS"] = ""

settings.register_profile("repeatable", max_examples=30, deadline=None, derandomize=True)
settings.load_profile("repeatable")
