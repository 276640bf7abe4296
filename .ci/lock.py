"""Print requirements.lock: the version of every package in this environment; `make lock` writes it.

A package that needs a newer Python than this project does is held to its version only there: on an older Python pip takes
the newest one that fits.
"""

import importlib.metadata
import re

OLDEST = (3, 10)  # python_requires in setup.cfg
HEADER = """\
# The versions that `make test` has passed with: constraints of the Makefile's installation, and what `make audit` looks up.
# Written by `make lock`; setup.cfg says what is needed and why."""
OWN = {"snac_accel", "pip", "setuptools", "wheel"}  # this project, and what every environment begins with


def main() -> None:
    print(HEADER)
    lines = {line(package) for package in importlib.metadata.distributions() if package.name not in OWN}
    print("\n".join(sorted(lines, key=str.lower)))


def line(package: importlib.metadata.Distribution) -> str:
    """`name==version`, with a marker if it needs a newer Python; a local label (+cpu) tells builds apart, not versions."""
    pin = f"{package.name}=={package.version.partition('+')[0]}"
    found = re.search(r">=?\s*3\.(\d+)", package.metadata.get("Requires-Python") or "")
    if found is None or (3, int(found[1])) <= OLDEST:
        return pin
    return f'{pin} ; python_version >= "3.{found[1]}"'


if __name__ == "__main__":
    main()
