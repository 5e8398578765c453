"""The `icons` data set: the icons of all sets of Iconify, with their names."""
