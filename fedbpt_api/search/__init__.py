"""Local optimisers as ask/tell over plain, serialisable state; one algorithm a file."""
