"""What a party's SuperNode runs: it carries messages to the party's own process and back."""

from fedbpt_api.flower.client import client_app

app = client_app()
