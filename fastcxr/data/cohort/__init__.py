"""How manifests and splits are made; fastcxr.data.manifest and fastcxr.data.splits are the doors."""
