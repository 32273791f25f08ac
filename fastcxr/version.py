"""The version, in a file that packaging can read without importing torch."""

VERSION = "0.2.0.dev0"
