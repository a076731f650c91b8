"""``python -m rsn2``: the command line."""

from rsn2.cli import app

app(prog_name="rsn2")
