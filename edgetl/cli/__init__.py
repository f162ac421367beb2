"""The command line: Typer alone, one file per verb."""
