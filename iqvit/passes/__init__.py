"""Rewrites of the captured float graph, one rewrite a file."""
