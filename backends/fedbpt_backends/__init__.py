"""Backends that come with fedbpt_api: one file a server. Each is found through an entry point."""
