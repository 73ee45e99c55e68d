"""``python -m sim2or_bridge``: see ``--help``."""

from sim2or_bridge.main import app

if __name__ == "__main__":
    app()
