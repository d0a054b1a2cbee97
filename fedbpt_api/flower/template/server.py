"""What the coordinator runs: the tuning, as task.toml says."""

from pathlib import Path

from fedbpt_api.flower.server import server_app

app = server_app(Path(__file__).with_name("task.toml"))
