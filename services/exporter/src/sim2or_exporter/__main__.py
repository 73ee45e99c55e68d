"""``python -m sim2or_exporter``: see ``--help``."""

from sim2or_exporter.main import app

if __name__ == "__main__":
    app()
