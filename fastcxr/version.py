"""Version number, in a file that the build reads without importing torch."""

VERSION = "0.2.0"
