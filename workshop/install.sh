#!/bin/sh
# Install the cookbook from this folder and nothing else: sh install.sh, or PYTHON=python3.12 sh install.sh
# The Python must be of the version that made the pack; pip says so if it is not.
set -eu
cd "$(dirname "$0")/groot_cookbook"
export PIP_CONFIG_FILE=/dev/null PIP_DISABLE_PIP_VERSION_CHECK=1
"${PYTHON:-python3}" -m venv .venv
install() { .venv/bin/python -m pip install --quiet --no-index --find-links ../wheels -c constraints.txt "$@"; }
install torch                           # by itself first, as the Makefile does
install -e '.[all]'
touch .venv/.ready                      # tells make that there is nothing to set up
echo 'Installed. Now: cd groot_cookbook && make smoke, or make lab'
