"""AnyRes grids, tiles and the token layout of an image."""
