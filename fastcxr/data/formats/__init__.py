"""An image file of any kind becomes an 8-bit gray array; fastcxr.data.images is the door."""
