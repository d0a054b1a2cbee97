"""Everything around a run: its settings, its folder, what it found and the report that is sent to others."""
