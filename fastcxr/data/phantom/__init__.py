"""Draws one synthetic radiograph; fastcxr.data.sample is the door."""
