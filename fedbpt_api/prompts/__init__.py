"""Prompt spaces (maps from vectors to prompts) and the tuned prompt as a file."""
