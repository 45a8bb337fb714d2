"""A report as text: for the terminal and as Markdown."""

from compressor.render.markdown import markdown
from compressor.render.terminal import terminal_table

__all__ = ["markdown", "terminal_table"]
