"""The command `orders` and `python -m orders`: loads the commands, or says in one line which packages are missing."""

import sys

MISSING_PACKAGES = 1


def main() -> None:
    """Run the commands of orders.cli; without the packages of the extra `service`, exit with one line on stderr."""
    try:
        from orders import cli
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("orders", "relay"):
            raise
        print(
            f"orders: the package {error.name!r} is missing: install the service with `pip install 'orders[service]'`, "
            "or only its relay with `pip install ./relay`, whose command is `relay`",
            file=sys.stderr,
        )
        sys.exit(MISSING_PACKAGES)
    cli.main(prog_name="orders")


if __name__ == "__main__":
    main()
