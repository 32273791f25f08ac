"""Public collections as they are downloaded: each file knows how one of them is laid out, spelled and split."""
