"""``fedbpt``, and ``python -m fedbpt_api``: the command line, in a process of its own."""

import os


def main() -> None:
    # Before numpy is there to read it; processes that are started inherit it. The matrices are small, and the
    # cores belong to the model: with OpenBLAS's threads beside a busy one, 64 x 64 take 100 ms, not 0.3.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from fedbpt_api.cli import app

    app(prog_name="fedbpt")


if __name__ == "__main__":
    main()
