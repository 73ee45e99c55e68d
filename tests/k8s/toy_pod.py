"""The entry point of an image of the toy service: its command line, as every service has it."""

from sim2or.cli.service import service_app

if __name__ == "__main__":
    service_app("toy")()
