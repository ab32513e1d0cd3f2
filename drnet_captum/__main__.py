"""``python -m drnet_captum``: the command line."""

from drnet_captum.cli import app

if __name__ == "__main__":
    app(prog_name="drnet-captum")
