"""The federation: what a client answers, the messages that travel, and the in-process runtime."""
