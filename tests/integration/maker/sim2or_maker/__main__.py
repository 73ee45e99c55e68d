"""``python -m sim2or_maker serve``."""

from sim2or.service import serve

if __name__ == "__main__":
    serve("maker")
