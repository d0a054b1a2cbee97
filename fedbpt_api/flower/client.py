"""The app at a party's SuperNode: one line in what `fedbpt flower init` writes."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedbpt_api.errors import FedbptError
from fedbpt_api.flower.carry import ask
from fedbpt_api.flower.record import read, written


def client_app() -> ClientApp:
    """The app at a party's SuperNode: carries envelopes to the party's own process and back.

    The node's configuration says where that listens: `--node-config 'party="/path/party.sock"'`.
    """
    app = ClientApp()

    @app.query()
    def answer(message: Message, context: Context) -> Message:
        try:
            data = ask(Path(str(context.node_config["party"])), read(message))
        except KeyError:
            raise FedbptError("the node's configuration names no party") from None
        return Message(written(data), reply_to=message)

    return app
