"""Families of text-to-image models: one row and one small file each, for what differs between them."""
