#!/bin/sh
# Compares nsparse with the other side, both in turns: benches/peer/run.sh train|train-base|encode|growth [OPTIONS]
#
# Needs target/release/nsparse and a Python with requirements.txt beside this file: PYTHON names it (default python3).
# What was measured already is kept in target/peer/, so that the same command goes on where it was stopped.
set -eu
folder=$(dirname "$0")
exec "${PYTHON:-python3}" "$folder/alternate.py" "$@"
