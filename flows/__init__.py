"""The order of the work, and the command line."""

import logging

PACKAGES = ("core", "storage", "tasks", "flows")
"""Whose messages are for whoever runs a flow: on a terminal, and in the run's log on the Prefect server."""

for package in PACKAGES:
    logging.getLogger(package).setLevel(logging.INFO)
