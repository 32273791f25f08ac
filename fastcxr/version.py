"""Version number, in a file that the build reads without importing torch."""

VERSION = "0.3.0.dev0"
